"""Every reader of what strangers write has a fuzzer, and each is run: some thousand inputs here, minutes in soak.

A finding is kept in build/fuzz/findings/NAME; run it again with `python -m tests.fuzz.drive` after it was copied to
tests/fuzz/regressions/NAME/, where it belongs once it is mended.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import drive
from tests.fuzz.reader import Reader
from tests.fuzz.table import READERS

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rwkvflow"
TABLE = ROOT / "docs" / "concepts" / "reliability.md"
CPP = {"file": ".bin", "gguf": ".gguf", "state": "saved states", "tokenizer": "vocabularies, tokenizer.json"}

# What takes text or bytes apart. A module that does is a reader, unless it stands below with the reason.
PARSES = re.compile(
    r"json\.loads|yaml\.(?:load|parse)|tarfile\.open|ZipFile\(|msgpack\.|cbor2\.|struct\.unpack|unpack_from|tomllib|HTMLParser|"
    r"model_validate|iter_unpack|literal_eval|np\.load\(|\bread_json\(|configparser|pickle\.loads"
)
_OUR_FILES = """
app/bench app/engine_diff app/library base/files base/outputs engine/measure execute/actions execute/engine_of_wheel
execute/publishing lock/pins net/partial publish/places release/artifacts release/provenance/sbom sandbox/host
sandbox/isolation/launch sandbox/isolation/walls store/collect store/store worker/__main__ worker/formats/web_rwkv/run
worker/smoke/domains worker/tasks/assign worker/tasks/build_engine worker/tasks/consume worker/tasks/given
worker/tasks/smoke worker/tasks/stored display/report_data
"""
EXEMPT = {
    **dict.fromkeys(_OUR_FILES.split(), "reads what rwkvflow wrote itself"),
    "app/clusters/bundle": "documents that the client sends its own cluster, through the checks of documents",
    "app/clusters/on_worker": "a client's own words; whoever may send them may run anything, which TLS keeps",
    "serve/chat_template": "a request that its reader has checked",
    "app/models": "asks the readers of quality.json and catalogue.json",
    "app/vouching": "asks the reader of attestations",
    "net/packages/pip_settings": "the user's own configuration of pip",
    "net/packages/uv": "the file that uv wrote a moment before",
    "publish/remote_folder": "the marker of the user's own bucket; any JSON is a table or none",
    "sandbox/image/image_build": "what the user's own Docker engine says",
    "sandbox/pythons": "what the user's own interpreters say of themselves",
    "worker/formats/mlx/run": "config.json of an artifact, in the sandbox: any other error fails the artifact",
    "worker/formats/transformers/layout": "writes such folders",
    "worker/formats/transformers/run": "config.json of an artifact, in the sandbox: any other error fails the artifact",
    "worker/formats/transformers/tokenization_rwkv": "runs in transformers, as part of artifacts",
}  # fmt: skip


def modules() -> dict[str, str]:
    """Module below rwkvflow/ → its text."""
    paths = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_every_module_that_reads_has_a_fuzzer() -> None:
    texts = modules()
    driven = {module for reader in READERS.values() for module in reader.modules}
    assert driven <= set(texts), sorted(driven - set(texts))
    reads = {name for name in texts if name.startswith("worker/read/") and not name.endswith("__init__")}
    reads |= {name for name, text in texts.items() if PARSES.search(text)}
    assert sorted(reads - driven - set(EXEMPT)) == [], "give it a fuzzer in tests/fuzz, or say above why it needs none"
    assert sorted(set(EXEMPT) & driven) == []
    assert sorted(set(EXEMPT) - reads) == [], "it is no reader any more"


def test_every_reader_of_the_engine_has_a_fuzzer() -> None:
    """Those in C++ are run by tests/engine/test_fuzz.py: all sources that read a file, through one of four ways in."""
    from tests.engine import test_fuzz

    assert set(test_fuzz.SOURCES) == set(CPP)
    sources = PACKAGE / "engine" / "src"
    reads = re.compile(r'#include "(?:base/(?:whole_file|gguf|mapping)|tokenizer/json)\.h"')
    found = {
        path.relative_to(sources).as_posix()
        for path in sources.rglob("*.cc")
        if reads.search(path.read_text(encoding="utf-8"))
    }
    assert found == {
        *("api/saved_state.cc", "base/gguf.cc", "base/mapping.cc", "base/whole_file.cc", "model/file.cc"),
        *("model/gguf.cc", "tokenizer/bpe_file.cc", "tokenizer/gguf_words.cc", "tokenizer/json.cc"),
        "tokenizer/tokenizer.cc",
    }, "a new one needs a fuzzer in tests/engine/fuzz, if none of these reads it"


def test_the_page_names_them_all() -> None:
    section = TABLE.read_text(encoding="utf-8").partition("\n## Hostile inputs\n")[2].partition("\n## ")[0]
    rows = {line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ") and "---" not in line}
    wanted = {f"`{name}`: {reader.what}" for name, reader in READERS.items()}
    wanted |= {f"`fuzz_{name}`: {what}, librwkv" for name, what in CPP.items()}
    assert rows - {"reader"} == wanted


def run(*arguments: str, timeout: float) -> list[dict[str, object]]:
    """What the driver tells of each reader; fails with the traceback of a finding."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.drive", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = [row for row in told if row["findings"]]
    assert done.returncode == 0, f"{found}\n{done.stderr[-3000:]}"
    return told


def test_a_moment_of_each(tmp_path: Path) -> None:
    """All that was found once, and changes of real files: refused by name, or read."""
    told = run("--seconds", "0.08", "--least", "3", "--findings", str(tmp_path), timeout=1200)
    assert [row["reader"] for row in told] == list(READERS)
    few = [row for row in told if not isinstance(row["executions"], int) or row["executions"] < 4]  # a seed besides
    assert few == []


def test_each_regression_is_some_readers() -> None:
    assert {path.name for path in drive.REGRESSIONS.iterdir()} <= set(READERS)
    for path in drive.REGRESSIONS.rglob("*"):
        assert path.is_dir() or path.stat().st_size <= 1 << 17, path


def fuzzer(tmp_path: Path, read: object) -> drive.Fuzzer:
    return drive.Fuzzer("x", Reader("x", (), lambda folder: [b"x"], read), tmp_path, tmp_path / "found")  # type: ignore[arg-type]


def test_what_no_reader_may_do_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that raises what it should not, one that takes too long, and each is told once, with its input."""
    monkeypatch.setattr(drive, "SECONDS", 0.2)

    def read(data: bytes, folder: Path) -> object:
        if data == b"for ever":
            try:
                while True:
                    pass
            except Exception:
                return None  # it cannot be swallowed
        return 1 // (data != b"zero")

    one = fuzzer(tmp_path, read)
    start = time.process_time()
    assert [one.one(data) for data in (b"x", b"zero", b"zero", b"for ever")] == [True, False, False, False]
    assert time.process_time() - start < 5
    assert sorted(kind.partition(" ")[0] for kind in one.found) == ["TooLong", "ZeroDivisionError"]
    assert sorted(path.read_bytes() for path in (tmp_path / "found/x").iterdir() if not path.suffix) == [
        b"for ever",
        b"zero",
    ]


def test_what_takes_more_memory_than_there_is_room_is_found(tmp_path: Path) -> None:
    """In a process of its own, as the driver has them."""
    script = (
        "import pathlib, sys\n"
        "from tests.fuzz import drive\n"
        "from tests.fuzz.reader import Reader\n"
        "place = pathlib.Path(sys.argv[1])\n"
        "reader = Reader('x', (), lambda folder: [b'x'], lambda data, folder: bytearray(len(data) << 20))\n"
        "one = drive.Fuzzer('x', reader, place, place / 'found')\n"
        "drive.bound_memory()\n"
        "assert one.one(b'x') and not one.one(bytes(1024))\n"
        "assert [kind.split()[0] for kind in one.found] == ['MemoryError']\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True, timeout=60)


GUIDED = ("pickle",)


def guided(name: str, seconds: int, folder: Path) -> dict[str, object]:
    """Through atheris; the driver's own figures."""
    places = ["--findings", str(folder / "findings"), "--corpus", str(folder / "corpus")]
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.drive", "--guided", "--seconds", str(seconds), *places, name],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=seconds + 120,
        check=False,
    )
    tell = folder / "findings" / f"{name}.json"
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, object] = json.loads(tell.read_text(encoding="utf-8"))
    return told


@pytest.mark.soak
@pytest.mark.parametrize("name", GUIDED)
def test_coverage_leads_further(name: str, tmp_path: Path) -> None:
    """libFuzzer keeps what covers more: it sees into our modules."""
    pytest.importorskip("atheris")
    told = guided(name, 2, tmp_path)
    assert told["findings"] == {}
    kept = [path for path in (tmp_path / "corpus" / name).iterdir() if not path.name.startswith("seed-")]
    assert len(kept) > 3, told


@pytest.mark.soak
@pytest.mark.parametrize("name", READERS)
def test_ten_minutes(name: str) -> None:
    pytest.importorskip("atheris")
    told = guided(name, 600, ROOT / "build" / "fuzz")
    print(told)
    assert told["findings"] == {}, ROOT / "build" / "fuzz" / "findings" / name
