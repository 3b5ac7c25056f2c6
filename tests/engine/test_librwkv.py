"""librwkv against the numpy reference, the fixtures, and itself: kernels, threads, blocks of tokens, every type."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rwkvflow.engine.binding import Library, Model
from rwkvflow.engine.errors import EngineError
from rwkvflow.engine.threads import default_threads
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.model.versions import VERSION_SPECS, VERSIONS
from rwkvflow.worker.read.ggml_file import GgmlTensor, read_ggml_index
from rwkvflow.worker.read.ggml_source import version_of
from rwkvflow.worker.read.open import open_checkpoint
from rwkvflow.worker.reference import logits as reference_logits
from tests.engine import dequantized, encoder, librwkv
from tests.helpers import checkpoints

TYPES = ("f32", "f16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k")
# 120 columns in heads of 40 leave rests everywhere; rows of the quantized types must be whole blocks.
ODD: dict[str, Any] = {"layers": 3, "width": 120, "vocab": 101, "head_size": 40}
EVEN: dict[str, Any] = {"layers": 3, "width": 128, "vocab": 101, "head_size": 32}
TOKENS = [int(t) for t in np.random.default_rng(3).integers(0, 101, 64)]


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config)


@pytest.fixture(scope="session")
def library(built: Path) -> Library:
    return Library(next(path for path in built.glob("librwkv.*") if path.suffix in (".so", ".dylib")))


@pytest.fixture(scope="session")
def models(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """models(version, type, odd) -> (file of that type, checkpoint); made once."""
    root = tmp_path_factory.mktemp("models")

    def get(version: str, kind: str, odd: bool = False) -> tuple[Path, Path]:
        name = f"v{version}-{'odd' if odd else 'even'}"
        source = root / f"{name}.pth"
        if not source.exists():
            checkpoints.make(source, version, **(ODD if odd else EVEN))
        target = root / f"{name}-{kind}.bin"
        if not target.exists():
            (outcome,) = convert(source, library.path, [ConversionJob("x", f"ggml-{kind}", target)])
            assert outcome.failure is None, outcome.failure
        return target, source

    return get


def run_tool(built: Path, path: Path, tokens: Sequence[int], out: Path, *options: str, kernels: str = "") -> np.ndarray:
    """Logits by the rwkv tool, in a process of its own, where kernels can be chosen."""
    command = [built / "rwkv", "eval", path, *map(str, tokens), "--logits", out, *options]
    subprocess.run(list(map(str, command)), check=True, env={**os.environ, "RWKV_KERNELS": kernels})
    return np.fromfile(out, "<f4")


@pytest.mark.parametrize("odd", [False, True], ids=["even", "odd"])
@pytest.mark.parametrize("version", VERSIONS)
def test_f32_is_the_reference(version: str, odd: bool, models: Any, library: Library) -> None:
    path, source = models(version, "f32", odd)
    with open_checkpoint(source) as checkpoint:
        wanted = reference_logits(checkpoint, TOKENS)
    with Model(path, library, threads=2) as model:
        assert model.version == version
        state = None
        got = []
        for token in TOKENS:
            logits, state = model.eval(token, state)
            got.append(logits)
    assert np.abs(np.stack(got) - wanted).max() < 5e-5
    assert np.abs(wanted).max() > 0.1  # a model that says nothing would agree with anything


@pytest.mark.parametrize("name", ["4v0-660K", "5v2-730K", "7v0-834K"])
def test_fixture_logits(name: str, fixtures: Path, library: Library) -> None:
    wanted = np.fromfile(fixtures / f"expected-logits-{name}.bin", "<f4")
    eps = 1e-5 if name.startswith("5") else None
    with Model(fixtures / f"tiny-rwkv-{name}-FP32.bin", library, group_norm_eps=eps) as model:
        logits, _ = model.eval_sequence(list(b'"in'))
    assert np.abs(logits - wanted).sum() < 0.001


@pytest.mark.parametrize("kind", TYPES[1:])
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_a_type_is_what_its_weights_are_in_f32(
    version: str, kind: str, models: Any, library: Library, tmp_path: Path
) -> None:
    path, _ = models(version, kind)
    with Model(dequantized.write(path, tmp_path / "f32.bin"), library) as model:
        wanted, _ = model.eval_sequence(TOKENS)
    with Model(path, library) as model:
        got, _ = model.eval_sequence(TOKENS)
    # F16 is exact; the inputs of quantized matrices are rounded to 8 bits, which 64 tokens of a random model amplify.
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error == 0 if kind == "f16" else 0 < error < 0.04


def test_kernels_multiply_right(built: Path) -> None:
    done = subprocess.run([built / "rwkv-check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split("ok ")[1]) > 1000
    # Where vectors are as wide as those around AMX's tiles, the kernels for it ran over the model of these.
    assert ("amx-model: bits" in done.stdout) == ("avx512: bits" in done.stdout)


def test_kernels_that_do_not_run_here_are_told_and_not_taken(built: Path) -> None:
    told = subprocess.run([built / "rwkv", "info"], capture_output=True, text=True, check=True).stdout
    here = dict(word.split("=") for word in told.splitlines()[-1].split())
    for kernels, label in {"avx512": "AVX512", "amx": "AMX", "i8mm": "I8MM"}.items():
        used = librwkv.kernels_used(kernels, built / "rwkv")
        assert used == (kernels if here[label] == "1" else here["KERNELS"])


def test_the_number_of_threads_follows_the_processors_that_a_process_may_use(built: Path, library: Library) -> None:
    def told(limit: set[int]) -> dict[str, str]:
        done = subprocess.run(
            [built / "rwkv", "info"], capture_output=True, text=True, preexec_fn=lambda: os.sched_setaffinity(0, limit)
        )
        return dict(word.split("=") for word in done.stdout.splitlines()[-2].split())

    usable = os.sched_getaffinity(0)
    assert told(usable)["THREADS"] == str(default_threads(library))
    assert int(told(usable)["CPUS"]) == len(usable)
    alone = told({max(usable)})
    assert (alone["CPUS"], alone["CORES"], alone["THREADS"], alone["PINNED"]) == ("1", "1", "1", "no")


# The generic kernels differ from all others in the last bits, which 37 tokens of a random model amplify: by steps where
# inputs have 8 bits. (For a set that the machine lacks the best it has is taken: test_avx512_emulated.py runs those.)
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_kernels_agree_and_threads_give_the_same_bits(
    version: str, kind: str, models: Any, built: Path, tmp_path: Path
) -> None:
    path, _ = models(version, kind)
    wanted = run_tool(built, path, TOKENS[:37], tmp_path / "generic", kernels="generic")
    others = set()
    for kernels in librwkv.kernel_sets(built / "rwkv")[1:]:
        one = run_tool(built, path, TOKENS[:37], tmp_path / "one", kernels=kernels)
        got = run_tool(built, path, TOKENS[:37], tmp_path / kernels, "--threads", "3", kernels=kernels)
        assert got.tobytes() == one.tobytes(), kernels
        error = np.abs(got - wanted).max() / np.abs(wanted).max()
        assert error < (2e-5 if kind in ("f32", "f16") else 0.04), kernels
        others.add(got.tobytes())
    assert len(others) == 1


@pytest.mark.parametrize("version", VERSIONS)
def test_odd_sizes_in_all_kernels_and_thread_counts(version: str, models: Any, built: Path, tmp_path: Path) -> None:
    path, _ = models(version, "f16", True)
    for kernels in librwkv.kernel_sets(built / "rwkv"):
        one = run_tool(built, path, TOKENS[:5], tmp_path / kernels, kernels=kernels)
        if kernels == "generic":
            wanted = one
        assert np.abs(one - wanted).max() / np.abs(wanted).max() < 2e-5, kernels
        for threads in ("2", "5"):
            got = run_tool(built, path, TOKENS[:5], tmp_path / kernels, "--threads", threads, kernels=kernels)
            assert got.tobytes() == one.tobytes(), (threads, kernels)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sequence_is_its_tokens_one_by_one(version: str, models: Any, library: Library) -> None:
    with Model(models(version, "q5_1")[0], library, threads=2) as model:
        start = model.init_state()
        state = start.copy()
        for token in TOKENS:
            logits, state = model.eval(token, state, out=state)
        for cut in (1, 31, 32, 33, 63):
            _, half = model.eval_sequence(TOKENS[:cut])
            kept = half.copy()
            again, after = model.eval_sequence(TOKENS[cut:], half)
            assert again.tobytes() == logits.tobytes()
            assert after.tobytes() == state.tobytes()
            assert half.tobytes() == kept.tobytes()  # what goes in is left alone
        again, _ = model.eval_sequence(TOKENS, start)
        assert again.tobytes() == logits.tobytes()


@pytest.mark.parametrize("kind", ["f32", "f16", "q4_0", "q5_1", "q8_0"])
@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_is_its_sequences_one_by_one(version: str, kind: str, models: Any, library: Library) -> None:
    path, _ = models(version, kind)
    steps, count = 3, 134  # more than are worked on together
    tokens = np.random.default_rng(7).integers(0, 101, (steps, count))
    with Model(path, library, threads=1) as model:
        states = np.stack([model.eval(int(token))[1] for token in tokens[0]])
        singles = [model.eval(int(token), state) for token, state in zip(tokens[1], states, strict=True)]
        wanted = np.stack([logits for logits, _ in singles])
        for threads in (1, 3):
            with model.clone(threads) as other:
                logits, kept = other.eval_batch(tokens[0])
                assert np.asarray(kept).tobytes() == states.tobytes()
                logits, kept = other.eval_batch(tokens[1], states)
                assert logits.tobytes() == wanted.tobytes()
                assert np.asarray(kept).tobytes() == np.stack([state for _, state in singles]).tobytes()
                for size in (1, 2, 5, 128, 129):
                    part, _ = other.eval_batch(tokens[1][:size], states[:size])
                    assert part.tobytes() == wanted[:size].tobytes()
    assert len({row.tobytes() for row in wanted}) > count // 2  # a model that says nothing would pass as well


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
@pytest.mark.parametrize("version", VERSIONS)
def test_sequences_are_their_tokens_one_by_one(version: str, kind: str, models: Any, library: Library) -> None:
    """After every token: its logits, its state where one is wanted, and a hidden vector that the logits follow from."""
    random = np.random.default_rng(9)
    sequences = [random.integers(0, 101, length).tolist() for length in (3, 1, 134, 2, 5)]  # a block holds 128 tokens
    with Model(models(version, kind)[0], library, threads=1) as model:
        starts = [None, model.eval(3)[1], None, model.eval(4)[1], model.eval(5)[1]]
        single = []
        for tokens, state in zip(sequences, starts, strict=True):
            for token in tokens:
                logits, state = model.eval(token, state)
                single.append((logits.tobytes(), state.tobytes()))
        count = len(single)
        for threads, every in ((1, 1), (3, 1), (2, 3)):
            with model.clone(threads) as other:
                out = [np.full(model.state_len, np.nan, np.float32) if i % every == 0 else None for i in range(count)]
                wanted = [i for i in range(count - 1, -1, -1) if i % every == 0]
                logits, hidden = other.eval_sequences(sequences, starts, out, wanted, wanted)
                assert [row.tobytes() for row in logits] == [single[i][0] for i in wanted]
                assert [state.tobytes() for state in out if state is not None] == [s for _, s in single[::every]]
                assert np.isfinite(hidden).all()
                assert len({row.tobytes() for row in hidden}) == len({row.tobytes() for row in logits})
        # Over the states that they began from.
        own = [np.empty(model.state_len, np.float32) if s is None else s.copy() for s in starts]
        ends = (np.cumsum([len(tokens) for tokens in sequences]) - 1).tolist()
        places = [own[ends.index(i)] if i in ends else None for i in range(count)]
        begun = [None if s is None else mine for s, mine in zip(starts, own, strict=True)]
        logits, hidden = model.eval_sequences(sequences, begun, places, ends)
        assert [row.tobytes() for row in logits] == [single[i][0] for i in ends]
        assert [state.tobytes() for state in own] == [single[i][1] for i in ends]
        assert hidden.shape == (0, model.n_embd)


def test_hidden_vectors_are_what_the_logits_are_made_from(models: Any, library: Library) -> None:
    """Differences of logits are the head's rows times differences of hidden vectors: a linear map fits all of them."""
    tokens = np.random.default_rng(3).integers(0, 101, 400).tolist()
    with Model(models("6", "f32")[0], library) as model:
        logits, hidden = model.eval_sequences([tokens], [None], [None] * 400, list(range(400)), list(range(400)))
        head, *_ = np.linalg.lstsq(hidden.astype(np.float64), logits.astype(np.float64), rcond=None)
        assert np.abs(hidden @ head - logits).max() < 1e-4 * np.abs(logits).max()


def test_sequences_that_do_not_go_together_are_refused(models: Any, library: Library) -> None:
    with Model(models("4", "f32")[0], library) as model:
        state = model.eval(1)[1]
        before = state.copy()
        other = np.empty_like(state)
        for sequences, states, out, wanted in (
            ([], [], [], []),
            ([[1], []], [None, None], [None], []),
            ([[101]], [None], [None], []),
            ([[1, 2]], [None], [None], []),
            ([[1, 2]], [None], [other, other], []),
            ([[1], [2]], [state, None], [None, state], []),
            ([[1], [2]], [None], [None, None], []),
            ([[1]], [None], [None], [1]),
            ([[1]], [None], [None], [0, 0]),
        ):
            with pytest.raises(EngineError):
                model.eval_sequences(sequences, states, out, wanted)
        assert state.tobytes() == before.tobytes()


def test_a_batch_of_states_from_here_and_there(models: Any, library: Library) -> None:
    with Model(models("4", "q4_1")[0], library, threads=2) as model:
        _, read = model.eval_sequence(TOKENS[:9])
        single, after = model.eval(5, read)
        fresh, _ = model.eval(5)
        before = read.copy()
        # One state for two sequences and none for the third; the second's new state is not kept.
        new = [np.empty(model.state_len, np.float32), None, np.empty(model.state_len, np.float32)]
        logits, kept = model.eval_batch([5, 5, 5], [read, read, None], new, wanted=[2, 0])
        assert kept is new
        assert logits.tobytes() == np.stack([fresh, single]).tobytes()
        assert new[0] is not None
        assert new[0].tobytes() == after.tobytes()
        assert read.tobytes() == before.tobytes()
        # Over the old ones, in every second row of a larger array.
        rows = np.stack([read, read * 0 + 7, read, read * 0 + 7])
        logits, kept = model.eval_batch([5, 5], rows[::2], rows[::2])
        assert logits.tobytes() == np.stack([single, single]).tobytes()
        assert rows[::2].tobytes() == np.stack([after, after]).tobytes()
        assert (rows[1::2] == 7).all()
        none, _ = model.eval_batch([5, 5], wanted=[])
        assert none.shape == (0, 101)
        locked = np.empty((2, model.state_len), np.float32)
        locked.flags.writeable = False
        shifted = np.empty(model.state_len + 8, np.float32)
        calls: tuple[Callable[[], object], ...] = (
            lambda: model.eval_batch([]),
            lambda: model.eval_batch([101]),
            lambda: model.eval_batch([1, 2], rows),
            lambda: model.eval_batch([1, 2], rows.astype(np.float64)),
            lambda: model.eval_batch([1, 2], out=locked),
            lambda: model.eval_batch([1, 2], out=[read, read]),
            lambda: model.eval_batch([1, 2], [read, after], [after, None]),
            lambda: model.eval_batch([1, 2], out=[shifted[8:], shifted[:-8]]),
            lambda: model.eval_batch([1, 2], [shifted[8:], None], [shifted[:-8], None]),
            lambda: model.eval_batch([1, 2], wanted=[2]),
            lambda: model.eval_batch([1, 2], wanted=[1, 1]),
        )
        for call in calls:
            with pytest.raises(EngineError):
                call()
        assert read.tobytes() == before.tobytes()


def test_options_are_kept_and_told(models: Any, library: Library) -> None:
    with Model(models("6", "f16")[0], library) as model:
        assert {name: pytest.approx(model.option(name)) for name in ("group_norm_eps", "layer_norm_eps")} == {
            "group_norm_eps": 64e-5,
            "layer_norm_eps": 1e-5,
        }
        wanted, _ = model.eval_sequence(TOKENS)
        model.set_option("layer_norm_eps", 1e-3)
        assert model.option("layer_norm_eps") == pytest.approx(1e-3)
        with model.clone() as other:
            assert other.option("layer_norm_eps") == model.option("layer_norm_eps")
            got, _ = other.eval_sequence(TOKENS)
        assert got.tobytes() != wanted.tobytes()
        for call in (lambda: model.option("speed"), lambda: model.set_option("layer_norm_eps", 2)):
            with pytest.raises(EngineError):
                call()


def test_clones_share_weights_and_options(models: Any, library: Library) -> None:
    with Model(models("6", "q4_0")[0], library, group_norm_eps=1e-5) as model:
        wanted, _ = model.eval_sequence(TOKENS)
        clone = model.clone(threads=2)
    got, _ = clone.eval_sequence(TOKENS)  # the first is closed
    clone.set_option("group_norm_eps", 64e-5)
    other, _ = clone.eval_sequence(TOKENS)
    clone.close()
    assert got.tobytes() == wanted.tobytes()
    assert other.tobytes() != wanted.tobytes()


def test_the_binding_refuses_what_makes_no_sense(models: Any, library: Library, tmp_path: Path) -> None:
    path, _ = models("7", "f32")
    with pytest.raises(EngineError, match=r"cannot be opened: cannot open .*: No such file") as error:
        Model(tmp_path / "absent.bin", library)
    assert error.value.flags == 2 << 8 | 2
    (tmp_path / "libnothing.so").write_bytes(b"no library")
    with pytest.raises(EngineError, match=r"libnothing\.so cannot be used"):
        Library(tmp_path / "libnothing.so")
    with Model(path, library) as model:
        calls: tuple[Callable[[], object], ...] = (
            lambda: model.eval(101),
            lambda: model.eval(-1),
            lambda: model.eval_sequence([]),
            lambda: model.eval_sequence([0, 101]),
            lambda: model.eval(0, np.zeros(model.state_len - 1, np.float32)),
            lambda: model.eval(0, np.zeros(model.state_len, np.float64)),
            lambda: model.eval(0, np.zeros(2 * model.state_len, np.float32)[::2]),
            lambda: model.set_option("group_norm_eps", 0),
            lambda: model.set_option("speed", 11),
        )
        for call in calls:
            with pytest.raises(EngineError):
                call()
    with pytest.raises(EngineError, match="closed"):
        model.eval(0)


def test_the_tool(models: Any, built: Path, library: Library, tmp_path: Path) -> None:
    path, _ = models("7", "f16")
    state, logits = tmp_path / "state", tmp_path / "logits"
    run_tool(built, path, TOKENS[:3], logits, "--state-out", str(state))
    got = run_tool(built, path, TOKENS[3:9], logits, "--state-in", str(state), "--state-out", str(state))
    with Model(path, library) as model:
        wanted, after = model.eval_sequence(TOKENS[:9])
    assert got.tobytes() == wanted.tobytes()
    assert np.fromfile(state, "<f4").tobytes() == after.tobytes()

    def tool(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(built / "rwkv"), *map(str, arguments)], capture_output=True, text=True)

    shown = tool("inspect", path)
    assert shown.returncode == 0
    assert "file version 101, F16, RWKV 7" in shown.stdout
    assert "blocks.2.ffn.value.weight" in shown.stdout
    assert "KERNELS=" in tool("info").stdout
    assert tool("--help").returncode == 0
    assert len(tool("eval", path, 1).stdout.splitlines()) == 5
    figures = json.loads(tool("bench", path, "--json", "--threads", 1, "--prefill", 8).stdout)["models"][0]
    assert figures["token_bytes"] < figures["file_bytes"] < path.stat().st_size
    ms, rate = figures["ms_per_token"], figures["tokens_per_second"]
    assert abs(ms * rate - 1000) <= 1.01 * (5e-5 * rate + 5e-4 * ms)  # printed with four and three digits
    assert figures["bandwidth_share"] > 0
    # A tiny model's prompt is far from what multipliers can do, and F16's are floats.
    assert 0 < figures["prefill_share"] < 1
    assert figures["float_products_per_second"] > 1e8
    assert figures["byte_products_per_second"] == 0
    assert len(figures["prefill_ms"]) == 4
    assert 8e3 / min(figures["prefill_ms"]) == pytest.approx(figures["prefill_tokens_per_second"], rel=0.02)
    quantized = tmp_path / "q"
    assert tool("quantize", path, quantized, "Q5_1").returncode == 0
    assert quantized.read_bytes() == models("7", "q5_1")[0].read_bytes()
    state.write_bytes(state.read_bytes()[:-4])
    wrong: list[tuple[object, ...]] = [
        (),
        ("sing",),
        ("eval", path),
        ("eval", path, "x"),
        ("eval", path, 1, "--threads", 0),
        ("eval", path, 1, "--loud", 1),
        ("eval", path, 1, "--logits"),
        ("eval", path, 101),
        ("eval", path, 1, "--state-in", state),
        ("eval", tmp_path / "absent", 1),
        ("quantize", quantized, tmp_path / "r", "Q4_0"),
        ("inspect", state),
        ("bench",),
        ("bench", path, "--threads", 0),
        ("bench", path, "--prefill"),
        ("bench", tmp_path / "absent", "--json"),
    ]
    for arguments in wrong:
        done = tool(*arguments)
        assert done.returncode in (1, 2), arguments
        assert done.stderr, arguments


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", ["f32", "f16"])
def test_quantizing_a_file_is_quantizing_the_checkpoint(
    version: str, source: str, models: Any, library: Library, tmp_path: Path
) -> None:
    suffix = "-from-f32" if source == "f32" else ""
    kinds = ["q4_1", "q4_k", "q5_k", "q8_0"]
    for kind in kinds:
        library.quantize(models(version, source)[0], tmp_path / kind, kind.upper())
        assert (tmp_path / kind).read_bytes() == models(version, kind + suffix)[0].read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == kinds


@pytest.mark.skipif(not Path("/usr/bin/readelf").exists(), reason="readelf is not here")
def test_the_library_needs_libc_only(library: Library) -> None:
    text = subprocess.run(["readelf", "-d", str(library.path)], capture_output=True, text=True, check=True).stdout
    needed = {line.split("[")[1].rstrip("]") for line in text.splitlines() if "(NEEDED)" in line}
    assert needed <= {"libc.so.6", "libpthread.so.0", "libm.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


def test_exp_tanh_and_logistic_are_accurate(tmp_path: Path) -> None:
    name = encoder.any_compiler()
    program, source = tmp_path / "math_check", Path(__file__).parent / "math_check.cc"
    flags = ["-std=gnu++20", "-O2", "-ffp-contract=off", "-Wno-psabi", f"-I{librwkv.ENGINE / 'src'}", "-lm"]
    command = [*encoder.compilers()[name], source, "-o", program, *flags, *(["-nostdlib++"] if name == "zig" else [])]
    subprocess.run(list(map(str, command)), check=True)
    exp, tanh, logistic, wrong = subprocess.run([program], capture_output=True, check=True).stdout.split()
    assert (float(exp) < 1.1, float(tanh) < 1.5, float(logistic) < 2.5, int(wrong)) == (True, True, True, 0)


def test_versions_are_told_as_the_tables_tell_them(library: Library, models: Any, tmp_path: Path) -> None:
    """What the engine makes of a file with one tensor less, too, is what its names and shapes say by the tables."""
    told = []
    for version in VERSIONS:
        path, _ = models(version, "f32")
        raw, index = path.read_bytes(), read_ggml_index(path)
        marks = {f"blocks.0.{name}" for spec in VERSION_SPECS for name in (*spec.has, *spec.lacks)}
        for left_out in (None, *sorted(marks & index.tensors.keys())):
            names = list(index.tensors.values())
            kept = [tensor for tensor in names if tensor.name != left_out]
            start = min(tensor.offset - header_bytes(tensor) for tensor in names)
            parts = [raw[:start]]
            parts += [raw[tensor.offset - header_bytes(tensor) : tensor.offset + tensor.nbytes] for tensor in kept]
            changed = tmp_path / "changed.bin"
            changed.write_bytes(b"".join(parts))
            expected = version_of({tensor.name: tensor.shape for tensor in kept})
            try:
                with Model(changed, library=library.path) as model:
                    assert model.version == expected, (version, left_out)
                    told.append((version, left_out))
            except EngineError:
                pass  # a tensor that the version needs is gone
    assert {version for version, left_out in told if left_out is None} == set(VERSIONS)


def header_bytes(tensor: GgmlTensor) -> int:
    """Of a tensor in a file: dims, length of the name, type, each dim, the name."""
    return 4 * (3 + len(tensor.shape)) + len(tensor.name.encode())
