"""Text from real models: whole characters, stop strings, states that are gone on from; the commands around them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.engine import EngineError, Model
from rwkvflow.engine.choosing import chooser_of
from rwkvflow.engine.drafts import Guesser, SmallModel
from rwkvflow.engine.prompts import render
from rwkvflow.engine.sampling import Sampling
from rwkvflow.engine.session import ChatSession, Decoder, Session, generate, stop_at
from rwkvflow.engine.states import from_heads, heads_of
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.model.tokenizers import Bytes, World
from rwkvflow.worker.read.adapters import initial_states
from rwkvflow.worker.read.checkpoint import Checkpoint
from rwkvflow.worker.reference.model import Reference
from tests.engine import librwkv
from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once there was "
LIKELIEST = Sampling(temperature=0)


class Whole:
    """A tokenizer that cannot tell the bytes of one token."""

    def encode(self, text: str) -> list[int]:
        return Bytes().encode(text)

    def decode(self, tokens: Sequence[int]) -> str:
        return Bytes().decode(tokens)


@pytest.fixture(scope="session")
def library(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config) / "librwkv.so"


@pytest.fixture(scope="session")
def converted(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Path]:
    root = tmp_path_factory.mktemp("models")

    def run(source: Path, kind: str) -> Path:
        target = root / f"{source.stem}-{kind}.bin"
        if not target.is_file():
            (outcome,) = convert(source, library, [ConversionJob("x", f"ggml-{kind}", target)])
            assert outcome.failure is None
        return target

    return run


@pytest.fixture(scope="session", params=["rwkv4-demo", "rwkv7-demo"])
def file(request: pytest.FixtureRequest, converted: Callable[[Path, str], Path]) -> Path:
    return converted(ROOT / "recipes" / "demo" / f"{request.param}.pth", "q8_0")


@pytest.fixture(scope="session")
def model(file: Path, library: Path) -> Iterator[Model]:
    with Model(file, library) as opened:
        yield opened


@pytest.fixture(scope="session")
def noise(library: Path, converted: Callable[[Path, str], Path], tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Random weights: any byte may follow any other."""
    source = checkpoints.make(tmp_path_factory.mktemp("noise") / "noise.pth", "6", layers=1, width=128, vocab=256)
    return Model(converted(source, "f32"), library)


# ---- whole characters --------------------------------------------------------------------------------------------

CHARACTERS = st.text(alphabet=st.sampled_from("aß€𝄞é\u0301\n \u2028漢"), max_size=40)


@settings(max_examples=200, deadline=None)
@given(CHARACTERS)
def test_no_character_is_cut(text: str) -> None:
    for tokenizer in (Bytes(), Whole()):
        decoder = Decoder(tokenizer)
        pieces = [decoder.put(token) for token in tokenizer.encode(text)]
        assert not decoder.waiting
        assert "".join(pieces) + decoder.end() == text
        assert [piece for piece in pieces if piece] == list(text)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_what_is_no_text_comes_out_as_one_piece_would(data: bytes) -> None:
    decoder = Decoder(Bytes())
    assert "".join(map(decoder.put, data)) + decoder.end() == data.decode(errors="replace")


def test_tokens_that_end_inside_of_characters(tmp_path: Path) -> None:
    lines = ["1 b'\\xe6\\xbc' 2", "2 b'\\xa2\\xe6' 2", "3 b'\\xbc\\xa2' 2", "4 'a' 1"]
    (tmp_path / "world.txt").write_text("\n".join(lines), encoding="utf-8")
    decoder = Decoder(World(tmp_path / "world.txt"))
    assert [decoder.put(token) for token in (1, 2, 3, 4, 1)] == ["", "漢", "漢", "a", ""]
    assert decoder.waiting
    assert decoder.end() == "\ufffd"


def test_a_long_text_without_the_bytes_of_tokens() -> None:
    text = "ab€ c" * 100
    decoder = Decoder(Whole())
    assert "".join(map(decoder.put, text.encode())) == text
    assert len(decoder._tokens) < 100


# ---- stop strings ------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_where_a_stop_string_begins_or_may_begin(text: str, stops: list[str]) -> None:
    found, keep = stop_at(text, stops)
    places = [text.find(stop) for stop in stops if stop in text]
    assert found == (min(places) if places else None)
    if found is None:
        beginnings = [n for n in range(1, len(text) + 1) for stop in stops if len(stop) > n and text[-n:] == stop[:n]]
        assert keep == max(beginnings, default=0)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_it_ends_before_the_stop_string_and_has_read_only_what_is_shown(data: st.DataObject, model: Model) -> None:
    seed = data.draw(st.integers(0, 5))
    free = Session(model, Bytes(), seed=seed)
    free.feed(PROMPT)
    text = "".join(free.generate(60))
    assert free.finish == "length"
    at = data.draw(st.integers(0, 50))
    stop = text[at : at + data.draw(st.integers(1, 9))]
    at = text.find(stop)
    session = Session(model, Bytes(), seed=seed)
    session.feed(PROMPT)
    pieces = list(session.generate(60, ["not there", stop]))
    assert ("".join(pieces), session.finish) == (text[:at], "stop")
    session.feed("! And")
    plain = Session(model, Bytes())
    plain.feed(PROMPT + text[:at] + "! And")
    assert session.evaluated == plain.evaluated
    np.testing.assert_allclose(session._now()[0], plain._now()[0], rtol=0, atol=1e-4)


def test_a_stop_string_that_never_ends_is_given_out(noise: Model) -> None:
    free = "".join(_said(noise, 40, ()))
    assert "\ufffd" in free  # and characters are not what the model writes
    assert "".join(_said(noise, 40, (free[-1] + "x", free[10:14] + "never"))) == free


def _said(model: Model, count: int, stops: tuple[str, ...]) -> Iterator[str]:
    session = Session(model, Bytes(), seed=9)
    session.feed("a")
    return session.generate(count, stops, end=None)


def test_the_end_of_the_text_ends_it(model: Model) -> None:
    session = Session(model, Bytes(), LIKELIEST)
    session.feed(PROMPT)
    (first,) = session.generate(1)
    again = Session(model, Bytes(), LIKELIEST)
    again.feed(PROMPT)
    assert list(again.generate(9, end=ord(first))) == []
    assert (again.finish, again.generated, again.evaluated) == ("end", 0, len(PROMPT))


def test_a_text_is_gone_on_with(model: Model) -> None:
    whole = Session(model, Bytes(), LIKELIEST)
    whole.feed(PROMPT)
    text = "".join(whole.generate(50))
    parts = Session(model, Bytes(), LIKELIEST)
    parts.feed(PROMPT[:4])
    parts.feed(PROMPT[4:])
    assert "".join([*parts.generate(20), *parts.generate(0), *parts.generate(30)]) == text
    assert parts.generated == 50
    assert "".join(generate(model, PROMPT, Bytes(), max_tokens=50, sampling=LIKELIEST)) == text


def test_a_seed_decides(model: Model) -> None:
    texts = ["".join(generate(model, PROMPT, Bytes(), max_tokens=40, seed=seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_nothing_read_begins_a_text(model: Model) -> None:
    session = Session(model, Bytes(), LIKELIEST)
    assert "".join(session.generate(5)) == "".join(generate(model, "\0", Bytes(), max_tokens=5, sampling=LIKELIEST))


# ---- states ------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(model: Model, tmp_path: Path) -> tuple[Path, str]:
    """A state after some text, and how that goes on."""
    session = Session(model, Bytes(), LIKELIEST)
    session.feed(PROMPT)
    "".join(session.generate(20))
    session.save(tmp_path / "state")
    return tmp_path / "state", "".join(session.generate(40))


def test_a_saved_state_is_gone_on_from(model: Model, saved: tuple[Path, str]) -> None:
    path, text = saved
    session = Session(model, Bytes(), LIKELIEST)
    session.load(path)
    assert session.evaluated == len(PROMPT) + 20
    assert "".join(session.generate(40)) == text


def test_a_state_of_another_model_is_refused(
    model: Model, noise: Model, saved: tuple[Path, str], library: Path, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="this model has"):
        Session(noise, Bytes()).load(saved[0])
    data = bytearray(model.path.read_bytes())
    data[-5] ^= 1
    (tmp_path / "other.bin").write_bytes(data)
    with Model(tmp_path / "other.bin", library) as other, pytest.raises(EngineError, match="another model file"):
        Session(other, Bytes()).load(saved[0])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_damaged_state_is_refused(
    data: st.DataObject, model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "state"
    session = Session(model, Bytes())
    session.feed("a")
    session.save(path)
    good = path.read_bytes()
    at = data.draw(st.integers(0, 140) | st.integers(0, len(good) - 1))
    flipped = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    for bad in (flipped, good[:at], good + b"x", b""):
        path.write_bytes(bad)
        with pytest.raises(EngineError, match=r"damaged|no saved state|layout|this model has"):
            session.load(path)


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
def test_trained_initial_states_are_begun_from(
    version: str, library: Path, converted: Callable[[Path, str], Path], tmp_path: Path
) -> None:
    """The logits of the reference, whose state is the file's: values by keys in version 7, keys by values before."""
    source = ROOT / "recipes" / "demo" / f"rwkv{version}-demo.pth"
    with Checkpoint(source) as checkpoint, Model(converted(source, "f32"), library) as model:
        reference = Reference(checkpoint)
        found = reference.architecture
        size, heads = found.head_size or 0, found.n_head or 0
        rng = np.random.default_rng(3)
        states = {
            f"blocks.{i}.att.time_state": rng.standard_normal((heads, size, size), np.float32)
            for i in range(found.n_layer)
        }
        file = tmp_path / "states.pth"
        checkpoints.write_pth(file, [checkpoints.array_entry(name, values) for name, values in states.items()])
        session = Session(model, Bytes())
        found_states = initial_states(file, *heads_of(model))
        session.begin(from_heads(found_states, model))
        memory = reference.start()
        for layer, values in zip(memory.layers, states.values(), strict=True):
            layer["wkv"] = values if version == "7" else values.swapaxes(1, 2)
        (hidden,) = reference.hidden([memory], [list(PROMPT.encode())])
        wanted = reference.logits(hidden)[-1]
        for _ in range(2):  # after a reset as well
            session.feed(PROMPT)
            logits, _ = session._now()
            assert np.abs(logits - wanted).max() < 1e-3
            session.reset()
        plain = Session(model, Bytes())
        plain.feed(PROMPT)
        assert np.abs(plain._now()[0] - wanted).max() > 0.1
        done = run("generate", model.path, PROMPT, "-n", "8", "--temperature", "0", "--state", file, library=library)
        assert done.returncode == 0, done.stderr
        session.sampler = chooser_of(model).sampler(LIKELIEST, 0)
        session.feed(PROMPT)
        assert done.stdout == "".join(session.generate(8)) + "\n"
        with pytest.raises(EngineError, match="layers with"):
            from_heads(found_states[:1], model)


def test_a_state_that_cannot_be_written_leaves_the_old_one(model: Model, saved: tuple[Path, str]) -> None:
    path, _ = saved
    before = path.read_bytes()
    with pytest.raises(EngineError, match="nothing"):
        Session(model, Bytes()).save(path)
    session = Session(model, Bytes())
    session.feed("b")
    with pytest.raises(OSError, match="No such file"):
        session.save(path.parent / "absent" / "state")
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["state"]


# ---- conversations -----------------------------------------------------------------------------------------------


class Listening(Bytes):
    """Keeps what a model is given to read."""

    def __init__(self) -> None:
        self.heard = ""

    def encode(self, text: str | bytes) -> list[int]:
        assert isinstance(text, str)
        self.heard += text
        return super().encode(text)


def test_a_conversation_has_the_form_of_the_training_texts(model: Model) -> None:
    ears = Listening()
    talk = ChatSession(Session(model, ears, LIKELIEST))
    talk.system("Be brief.\n")
    first = "".join(talk.ask("Hello\r\n\r\nthere \n", 12))
    assert ears.heard == "System: Be brief.\n\nUser: Hello\nthere\n\nAssistant:"
    list(talk.ask("Why?", 3))
    assert ears.heard.endswith("\n\nAssistant:\n\nUser: Why?\n\nAssistant:")
    assert first == first.lstrip()


def test_a_conversation_is_read_as_the_prompt_for_it(model: Model) -> None:
    for think in (None, True, False):
        ears = Listening()
        talk = ChatSession(Session(model, ears, LIKELIEST), think=think)
        talk.system("Be brief.")
        said = "".join(talk.ask("Hello", 9))
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
        assert ears.heard == render(messages, think=think).text
        assert said.startswith("<think") == bool(think)


@pytest.mark.parametrize("small", [None, "q4_0"])
@pytest.mark.parametrize("most", [1, 4, 9])
def test_guessing_ahead_changes_no_letter(
    small: str | None, most: int, converted: Callable[[Path, str], Path], library: Path
) -> None:
    source = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
    prompt, kept = "one two three four. one two three four. one two ", 0
    with (
        Model(converted(source, "q8_0"), library) as model,
        Model(converted(source, small or "q8_0"), library) as other,
    ):
        for seed, temperature in ((1, 0.0), (2, 0.6), (3, 1.2)):
            sampling = Sampling(temperature=temperature, presence=0.1)
            texts, ends = [], []
            for guesser in (None, Guesser(most, SmallModel(other) if small else None)):
                session = Session(model, Bytes(), sampling, seed, guesser)
                session.feed(prompt)
                text = "".join(session.generate(120, ["zz", "th"]))
                session.feed(" and then one two three four.")
                texts.append(text + "|" + "".join(session.generate(80)))
                ends.append((session.finish, session.evaluated, session.generated, session._now()[1].tobytes()))
            assert texts[0] == texts[1]
            assert ends[0] == ends[1]
            assert guesser is not None
            assert guesser.kept <= guesser.guessed
            kept += guesser.kept
    assert kept > 0


def test_an_answer_ends_where_the_next_question_would_begin(model: Model) -> None:
    """The model's own words as the name of who asks: it will say them."""
    ears = Listening()
    talk = ChatSession(Session(model, ears, LIKELIEST))
    long = "".join(talk.ask("a", 40))
    name = long[10:16]
    ears = Listening()
    talk = ChatSession(Session(model, ears, LIKELIEST))
    short = "".join(talk.ask("a", 40, [name]))
    assert short == long[: long.find(name)]
    ears.heard = ""
    list(talk.ask("b", 1))
    assert ears.heard.endswith("\n\nUser: b\n\nAssistant:")
    assert name not in ears.heard


# ---- commands ----------------------------------------------------------------------------------------------------


def run(*arguments: str | Path, stdin: str = "", library: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rwkvflow", *map(str, arguments), "--library", str(library), "--threads", "1"],
        input=stdin,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        check=False,
    )


def test_generate(file: Path, library: Path, tmp_path: Path) -> None:
    with Model(file, library) as model:
        text = "".join(generate(model, PROMPT, Bytes(), max_tokens=30, seed=4))
    done = run("generate", file, PROMPT, "-n", "30", "--seed", "4", library=library)
    assert (done.returncode, done.stdout, done.stderr) == (0, text + "\n", "")
    done = run("generate", file, "-", "-n", "30", "--seed", "4", "-v", stdin=PROMPT, library=library)
    assert (done.returncode, done.stdout) == (0, text + "\n")
    assert "seed 4" in done.stderr
    assert "wrote 30 tokens" in done.stderr
    state = tmp_path / "state"
    run("generate", file, PROMPT, "-n", "9", "--temperature", "0", "--save-state", state, library=library)
    parts = run("generate", file, "-n", "9", "--temperature", "0", "--state", state, library=library).stdout
    whole = run("generate", file, PROMPT, "-n", "18", "--temperature", "0", library=library).stdout
    assert whole.endswith(parts)


def test_texts_of_the_command_line_that_are_not_utf_8(file: Path, library: Path) -> None:
    """A prompt's bad bytes are U+FFFD, wherever it stands; a stop text that could never come is refused."""
    for wrong in (b"\xff", "é".encode("latin-1"), b"\xe6\xbc"):
        bad = os.fsdecode(wrong)
        done = run("chat", file, "-n", "2", "--seed", "1", "--system", bad, "--user", bad, stdin="a\n", library=library)
        assert done.returncode == 0, done.stderr
        assert run("generate", file, bad, "-n", "2", "--seed", "1", library=library).returncode == 0
        for command in ("generate", "chat"):
            done = run(command, file, "--stop", "a", "--stop", bad, library=library)
            assert done.returncode == 2
            assert "--stop: '\\udc" in done.stderr
            assert "is not UTF-8" in done.stderr
            assert "codec" not in done.stderr


def test_chat(file: Path, library: Path) -> None:
    arguments: list[str | Path] = ["chat", file, "-n", "8", "--seed", "1"]
    guessed = run(*arguments, "--draft", "lookup", stdin="Hello\n\nWho?\n", library=library)
    both = run(*arguments, stdin="Hello\n\nWho?\n", library=library)
    one = run(*arguments, stdin="Hello", library=library)
    assert both.returncode == one.returncode == 0, both.stderr
    assert both.stdout.startswith(one.stdout)
    assert guessed.stdout == both.stdout
    assert len(both.stdout) > len(one.stdout)


def test_ctrl_c_keeps_the_state_of_a_conversation(file: Path, library: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    arguments: list[str | Path] = ["chat", file, "-n", "8", "--seed", "1"]
    answer = run(*arguments, stdin="Hello\n", library=library).stdout.encode()
    talk = subprocess.Popen(
        [sys.executable, "-m", "rwkvflow", *arguments, "--threads", "1", "--save-state", state, "--library", library],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    with talk:
        assert talk.stdin is not None
        assert talk.stdout is not None
        talk.stdin.write(b"Hello\n")
        talk.stdin.flush()
        assert talk.stdout.read(len(answer)) == answer
        talk.send_signal(signal.SIGINT)  # it waits for the next question
        assert talk.wait(30) == 130
    done = run("generate", file, "-n", "3", "--seed", "1", "--state", state, library=library)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--tokenizer", "world"], (1, 2), "tokenizer"),
        (["--tokenizer", "absent.json"], (2,), "neither"),
        (["--top-p", "2"], (2,), "top-p"),
        (["--temperature", "-1"], (2,), "temperature"),
        (["--save-state", "absent/state"], (2,), "no folder"),
        (["--state", "README.md"], (1,), "README.md"),
    ],
)
def test_wrong_calls_say_what_is_wrong(
    arguments: list[str], code: tuple[int, ...], words: str, file: Path, library: Path
) -> None:
    done = run("generate", file, "a", "-n", "1", *arguments, library=library)
    assert done.returncode in code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_model(library: Path) -> None:
    done = run("generate", "README.md", "a", library=library)
    assert done.returncode == 1
    assert "README.md cannot be opened" in done.stderr
