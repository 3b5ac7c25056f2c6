"""Hostile and damaged checkpoints: every one ends in a WorkerError that says what is wrong, and nothing is run."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.read.torch_file import pickle_reader
from rwkvflow.worker.read.torch_file.pickle_reader import PickleReader
from tests.helpers import checkpoints
from tests.helpers.checkpoints import Pickle, array_entry
from tests.helpers.flipped import flipped

FILES = settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pth(path: Path, body: bytes, storage: bytes = bytes(16), **records: bytes) -> Path:
    parts = [("x/data.pkl", len(body), [body]), ("x/data/0", len(storage), [storage])]
    checkpoints.write_zip(path, parts + [(f"x/{name}", len(data), [data]) for name, data in records.items()])
    return path


def good() -> Pickle:
    return Pickle().op(b"}(").text("emb.weight").tensor("FloatStorage", "0", 4, (2, 2)).op(b"u")


def read_all(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.tensors:
            checkpoint.read(name)
        checkpoint.verify()


def error_of(path: Path) -> str | None:
    """What reading says of a file; any other exception than WorkerError passes through and fails the test."""
    try:
        read_all(path)
    except WorkerError as error:
        return str(error)
    return None


def refused(path: Path, *words: str) -> str:
    with pytest.raises(WorkerError) as error:
        read_all(path)
    message = str(error.value)
    for word in (path.name, *words):
        assert word in message, message
    return message


# ---- pickles that want to run something


class Runs:
    def __init__(self, call: Callable[..., object], *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("call", "name"),
    [(os.system, f"{os.name}.system"), (eval, "eval"), (getattr, "getattr"), (__import__, "__import__")],
)
def test_pickles_that_call_something(tmp_path: Path, protocol: int, call: Callable[..., object], name: str) -> None:
    canary = tmp_path / "canary"
    body = pickle.dumps({"emb.weight": Runs(call, f"touch {canary}")}, protocol)
    message = refused(pth(tmp_path / "evil.pth", body))
    if protocol > 0:  # protocol 0 is refused before, for its opcodes
        assert name in message
    assert "nothing of this file was run" in message
    assert "torch.save(" in message
    assert not canary.exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x80\x02cos\nsystem\n(X\x02\0\0\0idtR.", "os.system"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),
        (b"\x80\x02ctorch\nload\n.", "torch.load"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", "torch.storage._load_from_bytes"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.", "__globals__"),
        (b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n.", "numpy.core.multiarray._reconstruct"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\0.", "EXT2"),
        (b"\x80\x02\x84\x01\0\0\0.", "EXT4"),
        (b"\x80\x02(cos\nsystem\no.", "os.system"),
        (b"(ios\nsystem\n.", "INST"),
        (b"\x80\x02)\x81.", "NEWOBJ"),
        (b"Pstorage\n.", "PERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02}2.", "DUP"),
        (b"\x80\x04\x8f.", "EMPTY_SET"),
        (b"\x80\x02\x8b\xff\xff\xff\x7f.", "LONG4"),
        (b"(I1\nI2\nl.", "LIST"),
    ],
)
def test_opcodes_and_names_that_tensors_do_not_need(tmp_path: Path, body: bytes, words: str) -> None:
    assert "nothing of this file was run" in refused(pth(tmp_path / "x.pth", body), words)


def test_names_in_messages_are_tame(tmp_path: Path) -> None:
    message = refused(pth(tmp_path / "x.pth", "\x80\x02cos\nsys\x1b[31mtem\u202e\n.".encode()))
    assert message.isascii()
    assert message.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02}}.",
        b"\x80\x02(.",
        b"\x80\x02t.",
        b"\x80\x02NR.",
        b"\x80\x02))R.",
        b"\x80\x02NQ.",
        b"\x80\x02(Q.",
        b"\x80\x02}N)s.",
        b"\x80\x02}(Nu.",
        b"\x80\x02})Ns.",  # a tuple as key
        b"\x80\x02]K\x01}s.",
        b"\x80\x02}K\x01a.",
        b"\x80\x02h\x05.",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x02X\x01\0\0\0\xff.",
        b"\x80\x02\x8a\xff" + bytes(255) + b".",
        b"\x80\x09}.",
        b"\x80\x02\xff.",
        b"\x80\x02ctorch",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v3\n)R.",
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n)R.",
        b"\x80\x02ccollections\nOrderedDict\nN\x85R.",
        b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.",
        b"\x80\x02N}b.",
        b"\x80\x02}Nb.",
        b"\x80\x04NN\x93.",
        b"",
    ],
)
def test_damaged_pickles(tmp_path: Path, body: bytes) -> None:
    refused(pth(tmp_path / "x.pth", body))


def persistent(*parts: Callable[[Pickle], object]) -> bytes:
    made = Pickle().op(b"}(").text("a").name("torch._utils", "_rebuild_tensor_v2").op(b"((")
    for part in parts:
        part(made)
    return made.op(b"tQ").integer(0).integers((2, 2)).integers((2, 1)).op(b"\x89NtRu").done()


def test_persistent_ids(tmp_path: Path) -> None:
    def build(tag: str = "storage", kind: str = "FloatStorage", key: str = "0", numel: int = 4) -> bytes:
        return persistent(
            lambda p: p.text(tag),
            lambda p: p.name("torch", kind),
            lambda p: p.text(key),
            lambda p: p.text("cuda:0"),
            lambda p: p.integer(numel),
        )

    read_all(pth(tmp_path / "good.pth", build()))
    path = tmp_path / "x.pth"
    refused(pth(path, build(tag="module")), "persistent id")
    refused(pth(path, build(kind="float32")), "no type")
    refused(pth(path, build(kind="ComplexFloatStorage")), "ComplexFloatStorage")
    refused(pth(path, build(kind="QInt8Storage")), "QInt8Storage")
    refused(pth(path, build(kind="UntypedStorage", numel=16)), "without a dtype")
    for key in ("../data.pkl", "", "1" * 30, "٣", "0\n"):
        refused(pth(path, build(key=key)), "key")
    refused(pth(path, build(key="7")), "data/7", "missing")
    for numel in (-1, 2**62, 2**63 - 1):
        refused(pth(path, build(numel=numel)), "impossible size")
    for numel in (0, 3, 5, 2**40):
        refused(pth(path, build(numel=numel)), f"not {4 * numel}")


def test_views_that_leave_their_storage(tmp_path: Path) -> None:
    def build(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Path:
        body = Pickle().op(b"}(").text("a").tensor("FloatStorage", "0", 4, shape, stride, offset).op(b"u")
        return pth(tmp_path / "x.pth", body.done())

    read_all(build((2, 2), (1, 2)))
    refused(build((2, 2), (2, 1), 1), "reaches value 4 of a storage of 4")
    refused(build((2, 2), (2**62, 1)), "reaches")
    refused(build((2**31, 2**31), (0, 0)), "expanded view")
    refused(build((5,), (0,)), "expanded view")
    refused(build((4,), (1,), 2**62), "reaches")
    for shape, stride in (((-1, 2), (1, 1)), ((2,), (1, 1)), ((2, 2), (-1, 1)), ((1,) * 40, (1,) * 40)):
        refused(build(shape, stride))
    read_all(build((0, 2**40), (1, 1), 2**40))  # no values: nothing is read


def test_one_storage_claimed_over_and_over(tmp_path: Path) -> None:
    body = Pickle().op(b"}(")
    for index in range(300):
        body.text(f"t{index}").tensor("ByteStorage", "0", 1 << 20, (1 << 20,))
    refused(pth(tmp_path / "x.pth", body.op(b"u").done(), bytes(1 << 20)), "over and over")


def test_pickle_bombs_end_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pickle_reader, "MAX_STEPS", 200_000)
    monkeypatch.setattr(pickle_reader, "MAX_CONTAINERS", 20_000)
    monkeypatch.setattr(pickle_reader, "MAX_MEMO", 20_000)
    nest = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(100))
    bombs = {
        "nothing but lists": b"\x80\x02" + b"]" * 100_000 + b".",
        "nothing but marks": b"\x80\x02" + b"(" * 300_000 + b".",
        "the same value again and again": b"\x80\x02}q\0" + b"h\0" * 250_000 + b".",
        "a dict of itself": b"\x80\x02}q\0X\x01\0\0\0ah\0s.",
        "a list of itself": b"\x80\x02]q\0h\0a.",
        "a memo of everything": b"\x80\x04}" + b"\x94" * 30_000 + b".",
        "deep tuples": b"\x80\x02)" + b"\x85" * 19_000 + b".",
        "2^100 leaves": b"\x80\x02)q\0" + nest + b".",
        "2^100 leaves as key": b"\x80\x02})q\0" + nest + b"Ns.",
        "a long list made a dict again and again": b"\x80\x02ccollections\nOrderedDict\nq\0]q\x01("
        + b"K\x01K\x02\x86" * 9000
        + b"e"
        + b"h\0h\x01\x85R" * 1000
        + b".",
        "a float of a long": b"\x80\x02\x8a\x09" + b"\x7f" * 9 + b".",
    }
    for what, body in bombs.items():
        start = time.process_time()
        with pytest.raises(WorkerError):
            read_all(pth(tmp_path / "x.pth", body))
        assert time.process_time() - start < 10, what


def test_a_pickle_larger_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rwkvflow.worker.read.torch_file.pth.MAX_BYTES", 1000)
    refused(pth(tmp_path / "x.pth", good().done() + bytes(1000)), "no checkpoint's has more")
    monkeypatch.setattr(pickle_reader, "MAX_BYTES", 10)
    with pytest.raises(WorkerError, match="more than any checkpoint"):
        PickleReader(good().done(), "x.pth").load()


OPCODES = [bytes([code]) for code in b"\x80\x95()\x85\x86\x87t}]aesuX\x8c\x8dBCJKM\x8aGN\x88\x89c\x93QRbqr\x94hj.02"]


@given(st.lists(st.one_of(st.sampled_from(OPCODES), st.binary(max_size=3)), max_size=60).map(b"".join))
@example(b"(t.")
@settings(max_examples=1000)
def test_a_soup_of_opcodes(soup: bytes) -> None:
    start = b"\x80\x02" + Pickle().text("a").tensor("FloatStorage", "0", 4, (2, 2)).out[2:]
    for body in (soup, bytes(start) + soup):
        with contextlib.suppress(WorkerError):
            PickleReader(body, "x.pth").load()


# ---- damage


@pytest.fixture(params=[".pth", ".safetensors"])
def small(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / f"small{request.param}"
    writer = checkpoints.write_pth if path.suffix == ".pth" else checkpoints.write_safetensors
    writer(path, [array_entry("emb.weight", np.ones((5, 3), "<f4")), array_entry("b", np.arange(4, dtype="<f2"))])
    read_all(path)
    return path


def test_every_truncation(small: Path) -> None:
    whole = small.read_bytes()
    for length in range(len(whole)):
        os.truncate(small, length)
        with pytest.raises(WorkerError, match=r"small\."):
            read_all(small)
        small.write_bytes(whole)


def test_a_truncated_file_says_so(tmp_path: Path) -> None:
    path = checkpoints.make(tmp_path / "cut.pth", version="4", width=64, vocab=50, layers=1)
    os.truncate(path, path.stat().st_size * 2 // 3)
    refused(path, "cut short", "Download or copy the file again")
    path = checkpoints.make(tmp_path / "cut.safetensors", version="4", width=64, vocab=50, layers=1)
    os.truncate(path, path.stat().st_size * 2 // 3)
    refused(path, "Download or copy the file again")


@FILES
@given(st.data())
def test_flipped_bytes(small: Path, data: st.DataObject) -> None:
    changed = flipped(small, data, "flipped" + small.suffix)
    outcome = error_of(changed)
    assert outcome is None or changed.name in outcome


@FILES
@given(st.data())
def test_flipped_bytes_under_a_right_checksum(tmp_path: Path, data: st.DataObject) -> None:
    body = bytearray(good().done())
    for _ in range(data.draw(st.integers(1, 2))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    outcome = error_of(pth(tmp_path / "x.pth", bytes(body)))
    assert outcome is None or "x.pth" in outcome


def test_a_flipped_bit_in_pickle_and_data_is_told(tmp_path: Path) -> None:
    path = pth(tmp_path / "x.pth", good().done(), bytes(range(16)))
    raw = path.read_bytes()
    at = raw.index(b"emb.weight")
    path.write_bytes(raw[:at] + b"f" + raw[at + 1 :])
    refused(path, "data.pkl", "checksum")
    at = raw.index(bytes(range(16)))
    path.write_bytes(raw[:at] + b"\x80" + raw[at + 1 :])
    with (
        open_checkpoint(path) as checkpoint,
        pytest.raises(WorkerError, match=r"'x/data/0' do not match their checksum"),
    ):
        checkpoint.verify()


# ---- zip files that lie


def test_byte_order(tmp_path: Path) -> None:
    read_all(pth(tmp_path / "x.pth", good().done(), byteorder=b"little"))
    refused(pth(tmp_path / "x.pth", good().done(), byteorder=b"big"), "'big'", "little-endian machine")
    refused(pth(tmp_path / "x.pth", good().done(), byteorder=b""), "byte order")


def test_compressed_records(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    for packed in ("data.pkl", "data/0"):
        with zipfile.ZipFile(path, "w") as archive:
            for name, body in (("data.pkl", good().done()), ("data/0", bytes(16))):
                archive.writestr(f"x/{name}", body, zipfile.ZIP_DEFLATED if name == packed else zipfile.ZIP_STORED)
        refused(path, f"'x/{packed}' is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_stand_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for body in (good().done(), b"\x80\x02}."):
            archive.writestr("x/data.pkl", body)
    refused(path, "two records are called 'x/data.pkl'")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", good().done())
        archive.writestr("y/data.pkl", good().done())
    refused(path, "2 records */data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    refused(path, "not one that torch.save wrote")


def test_records_that_overlap_or_leave_the_file(tmp_path: Path) -> None:
    path = pth(tmp_path / "x.pth", good().done())
    raw = bytearray(path.read_bytes())
    first = raw.index(b"PK\1\2")
    second = raw.index(b"PK\1\2", first + 4)

    def patched(offset: int, layout: str, *values: int) -> Path:
        copy = bytearray(raw)
        struct.pack_into(layout, copy, offset, *values)
        path.write_bytes(copy)
        return path

    pickle_size = struct.unpack_from("<I", raw, first + 24)[0]
    refused(patched(second + 20, "<II", 1 << 20, 1 << 20), "lies outside the file")
    refused(patched(second + 20, "<II", 16, 17), "two sizes")
    refused(patched(first + 20, "<II", pickle_size + 40, pickle_size + 40), "overlaps")
    refused(patched(second + 42, "<I", 0), "disagree")
    refused(patched(second + 42, "<I", 0xFFFFFFF0), "lies outside the file")
    refused(patched(second + 42, "<I", 0xFFFFFFFF), "64-bit size is missing")
    refused(patched(second + 8, "<H", 1), "encrypted")
    end = raw.index(b"PK\5\6")
    refused(patched(end + 10, "<H", 3), "split over several")
    refused(patched(end + 8, "<HH", 3, 3), "lists 2 records and claims 3")
    refused(patched(end + 12, "<I", 0x7FFFFFFF), "any checkpoint's")
    refused(patched(end + 16, "<I", 5), "not where it should be")


def test_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 64-bit forms, which zipfile writes for any file when its limit is lowered."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = tmp_path / "x.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, body in (("x/data.pkl", good().done()), ("x/data/0", bytes(range(16)))):
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as record:
                record.write(body)
    raw = path.read_bytes()
    assert b"PK\6\6" in raw
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("emb.weight").tobytes() == bytes(range(16))
    at = raw.index(b"PK\6\7") + 8
    path.write_bytes(raw[:at] + b"\xff" * 8 + raw[at + 8 :])
    refused(path, "64-bit directory")


# ---- files of other kinds


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b"PK", "neither"),
        (b"\0" * 100, "neither"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"GGUF" + bytes(100), "broken GGUF file"),
        (b"fmgg" + bytes(100), "broken ggml file: its version is 0"),
        *((pickle.dumps({"a": 1}, protocol), "a bare pickle, which is no file") for protocol in range(6)),
        (pickle.dumps({"a": np.ones(2)}, 4), "a bare pickle of numpy arrays"),
        (b"\x93NUMPY\1\0", "a single array of numpy"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "torch.save(torch.load("),
        (b"model.pth".ljust(257, b"\0") + b"ustar", "a tar archive, not a checkpoint"),
    ],
)
def test_other_files(tmp_path: Path, body: bytes, words: str) -> None:
    (tmp_path / "x.pth").write_bytes(body)
    refused(tmp_path / "x.pth", words)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path, "a folder without a model"),
        (tmp_path / "pipe", "not a plain"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(WorkerError, match=words):
            open_checkpoint(path)


def test_what_is_no_dict_of_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    refused(pth(path, Pickle().tensor("FloatStorage", "0", 4, (2, 2)).done()), "a single tensor", "state_dict")
    refused(pth(path, b"\x80\x02]."), "a list")
    refused(pth(path, Pickle().op(b"}(").text("epoch").integer(3).op(b"u").done()), "its keys are 'epoch'")
    loop = Pickle().op(b"}q\0").text("model").op(b"h\0s").done()
    refused(pth(path, loop), "nested too deep")
    refused(pth(path, Pickle().op(b"}(").text("a\n").tensor("FloatStorage", "0", 4, (4,)).op(b"u").done()), r"'a\n'")


# ---- safetensors headers


def safetensors(path: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: object = 0, end: object = 8, shape: object = (2,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(0, 4, [1]), "b": entry(2, 6, [1])}, "overlaps"),
        ({"a": entry(4, 8, [1])}, "leaves a gap"),
        ({"a": entry(0, 4, [1])}, "should have"),
        ({"a": entry(0, 80, [20])}, "should have"),
        ({"a": entry(8, 0)}, "does not fit"),
        ({"a": entry(0, 8, [3])}, "does not fit"),
        ({"a": entry(0, 8, [2**62, 2**62])}, "does not fit"),
        ({"a": entry(0, 8, [-2])}, "odd shape"),
        ({"a": entry(0, 8, [2.0])}, "odd shape"),
        ({"a": entry(0, 8, [True, 2])}, "odd shape"),
        ({"a": entry(0, 8, "2")}, "odd shape"),
        ({"a": entry(0, 8, [1] * 40)}, "odd shape"),
        ({"a": entry(0, 8.0)}, "odd shape"),
        ({"a": entry(dtype="F31")}, "F31"),
        ({"a": entry(dtype=["F32"])}, "unknown"),
        ({"a": {"dtype": "F32"}}, "not described"),
        ({"a": 3}, "not described"),
        ({"": entry()}, "called ''"),
        ({"\x1b": entry()}, "called"),
        ({"__metadata__": {"a": 1}, "a": entry()}, "__metadata__"),
        ({"__metadata__": [], "a": entry()}, "__metadata__"),
        (b'{"a":1,"a":2}', "stands twice"),
        (b"[]", "neither"),
        (b"{" + b"[" * 100, "not JSON"),
        (b'{"a":' * 50_000, "not JSON"),
        (b'{"\xff":1}', "not JSON"),
    ],
)
def test_safetensors_headers(tmp_path: Path, header: object, words: str) -> None:
    refused(safetensors(tmp_path / "x.safetensors", header), words)


@pytest.mark.parametrize("length", [10 * 2**30, 2**64 - 1, 33 << 20, 1000, 3])
def test_safetensors_header_lengths(tmp_path: Path, length: int) -> None:
    refused(safetensors(tmp_path / "x.safetensors", {"a": entry()}, length=length))


def test_a_file_that_shrinks_while_it_is_read(small: Path) -> None:
    with open_checkpoint(small) as checkpoint:
        os.truncate(small, 4)
        with pytest.raises(WorkerError, match="became shorter"):
            checkpoint.read("emb.weight")


@pytest.mark.parametrize("length", [0x3C3C, 0x280, 0x4B50, 0x0A3C])
def test_safetensors_whose_length_looks_like_another_format(tmp_path: Path, length: int) -> None:
    text = json.dumps({"a": entry()}).encode()
    path = safetensors(tmp_path / "x.safetensors", text + b" " * (length - len(text)))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.kind == "safetensors"
