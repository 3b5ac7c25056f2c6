"""`rwkv generate`, without Python: the same text as Session's for the same seed, settings, vocabulary and states."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rwkvflow.engine import EngineError, Model, Tokenizer
from rwkvflow.engine.sampling import Sampling
from rwkvflow.engine.session import Session, generate
from rwkvflow.engine.states import read_state, write_state
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.model.tokenizers import Bytes, Json, World, world_vocabulary
from tests.engine import librwkv, tokenizer_files
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once there was "


@pytest.fixture(scope="session")
def built(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config)


@pytest.fixture(scope="session")
def models(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """demo: writes English, byte by byte. noise: any byte. world: any token of 65536."""
    root = tmp_path_factory.mktemp("models")
    sizes: dict[str, Any] = {"layers": 1, "width": 32, "head_size": 16}
    sources = {
        "demo": ROOT / "recipes" / "demo" / "rwkv7-demo.pth",
        "noise": checkpoints.make(root / "noise.pth", "6", vocab=256, **sizes),
        "world": checkpoints.make(root / "world.pth", "7", vocab=65536, **sizes),
        "padded": checkpoints.make(root / "padded.pth", "7", vocab=400, **sizes),
    }
    made = {name: root / f"{name}.bin" for name in sources}
    for name, source in sources.items():
        (outcome,) = convert(source, built / "librwkv.so", [ConversionJob("x", "ggml-f16", made[name])])
        assert outcome.failure is None
    return made


def native(built: Path, *arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [built / "rwkv", "generate", *map(str, arguments)], input=stdin.encode(), capture_output=True, check=False
    )
    # Text mode would turn \r into \n.
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def options(s: Sampling, seed: int, count: int, stops: list[str]) -> list[str]:
    given_ = ["--temperature", s.temperature, "--top-p", s.top_p, "--top-k", s.top_k, "--seed", seed, "-n", count]
    given_ += ["--presence-penalty", s.presence, "--frequency-penalty", s.frequency, "--penalty-decay", s.decay]
    return [*map(str, given_), *(word for stop in stops for word in ("--stop", stop))]


def line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


SAMPLING = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.7, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 5, 100]),
    presence=st.sampled_from([0.0, 0.4, 20.0]),
    frequency=st.sampled_from([0.0, 0.4]),
    decay=st.sampled_from([0.0, 0.5, 0.996, 1.0]),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sampling=SAMPLING, seed=st.integers(0, 2**64 - 1))
def test_the_same_text(
    data: Any, sampling: Sampling, seed: int, built: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    which = data.draw(st.sampled_from(["demo", "noise"]))
    stops = data.draw(st.lists(st.sampled_from([". ", " the ", "e", "\ufffd\ufffd", "ing a"]), max_size=2))
    save = data.draw(st.booleans())
    with Model(models[which], built / "librwkv.so") as model:
        session = Session(model, Bytes(), sampling, seed)
        session.feed(PROMPT)
        text = "".join(session.generate(40, stops))
        if save:
            session.save(tmp_path / "python")
    more = ["--save-state", tmp_path / "native"] if save else []
    done = native(built, models[which], PROMPT, *options(sampling, seed, 40, stops), *more)
    assert (done.returncode, done.stdout) == (0, line(text)), done.stderr
    if save:
        assert (tmp_path / "native").read_bytes() == (tmp_path / "python").read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("pyrwkv_tokenizer") is None, reason="no World vocabulary is here")
@pytest.mark.parametrize(
    "prompt", ["The Eiffel tower is in", "漢字かな交じり文。\n\n\tπ ≠ 3", "𝄞 e\u0301\u0000\u0085 'x' \"y\" \\n"]
)
def test_the_world_vocabulary(prompt: str, built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    path = world_vocabulary()
    assert path is not None
    prompt = prompt.replace("\0", "")  # no argument can hold it
    with Model(models["world"], built / "librwkv.so") as model:
        session = Session(model, World(path), Sampling(top_p=1.0), 5)
        session.feed(prompt)
        text = "".join(session.generate(120))
    arguments = ["-n", "120", "--top-p", "1", "--seed", "5", "--vocab", path, "-v"]
    done = native(built, models["world"], prompt, *arguments)
    assert (done.returncode, done.stdout) == (0, line(text)), done.stderr
    assert f"read {session.evaluated - session.generated + 1} tokens" in done.stderr
    (tmp_path / "model.bin").symlink_to(models["world"])
    (tmp_path / path.name).symlink_to(path)
    assert native(built, tmp_path / "model.bin", prompt, *arguments[:-3]).stdout == line(text)


def noting(choose: Callable[[Any], int], chosen: list[int]) -> Callable[..., int]:
    """`choose`, with what it chose appended to `chosen`."""

    def choosing(logits: Any) -> int:
        chosen.append(choose(logits))
        return chosen[-1]

    return choosing


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sampling=SAMPLING, seed=st.integers(0, 2**64 - 1), kind=st.sampled_from(["world", "json"]))
def test_no_id_without_a_token(
    sampling: Sampling, seed: int, kind: str, built: Path, models: dict[str, Path], tmp_path: Path
) -> None:
    """Rows beyond the tokenizer's ids, and ids in between that have none: a random model likes them as much."""
    path = tmp_path / "vocabulary"
    text = tokenizer_files.bpe(60) if kind == "json" else tokenizer_files.world()
    if kind == "world":  # one a line: ids without a token in between
        text = "".join(row + "\n" for row in text.splitlines() if not 100 < int(row.split()[0]) < 140)
    path.write_text(text, encoding="utf-8")
    tokenizer = Json(path) if kind == "json" else World(path)
    ours = Tokenizer(path, built / "librwkv.so")
    assert set(ours.ids) - {0} == set(tokenizer.ids) - {0}
    # In one call, where the library has it: asking for each of World's takes longer than opening the model.
    assert ours._library.tells_ids
    one_by_one = Tokenizer(path, built / "librwkv.so")
    one_by_one._library.tells_ids = False
    assert one_by_one.ids == ours.ids == sorted(ours.ids)
    chosen: list[int] = []
    with Model(models["padded"], built / "librwkv.so") as model:
        assert len(tokenizer.ids) < model.n_vocab - 20
        for each in (tokenizer, ours):
            session = Session(model, each, sampling, seed)
            session.sampler.choose = noting(session.sampler.choose, chosen)  # type: ignore[method-assign]
            session.feed("The owl")
            written = "".join(session.generate(60))
            assert set(chosen) <= {0, *tokenizer.ids}
    done = native(built, models["padded"], "The owl", *options(sampling, seed, 60, []), "--vocab", path)
    assert (done.returncode, done.stdout) == (0, line(written)), done.stderr


def test_another_models_vocabulary_is_refused(built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "vocabulary"
    path.write_text(tokenizer_files.world(), encoding="utf-8")
    done = native(built, models["world"], PROMPT, "--vocab", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "a vocabulary of 65536: it is another model's" in done.stderr


def test_a_tokenizer_json(built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_files.bpe(60), encoding="utf-8")
    prompt = "The quiet owl didn't    find e\u0301 it"
    tokenizer = Json(path)
    with Model(models["padded"], built / "librwkv.so") as model:
        logits, _ = model.eval_sequence(tokenizer.encode(prompt))
    first = tokenizer.decode([int(logits[: tokenizer.size].argmax())])
    done = native(built, models["padded"], prompt, "-n", 1, "--temperature", 0, "--vocab", path, "-v")
    assert f"read {len(tokenizer.encode(prompt))} tokens" in done.stderr
    assert (done.returncode, done.stdout) == (0, line(first))
    done = native(built, models["demo"], prompt, "--vocab", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"token ids up to {tokenizer.size - 1}, the model a vocabulary of 256" in done.stderr


def test_states_go_both_ways(built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    cold = Sampling(temperature=0)
    with Model(models["demo"], built / "librwkv.so") as model:
        whole = "".join(generate(model, PROMPT, Bytes(), max_tokens=60, sampling=cold))
        first = native(
            built, models["demo"], PROMPT, "-n", 30, "--temperature", 0, "--save-state", tmp_path / "one"
        ).stdout
        session = Session(model, Bytes(), cold)
        session.load(tmp_path / "one")
        assert line(first[:-1] + "".join(session.generate(15))) == line(whole[:45])
        session.save(tmp_path / "two")
    last = native(built, models["demo"], "-n", 15, "--temperature", 0, "--state", tmp_path / "two").stdout
    assert last == line(whole[45:])
    with Model(models["noise"], built / "librwkv.so") as other, pytest.raises(EngineError):
        Session(other, Bytes()).load(tmp_path / "one")
    done = native(built, models["noise"], "--state", tmp_path / "one")
    assert (done.returncode, done.stdout) == (1, "")
    assert "a state of another model file" in done.stderr
    # Without logits, which C may leave out, there is nothing to choose from.
    with Model(models["demo"], built / "librwkv.so") as model:
        saved = read_state(tmp_path / "two", model.state_len, model.logits_len)
        assert saved.logits is not None
        write_state(tmp_path / "bare", replace(saved, logits=None))
        assert read_state(tmp_path / "bare", model.state_len, model.logits_len).state.tobytes() == saved.state.tobytes()
        with pytest.raises(EngineError, match="without the logits"):
            Session(model, Bytes()).load(tmp_path / "bare")
    done = native(built, models["demo"], "--state", tmp_path / "bare")
    assert (done.returncode, "without the logits" in done.stderr) == (1, True)


def test_damaged_states_are_refused(built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert native(built, models["demo"], PROMPT, "-n", 1, "--save-state", state).returncode == 0
    good = state.read_bytes()
    for bad in (
        b"",
        good[:50],
        good[:-1],
        good + b"x",
        good[:500] + bytes([good[500] ^ 1]) + good[501:],
        b"x" + good[1:],
    ):
        state.write_bytes(bad)
        done = native(built, models["demo"], "--state", state)
        assert (done.returncode, done.stdout) == (1, "")
        assert "damaged" in done.stderr or "no saved state" in done.stderr


def test_the_prompt_from_standard_input(built: Path, models: dict[str, Path]) -> None:
    arguments = ["-n", "20", "--seed", "7"]
    piped = native(built, models["demo"], "-", *arguments, stdin=PROMPT)
    assert piped.stdout == native(built, models["demo"], PROMPT, *arguments).stdout
    assert native(built, models["demo"], *arguments).returncode == 0  # the beginning of a text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "needs a model"),
        (["{demo}", "a", "b"], 2, "one prompt"),
        (["{demo}", "--top-p", "0"], 2, "--top-p: 0 makes no sense"),
        (["{demo}", "--top-p", "1.5"], 2, "makes no sense"),
        (["{demo}", "--temperature", "nan"], 2, "makes no sense"),
        (["{demo}", "--seed", "18446744073709551616"], 2, "makes no sense"),
        (["{demo}", "--seed", "-1"], 2, "makes no sense"),
        (["{demo}", "--seed"], 2, "a value is missing"),
        (["{demo}", "--what", "1"], 2, "unknown option"),
        (["{demo}", *["--stop", "x"] * 33], 2, "too many"),
        (["{demo}", "a", "-n", "1", "--save-state", "/does/not/exist"], 1, "cannot be written"),
        (["{world}", "a"], 1, "--vocab"),
        (["{world}", "a", "--vocab", "/does/not/exist"], 1, "cannot open /does/not/exist"),
        (["README.md", "a"], 1, "README.md"),
    ],
)
def test_wrong_calls(arguments: list[str], code: int, words: str, built: Path, models: dict[str, Path]) -> None:
    done = native(built, *(word.format(**models) for word in arguments))
    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "1 'a'",
        "1 'a' 2",
        "x 'a' 1",
        "65536 'a' 1",
        "1 'a' 1 ",
        "1 'a 1",
        "1 a 1",
        "1 '\\q' 2",
        "1 '\\x4' 1",
        "1 '\\ud800' 3",
        "1 '' 0",
        "1 b'\\u0041' 1",
        "1 'a' 1\n2 'b",
    ],
)
def test_what_is_no_vocabulary(bad: str, built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text(bad, encoding="utf-8")
    done = native(built, models["world"], "a", "--vocab", tmp_path / "vocab.txt")
    assert done.returncode == 1
    assert "not a vocabulary of World models" in done.stderr or "token ids up to 65536" in done.stderr


def test_a_vocabulary_that_lacks_a_byte(built: Path, models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("1 'a' 1\n2 b'\\xc3' 1\r\n3 \"it's\" 4\n", encoding="utf-8")
    assert native(built, models["padded"], "ait's", "-n", "1", "--vocab", tmp_path / "vocab.txt").returncode == 0
    done = native(built, models["padded"], "ab", "--vocab", tmp_path / "vocab.txt")
    assert done.returncode == 1
    assert "cannot be told in tokens" in done.stderr
