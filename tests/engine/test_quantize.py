"""The quantizers against ggml's reference algorithms written out in numpy, one float32 operation at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rwkvflow.worker.model.weight_types import (
    BF16,
    BLOCKS,
    BY_NUMBER,
    F16,
    F32,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q8_0,
    QUANTIZED,
    size_of,
)
from rwkvflow.worker.read.dequantize import dequantize
from rwkvflow.worker.write.native import Native
from tests.engine import encoder

f32 = np.float32
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="session", params=["system", "system-avx2", "system-baseline", "zig"])
def native(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Native:
    """The functions as each compiler makes them, with and without run-time choice of instructions."""
    compiler, _, least = request.param.partition("-")
    options = [f"-DRWKVFLOW_{least.upper()}"] if least else []
    return Native(encoder.build(tmp_path_factory.mktemp(request.param) / "engine", compiler, *options))


# ---- the oracle -----------------------------------------------------------------------------------------------


def cast(t: np.float32, bits: int) -> int:
    """(int8_t)t or (uint8_t)t as x86 does it: truncate to int32, 0x80000000 where it does not fit, low byte."""
    whole = int(t) if np.isfinite(t) and -(2.0**31) <= t < 2.0**31 else 0
    low = whole & 0xFF
    return low - 256 if bits == 8 and low >= 128 else low


def half(value: np.float32) -> bytes:
    return np.asarray(value, f32).astype("<f2").tobytes()


def nibbles(q: list[int]) -> bytes:
    return bytes((q[j] & 15) | ((q[j + 16] & 15) << 4) for j in range(16))


def fifth_bits(q: list[int]) -> bytes:
    return sum(((q[j] >> 4) & 1) << j for j in range(32)).to_bytes(4, "little")


def q4_0(x: Array) -> bytes:
    d = f32(x[np.argmax(np.abs(x))] / f32(-8))
    scale = f32(1) / d if d else f32(0)
    q = [min(15, cast(v * scale + f32(8.5), 8)) for v in x]
    return half(d) + nibbles(q)


def q4_1(x: Array) -> bytes:
    low, high = x[np.argmin(x)], x[np.argmax(x)]
    d = (high - low) / f32(15)
    scale = f32(1) / d if d else f32(0)
    q = [min(15, cast((v - low) * scale + f32(0.5), 8)) for v in x]
    return half(d) + half(low) + nibbles(q)


def q5_0(x: Array) -> bytes:
    d = f32(x[np.argmax(np.abs(x))] / f32(-16))
    scale = f32(1) / d if d else f32(0)
    q = [min(31, cast(v * scale + f32(16.5), 8)) for v in x]
    return half(d) + fifth_bits(q) + nibbles(q)


def q5_1(x: Array) -> bytes:
    low, high = x[np.argmin(x)], x[np.argmax(x)]
    d = (high - low) / f32(31)
    scale = f32(1) / d if d else f32(0)
    q = [cast((v - low) * scale + f32(0.5), 0) for v in x]
    return half(d) + half(low) + fifth_bits(q) + nibbles(q)


def q8_0(x: Array) -> bytes:
    d = np.max(np.abs(x)) / f32(127)
    scale = f32(1) / d if d else f32(0)
    out = bytearray(half(d))
    for v in x:
        t = v * scale
        away = np.copysign(np.floor(np.abs(t) + 0.5), t) if np.isfinite(t) else t  # 0.5 in float64: exact
        out.append(cast(f32(away), 8) & 0xFF)
    return bytes(out)


def nearest(t: Array, most: int) -> Array:
    found: Array = np.rint(np.clip(np.nan_to_num(t, nan=0.0, posinf=most, neginf=0.0), 0, most)).astype(f32)
    return found


def total(terms: Array) -> Array:
    found: Array = np.cumsum(terms, axis=0, dtype=f32)[-1]  # one after another
    return found


def fit(x: Array, most: int, first: float, tries: int) -> tuple[Array, Array, Array]:
    """make_qkx2_quants of ggml, for the sub-blocks in the columns of x: scales, minima and weights."""
    weight = np.sqrt(total(x * x) / f32(32)) + np.abs(x)
    low, high = np.minimum(x.min(0), f32(0)), x.max(0)
    sum_w, sum_x = total(weight), total(weight * x)
    steps = f32(most) / (high - low)
    best, best_low = f32(1) / steps, low
    best_q = nearest(steps * (x - low), most)
    off = best * best_q + low - x
    best_error = total(weight * (off * off))
    for i in range(tries + 1):
        steps = (f32(first) + f32(0.1) * f32(i) + f32(most)) / (high - best_low)
        q = nearest(steps * (x - best_low), most)
        sum_q, sum_qq, sum_xq = total(weight * q), total(weight * q * q), total(weight * q * x)
        divisor = sum_w * sum_qq - sum_q * sum_q
        scale = (sum_w * sum_xq - sum_x * sum_q) / divisor
        least = (sum_qq * sum_x - sum_q * sum_xq) / divisor
        scale, least = np.where(least > 0, sum_xq / sum_qq, scale), np.where(least > 0, f32(0), least)
        off = scale * q + least - x
        error = total(weight * (off * off))
        better = (divisor > 0) & (error < best_error)
        best, best_low = np.where(better, scale, best), np.where(better, least, best_low)
        best_error, best_q = np.where(better, error, best_error), np.where(better, q, best_q)
    flat = high == low
    return np.where(flat, f32(0), best), np.where(flat, -low, -best_low), np.where(flat, f32(0), best_q)


def super_block(x: Array, most: int, first: float, tries: int) -> bytes:
    if not np.isfinite(x).all():
        return b"\0\x7e\0\x7e" + bytes(BLOCKS[Q5_K if most == 31 else Q4_K][1] - 4)
    columns = x.reshape(8, 32).T
    scale, least, q = fit(columns, most, first, tries)
    largest, deepest = (np.max(v, initial=f32(0)) + f32(0) for v in (scale, least))  # never -0
    s = nearest((f32(63) / largest if largest > 0 else f32(0)) * scale, 63).astype(int)
    m = nearest((f32(63) / deepest if deepest > 0 else f32(0)) * least, 63).astype(int)
    packed = [s[j] | (s[j + 4] >> 4 << 6) for j in range(4)] + [m[j] | (m[j + 4] >> 4 << 6) for j in range(4)]
    packed += [(s[j] & 15) | ((m[j] & 15) << 4) for j in range(4, 8)]
    head = half(largest / f32(63)) + half(deepest / f32(63))
    d, dmin = (np.frombuffer(head[at : at + 2], "<f2").astype(f32)[0] for at in (0, 2))
    again = nearest((columns + dmin * m.astype(f32)) / (d * s.astype(f32)), most)
    q = np.where(d * s.astype(f32) != 0, again, q).astype(int)
    high = [sum((q[i, sub] >> 4) << sub for sub in range(8)) for i in range(32)] if most == 31 else []
    low = [(q[i, 2 * pair] & 15) | (q[i, 2 * pair + 1] & 15) << 4 for pair in range(4) for i in range(32)]
    return head + bytes(packed) + bytes(high) + bytes(low)


ORACLE: dict[int, Callable[[Array], bytes]] = {
    **{Q4_0: q4_0, Q4_1: q4_1, Q5_0: q5_0, Q5_1: q5_1, Q8_0: q8_0},
    Q4_K: lambda x: super_block(x, 15, -1.0, 20),
    Q5_K: lambda x: super_block(x, 31, -0.5, 15),
}


def expected(kind: int, x: Array) -> bytes:
    with np.errstate(all="ignore"):
        return b"".join(ORACLE[kind](block) for block in x.reshape(-1, BLOCKS[kind][0]))


# ---- what goes in ---------------------------------------------------------------------------------------------

# Weights as they are, with ties of sign, zeros of both signs, subnormals and numbers near the limits mixed in.
numbers = st.one_of(
    st.floats(-4, 4, width=32),
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1e-45, -1e-45, 1e-39, 2.0**-126, 65504.0, 65520.0, 3e38, -3e38]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def blocks(kind: int) -> st.SearchStrategy[Array]:
    length = BLOCKS[kind][0]
    sizes = st.integers(1, 3 if length == 32 else 1).map(lambda n: n * length)
    return sizes.flatmap(lambda size: arrays(f32, size, elements=numbers, fill=st.nothing() | st.just(0.0)))


@pytest.mark.parametrize("kind", sorted(ORACLE))
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_blocks_equal_the_reference(native: Native, kind: int, data: st.DataObject) -> None:
    x = data.draw(blocks(kind))
    out, finite = native.encode(x, F32, kind, x.size)
    assert out.tobytes() == expected(kind, x)
    scales = np.frombuffer(out.tobytes(), np.uint8).reshape(-1, BLOCKS[kind][1])[
        :, : 4 if kind in (Q4_1, Q5_1, Q4_K, Q5_K) else 2
    ]
    assert finite == bool(np.isfinite(np.ascontiguousarray(scales).view("<f2")).all())


@pytest.mark.parametrize("kind", sorted(ORACLE))
@pytest.mark.parametrize("deviation", [1.0, 0.02, 1e-3])
def test_many_normal_weights_equal_the_reference(native: Native, kind: int, deviation: float) -> None:
    x = (np.random.default_rng(kind).standard_normal(256 * 40) * deviation).astype(f32)
    out, finite = native.encode(x, F32, kind, 1280)
    assert finite
    assert out.tobytes() == expected(kind, x)


@pytest.mark.parametrize("kind", sorted(QUANTIZED))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 17, 31])
def test_what_is_not_finite_is_reported(native: Native, kind: int, bad: float, at: int) -> None:
    length, size = BLOCKS[kind]
    x = np.random.default_rng(0).standard_normal(2 * length).astype(f32)
    whole, fine = native.encode(x, F32, kind, 2 * length)
    assert fine
    x[length + at] = bad
    out, finite = native.encode(x, F32, kind, 2 * length)
    assert not finite
    assert out.tobytes()[:size] == whole.tobytes()[:size]  # the block before is as it was
    assert native.count_not_finite(x, F32) == 1


def test_every_half_becomes_its_float(native: Native) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    out, finite = native.encode(halves, F16, F32, halves.size)
    mine, theirs = out.view("<f4"), halves.view("<f2").astype(f32)
    same = (mine.view("<u4") == theirs.view("<u4")) | (np.isnan(mine) & np.isnan(theirs))
    assert same.all()
    assert not finite
    assert native.count_not_finite(halves, F16) == 2 * 1024


def test_every_bfloat_becomes_its_float_and_half(native: Native) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    floats = (bits.astype(np.uint32) << 16).view(f32)
    assert native.encode(bits, BF16, F32, bits.size)[0].tobytes() == floats.tobytes()
    assert native.count_not_finite(bits, BF16) == 2 * 128
    check_halves(native, floats)


@settings(max_examples=200, deadline=None)
@given(x=arrays(np.uint32, st.integers(1, 100), elements=st.integers(0, 2**32 - 1)))
def test_floats_round_to_the_nearest_half(native: Native, x: Array) -> None:
    check_halves(native, x.view(f32))


@pytest.mark.parametrize("exponent", range(-26, 17))
def test_halfway_cases_go_to_even(native: Native, exponent: int) -> None:
    between = (1 + np.arange(0, 4096, dtype=np.float64) / 4096) * 2.0**exponent
    x = between.astype(f32)
    check_halves(native, np.concatenate([x, np.nextafter(x, f32(0)), np.nextafter(x, f32(np.inf)), -x]))


@settings(max_examples=200, deadline=None)
@given(x=arrays(np.uint32, st.integers(1, 100), elements=st.integers(0, 2**32 - 1)))
def test_floats_round_to_the_nearest_bfloat(native: Native, x: Array) -> None:
    """As torch's .bfloat16() does; a NaN stays one and keeps its sign."""
    torch = pytest.importorskip("torch")
    values = x.view(f32)
    theirs = torch.from_numpy(values.copy()).bfloat16().view(torch.int16).numpy().view("<u2")
    out, finite = native.encode(values, F32, BF16, values.size)
    ours = out.view("<u2")
    nan = np.isnan(values)
    assert (ours[~nan] == theirs[~nan]).all()
    assert ((ours[nan] & 0x7FC0) == 0x7FC0).all()
    assert ((ours >> 15) == (x >> 31)).all()
    assert finite == bool(((ours & 0x7F80) != 0x7F80).all())


def test_every_bfloat_comes_back(native: Native) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    floats = native.encode(bits, BF16, F32, bits.size)[0].view(f32)
    back = native.encode(floats, F32, BF16, bits.size)[0].view("<u2")
    signaling = ((bits & 0x7F80) == 0x7F80) & ((bits & 0x7F) != 0) & ((bits & 0x40) == 0)
    assert (back == np.where(signaling, bits | 0x40, bits)).all()


def check_halves(native: Native, x: Array) -> None:
    """float32 to F16 as numpy (and torch's .half()) round; any NaN is the quiet one of its sign."""
    with np.errstate(all="ignore"):
        theirs = x.astype("<f2").view("<u2")
    theirs = np.where(np.isnan(x), np.where(np.signbit(x), 0xFE00, 0x7E00), theirs).astype("<u2")
    out, finite = native.encode(np.ascontiguousarray(x), F32, F16, x.size)
    assert out.tobytes() == theirs.tobytes()
    assert finite == bool(((theirs & 0x7C00) != 0x7C00).all())


@pytest.mark.parametrize("kind", sorted(QUANTIZED))
def test_via_f16_quantizes_what_an_f16_file_holds(native: Native, kind: int) -> None:
    x = np.random.default_rng(2).standard_normal(32 * 4000).astype(f32)
    halves = x.astype("<f2").view("<u2")
    through, _ = native.encode(x, F32, kind, x.size, via_f16=True)
    assert through.tobytes() == native.encode(halves, F16, kind, x.size)[0].tobytes()
    if kind in ORACLE:  # of the others test_gguf_golden.py has the bytes
        first = expected(kind, x[: 32 * 40].astype("<f2").astype(f32))
        assert through.tobytes()[: len(first)] == first
    assert through.tobytes() != native.encode(x, F32, kind, x.size)[0].tobytes()


@pytest.mark.parametrize("kind", [F32, F16, BF16, *sorted(QUANTIZED)])
@pytest.mark.parametrize("count", [0, 32, 4096, 2048 * 3 + 288])
def test_rows_alone_are_the_bytes_of_all_rows(native: Native, kind: int, count: int) -> None:
    count -= count % BLOCKS[kind][0]
    x = np.random.default_rng(count).standard_normal(count).astype(f32)
    once, _ = native.encode(x, F32, kind, count)
    assert once.size == size_of(kind, count)
    row = 3 * BLOCKS[kind][0]
    rows = [native.encode(x[at : at + row], F32, kind, min(row, count - at))[0] for at in range(0, count, row)]
    assert b"".join(each.tobytes() for each in rows) == once.tobytes()


def test_sizes_of_rows(native: Native) -> None:
    for kind, (length, size) in BLOCKS.items():
        assert native.row_bytes(kind, length * 7) == size * 7
        if length > 1:
            assert native.row_bytes(kind, length + 1) == 0
    for unknown in {*range(-1, 64)} - {*BLOCKS}:
        assert native.row_bytes(unknown, 256) == 0


def test_arguments_that_make_no_sense_are_refused(native: Native) -> None:
    x = np.zeros(64, f32)
    with pytest.raises(ValueError, match="cannot be encoded"):
        native.encode(x, F32, 6, 64)
    with pytest.raises(ValueError, match="cannot be encoded"):
        native.encode(x, F32, Q4_0, 16)
    with pytest.raises(ValueError, match="no rows of"):
        native.encode(x, F16, Q4_0, 32)
    with pytest.raises(ValueError, match="no rows of"):
        native.encode(x, F32, Q4_0, 48)
    with pytest.raises(ValueError, match="no rows of"):
        native.encode(np.zeros((64, 64), f32).T, F32, Q4_0, 64)


@pytest.mark.parametrize(("kind", "name"), [(Q4_K, "q4_k"), (Q5_K, "q5_k")])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_super_blocks_mean_what_ggufs_own_reader_says(kind: int, name: str, data: st.DataObject) -> None:
    quants = pytest.importorskip("gguf.quants")
    constants = pytest.importorskip("gguf.constants")
    size = BLOCKS[kind][1]
    raw = data.draw(st.binary(min_size=size, max_size=size))
    with np.errstate(all="ignore"):
        theirs = quants.dequantize(np.frombuffer(raw, np.uint8), constants.GGMLQuantizationType(BY_NUMBER[kind].gguf))
        ours = dequantize(name, raw)
    assert np.array_equal(ours, theirs.reshape(-1), equal_nan=True)


@pytest.mark.parametrize(("kind", "name", "before"), [(Q4_K, "q4_k", Q4_1), (Q5_K, "q5_k", Q5_1)])
def test_super_blocks_lose_less_than_blocks_of_more_bits(native: Native, kind: int, name: str, before: int) -> None:
    x = np.random.default_rng(1).standard_normal(256 * 200).astype(f32)
    names = {Q4_1: "q4_1", Q5_1: "q5_1"}
    error = [
        float(np.square(dequantize(called, native.encode(x, F32, number, x.size)[0].tobytes()) - x).mean())
        for number, called in ((kind, name), (before, names[before]))
    ]
    assert error[0] < 0.95 * error[1]
    assert size_of(kind, 256) < size_of(before, 256)


def test_compilers_are_found() -> None:
    """The tests above would all be skipped without one; this says so once."""
    assert Path(encoder.ENGINE / "src" / "quantize" / "quantize.cc").is_file()
    if not encoder.compilers():
        pytest.skip("no C++ compiler on this machine")
