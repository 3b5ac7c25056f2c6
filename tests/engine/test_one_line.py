"""One line from a checkpoint on the hub to proved files, and a second one that talks to it; no recipe, no container."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from rwkvflow.app import models, proof
from rwkvflow.base.errors import FetchError, SmokeFailed, UsageError
from rwkvflow.cli import cli
from rwkvflow.worker.conversion.convert import convert
from rwkvflow.worker.read.gguf_file import read_gguf_index
from tests.engine import librwkv
from tests.standin import StandIn

Call = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "recipes" / "demo" / "rwkv7-demo.pth"
SOURCE = "hf://owner/model/deep/rwkv7-demo.pth"


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Path:
    return librwkv.with_zig(request.config) / "librwkv.so"


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    with StandIn(tmp_path / "standin") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        standin.hub.create("owner/model").commit({"deep/rwkv7-demo.pth": DEMO.read_bytes(), "README.md": b"# Model"})
        yield standin


@pytest.fixture
def call(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    monkeypatch.setenv("RWKVFLOW_LIBRARY", str(library))
    monkeypatch.setenv("RWKVFLOW_STORE", str(tmp_path / "store"))

    def run(*words: object, stdin: str | None = None) -> Result:
        return CliRunner().invoke(cli, [str(word) for word in words], input=stdin)

    return run


def test_one_line_makes_proved_files(call: Call, net: StandIn, tmp_path: Path) -> None:
    words = ("--format", "ggml-f16", "--format", "ggml-q8_0", "--format", "safetensors")
    done = call("convert", SOURCE, tmp_path / "out", *words)
    assert done.exit_code == 0, (done.output, done.exception)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"rwkv7-demo-FP16.bin", "rwkv7-demo-Q8_0.bin", "rwkv7-demo.safetensors"}
    assert done.output.count("proved by librwkv: perplexity") == 2
    assert "::rwkvflow" not in done.output
    here = call("convert", DEMO, tmp_path / "here", "--format", "ggml-f16", "--no-check")
    assert here.exit_code == 0
    assert "proved by" not in here.output
    assert (tmp_path / "here").read_bytes() == (tmp_path / "out/rwkv7-demo-FP16.bin").read_bytes()
    asked = len(net.requests(host="cdn"))
    again = call("convert", SOURCE, tmp_path / "again.bin", "--format", "ggml-q8_0")
    assert again.exit_code == 0
    assert len(net.requests(host="cdn")) == asked, "what is there was downloaded again"
    kept = call("cache", "models").output
    assert SOURCE in kept
    assert "removed" in call("cache", "models", "--empty").output
    assert models.kept(tmp_path / "store") == []


OLD = ROOT / "recipes" / "demo" / "rwkv4-demo.pth"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((SOURCE, "o.bin", "--format", "gguf-q4_0"), "o.bin ends as another format does"),
        ((SOURCE, "there.gguf", "--format", "gguf-q4_0"), "there.gguf exists already"),
        (("hf://owner/model/old.pth", "o.gguf", "--format", "gguf-f16"), "old.pth is version 4, which gguf-f16 cannot"),
        ((SOURCE, "o.gguf", "--format", "gguf-f16", "--imatrix", "there.gguf"), "gguf-f16 is not quantized with one"),
        ((SOURCE, "o.gguf", "--format", "gguf-q4_0", "--imatrix", "there.gguf"), "there.gguf: neither a GGUF nor"),
        ((SOURCE, "o.gguf", "--format", "gguf-q4_0", "--tensor-type", "x"), "--tensor-type: x is not REGEX=TYPE"),
        ((SOURCE, "hf://owner/model/old.pth", "out/", "--format", "gguf-f16"), "old.pth is version 4"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_downloaded(
    call: Call, net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    net.hub.create("owner/model").commit({"old.pth": OLD.read_bytes()})
    monkeypatch.chdir(tmp_path)
    Path("there.gguf").write_bytes(b"mine")
    done = call("convert", *words)
    assert says in str(done.exception) + done.output
    assert done.exit_code
    assert not (tmp_path / "store").exists()
    assert Path("there.gguf").read_bytes() == b"mine"


def test_a_wrong_name_is_said_before_a_library_is_built(
    call: Call, net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rwkvflow.app.library.find_library", lambda *_: pytest.fail("looked for"))
    done = call("chat", "hf://owner/model/deep/RWKV7-demo.pth")
    assert isinstance(done.exception, FetchError)
    assert "did you mean 'deep/rwkv7-demo.pth'?" in str(done.exception)


def test_chat_with_the_hubs_checkpoint(call: Call, net: StandIn, tmp_path: Path) -> None:
    words = ("chat", SOURCE, "-n", "8", "--seed", "1", "--tokenizer", "bytes")
    first = call(*words, stdin="Hello\n/reset\nHello\n/nonsense\n/save\n//etc\n/quit\nnever read\n")
    assert first.exit_code == 0, (first.output, first.exception)
    answers = [line for line in first.stdout.splitlines() if line]
    assert answers[0], first.stdout
    assert "is no command" in first.output
    assert "the conversation begins anew" in first.output
    assert models.CHAT_FORMAT in first.output
    second = call(*words, stdin="Hello\n")
    assert second.exit_code == 0
    assert "is converted" not in second.output
    assert first.stdout.splitlines()[0].startswith(second.stdout.splitlines()[0][:4])
    for note in (tmp_path / "store/models").glob("*/source.json"):
        assert json.loads(note.read_text())["source"]


def test_what_is_kept_will_do_without_the_hub(
    call: Call, net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = models.fetched(SOURCE, tmp_path / "store", lambda event: None)
    assert hashlib.sha256(found.read_bytes()).digest() == hashlib.sha256(DEMO.read_bytes()).digest()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told: list[object] = []
    assert models.fetched(SOURCE, tmp_path / "store", told.append) == found
    assert "the copy of before" in str(told[-1])
    with pytest.raises(FetchError, match="HF_HUB_OFFLINE"):
        models.fetched("hf://owner/model/other.pth", tmp_path / "store", lambda event: None)


def test_a_repository_lists_its_checkpoints(net: StandIn, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a repository") as caught:
        models.fetched("hf://owner/model", tmp_path / "store", lambda event: None)
    assert SOURCE in (caught.value.remedy or "")
    assert "README" not in (caught.value.remedy or "")


def test_what_is_too_far_off_is_not_put_in_place(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = proof.prove

    def doctored(*arguments: Any) -> Iterator[proof.Proof]:
        for found in real(*arguments):
            yield proof.Proof(found.format, 9.0, 1.0, 5.0, ("far off",) if found.format == "ggml-q4_0" else ())

    monkeypatch.setattr(proof, "prove", doctored)
    done = call("convert", DEMO, tmp_path / "out", "--format", "ggml-q4_0", "--format", "ggml-f16")
    assert isinstance(done.exception, SmokeFailed)
    assert "ggml-q4_0: far off" in done.exception.message
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rwkv7-demo-FP16.bin"]


def test_a_damaged_file_is_no_proof(library: Path, tmp_path: Path, call: Call) -> None:
    """The proof can fail: a file with other weights is over the limits."""
    from rwkvflow.worker.model.origin import Origin

    other = ROOT / "recipes" / "demo" / "rwkv6-demo.pth"
    for source, name in ((DEMO, "right.bin"), (other, "wrong.bin")):
        assert call("convert", source, tmp_path / name, "--format", "ggml-f16", "--no-check").exit_code == 0
    files = [("ggml-f16", tmp_path / "right.bin"), ("ggml-f16", tmp_path / "wrong.bin")]
    right, wrong = proof.prove(Origin(DEMO), library, files)
    assert right.problems == ()
    assert any("logits differ" in problem for problem in wrong.problems)


def test_a_gguf_is_proved_within_seconds_and_runs(call: Call, tmp_path: Path) -> None:
    done = call("convert", DEMO, tmp_path / "out", "--format", "gguf-f16", "--format", "gguf-q8_0")
    assert done.exit_code == 0, (done.output, done.exception)
    assert done.output.count("proved by librwkv: perplexity") == 2
    made = {path.suffix: path for path in (tmp_path / "out").iterdir() if "F16" in path.name}
    text = tmp_path / "text.txt"
    text.write_text("Once there was a little fox.\n", encoding="utf-8")
    for words in (("perplexity", made[".gguf"], text), ("generate", made[".gguf"], "Once", "-n", 8, "--seed", 1)):
        done = call(*words)
        assert done.exit_code == 0, (done.output, done.exception)
    assert call("convert", DEMO, tmp_path / "m.bin", "--format", "ggml-f32", "--no-check").exit_code == 0
    same = call("generate", tmp_path / "m.bin", "Once", "-n", 8, "--seed", 1)
    assert same.stdout == done.stdout


def test_a_gguf_with_other_values_is_not_put_in_place(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(source: Path, engine: Path, jobs: list[Any], **options: Any) -> list[Any]:
        outcomes = convert(source, engine, jobs, **options)
        for outcome in outcomes:
            tensor = read_gguf_index(outcome.job.path).tensors["blk.0.time_mix_output.weight"]
            data = bytearray(outcome.job.path.read_bytes())
            data[tensor.offset : tensor.offset + tensor.nbytes] = bytes(tensor.nbytes)
            outcome.job.path.write_bytes(data)
        return outcomes

    monkeypatch.setattr("rwkvflow.worker.conversion.convert.convert", damaged)
    done = call("convert", DEMO, tmp_path / "m.gguf", "--format", "gguf-f16")
    assert done.exit_code != 0
    assert not (tmp_path / "m.gguf").exists()
    assert "too far from the checkpoint" in str(done.exception)


def test_a_dry_run_says_the_sizes_that_files_then_have(call: Call, tmp_path: Path) -> None:
    words = [
        word for name in ("gguf-q4_k_m", "ggml-q5_1", "transformers", "safetensors") for word in ("--format", name)
    ]
    told = call("convert", DEMO, tmp_path / "out", *words, "--dry-run")
    assert told.exit_code == 0, (told.output, told.exception)
    assert not (tmp_path / "out").exists()
    assert call("convert", DEMO, tmp_path / "out", *words, "--no-check").exit_code == 0
    for line in told.output.splitlines():
        path, size, unit = line.rsplit(" ", 2)
        made = [Path(path)] if Path(path).is_file() else [p for p in Path(path).rglob("*") if p.is_file()]
        assert (sum(p.stat().st_size for p in made if not p.name.startswith(".")), unit) == (int(size), "bytes"), path
    assert len(told.output.splitlines()) == 4
    refused = call("convert", DEMO, tmp_path / "m.st", "--format", "web-rwkv", "--dry-run")
    assert refused.exit_code == 0 or "cannot hold" in str(refused.exception)
