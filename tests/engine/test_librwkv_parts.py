"""librwkv runs a GGUF in parts as one file; a part that is missing, another model's or damaged is told by its name."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rwkvflow.app.models import playable
from rwkvflow.base.errors import UsageError
from rwkvflow.engine.binding import Library, Model
from rwkvflow.engine.parts import parts_of
from rwkvflow.engine.session import Session
from rwkvflow.engine.states import fingerprint
from rwkvflow.engine.tokenizer import Tokenizer
from rwkvflow.serve.shelf import find_models
from rwkvflow.worker.conversion.convert import ConversionJob, convert
from rwkvflow.worker.formats.base import Split
from tests.engine import encoder, gguf_files, librwkv
from tests.engine.test_librwkv_hostile import DATA, FILE, KEY, MAGIC, OPEN, PARAMS, Opener
from tests.helpers import checkpoints

UNSUPPORTED = 9
TOKENS = [0, 7, 3, 250, 91, 7, 0, 44] * 5
Damage = Callable[[Path, list[Path]], object]


@pytest.fixture(scope="module")
def library(request: pytest.FixtureRequest) -> Library:
    return Library(librwkv.with_zig(request.config) / "librwkv.so")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, list[Path]]]:
    """By version: the whole file, and its parts."""
    root, out = tmp_path_factory.mktemp("split"), {}
    engine = encoder.build(root / "engine", encoder.any_compiler())
    for version, layers in (("6", 7), ("7", 3)):
        source = checkpoints.make(root / f"{version}.pth", version, layers=layers, width=128, vocab=256)
        whole, folder = root / f"{version}.gguf", root / f"{version}-parts"
        jobs = [ConversionJob("x", "gguf-q8_0", whole)]
        assert all(outcome.failure is None for outcome in convert(source, engine, jobs))
        limit = Split(whole.stat().st_size // 3, "m")
        (outcome,) = convert(source, engine, [ConversionJob("x", "gguf-q8_0", folder, limit)])
        assert outcome.failure is None
        out[version] = (whole, sorted(folder.iterdir()))
    return out


@pytest.mark.parametrize("version", ["6", "7"])
def test_parts_are_the_whole(version: str, split: dict[str, tuple[Path, list[Path]]], library: Library) -> None:
    whole, parts = split[version]
    assert len(parts) > 3
    assert parts_of(parts[0]) == parts
    with Model(whole, library, 2) as one, Model(parts[0], library, 2) as other:
        assert np.array_equal(one.eval_sequence(TOKENS)[0], other.eval_sequence(TOKENS)[0])
    header, tensors = gguf_files.table(whole, library)
    assert (header, len(tensors)) == (
        gguf_files.table(parts[0], library)[0],
        len(gguf_files.table(parts[0], library)[1]),
    )
    assert Tokenizer(parts[0], library).encode(b"ab") == Tokenizer(whole, library).encode(b"ab")


def test_a_state_belongs_to_all_parts(
    split: dict[str, tuple[Path, list[Path]]], library: Library, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Written by Python, read by librwkv: both make the same fingerprint; a change in the last part changes it."""
    tool = librwkv.with_zig(request.config) / "rwkv"
    parts = [Path(shutil.copy(part, tmp_path)) for part in split["7"][1]]
    before, kept = fingerprint(parts[0]), tmp_path / "kept"
    with Model(parts[0], library) as model:
        session = Session(model, Tokenizer(None, library))
        session.feed("Once")
        session.save(kept)
    command: list[str | Path] = [tool, "generate", parts[0], "x", "-n", "1", "--state", kept]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    data = bytearray(parts[-1].read_bytes())
    data[-40] ^= 1
    parts[-1].write_bytes(data)
    assert fingerprint(parts[0]) != before
    assert b"another model file" in subprocess.run(command, capture_output=True, check=False).stderr


def test_what_takes_a_model_takes_the_first_part_or_the_folder(
    split: dict[str, tuple[Path, list[Path]]], tmp_path: Path
) -> None:
    _, parts = split["7"]
    (served,) = find_models([parts[0].parent])
    assert (served.path, served.size) == (parts[0], sum(part.stat().st_size for part in parts))
    assert playable(parts[0].parent, tmp_path, lambda event: None, tmp_path) == parts[0]
    with pytest.raises(UsageError):
        find_models([tmp_path])


# ---- wrong parts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opener]:
    out = Opener(librwkv.with_sanitizers(request.config), tmp_path_factory.mktemp("hostile"))
    yield out
    out.close()


def said(path: Path, key: str, form: str, value: int) -> None:
    """Changes a number of a part's metadata."""
    data = bytearray(path.read_bytes())
    at = data.index(gguf_files.text(f"split.{key}".encode())) + 8 + len(f"split.{key}") + 4
    struct.pack_into(form, data, at, value)
    path.write_bytes(data)


def folder_instead(folder: Path, parts: list[Path]) -> None:
    parts[2].unlink()
    parts[2].mkdir()


def renamed(folder: Path, parts: list[Path]) -> None:
    for part in parts:
        part.rename(folder / part.name.replace("-of-", "_of_"))
    parts[0] = folder / parts[0].name.replace("-of-", "_of_")


def exchanged(folder: Path, parts: list[Path]) -> None:
    parts[1].rename(folder / "x")
    parts[2].rename(parts[1])
    (folder / "x").rename(parts[2])


def twice(folder: Path, parts: list[Path]) -> None:
    """The second part is the third again: its number is put right, its tensors are there twice."""
    shutil.copy(parts[2], parts[1])
    said(parts[1], "no", "<H", 1)
    data = [part.read_bytes() for part in parts]
    count = sum(struct.unpack_from("<Q", each, 8)[0] for each in data)
    said(parts[0], "tensors.count", "<i", count)


WRONG: dict[str, tuple[Damage, int, int, str]] = {
    "missing": (lambda folder, parts: parts[2].unlink(), FILE, OPEN, "its part 3 of 4, m-00003-of-00004.gguf"),
    "a folder": (folder_instead, FILE, 3, "its part 3 of 4"),
    "empty": (lambda folder, parts: parts[1].write_bytes(b""), FILE, MAGIC, "is no GGUF"),
    "text": (lambda folder, parts: parts[1].write_bytes(b"hello"), FILE, MAGIC, "is no GGUF"),
    "cut": (lambda folder, parts: parts[3].write_bytes(parts[3].read_bytes()[:-64]), PARAMS, DATA, "outside"),
    "other number": (lambda folder, parts: said(parts[1], "no", "<H", 2), FILE, DATA, "part 3 of 4"),
    "other count": (lambda folder, parts: said(parts[1], "count", "<H", 9), FILE, DATA, "part 2 of 9"),
    "other tensors": (lambda folder, parts: said(parts[0], "tensors.count", "<i", 7), FILE, DATA, "it says 7"),
    "exchanged": (exchanged, FILE, DATA, "part 3 of 4"),
    "twice": (twice, PARAMS, KEY, "two tensors"),
    "too many": (lambda folder, parts: said(parts[0], "count", "<H", 65535), FILE, UNSUPPORTED, "65535 parts"),
    "not a number": (lambda folder, parts: said(parts[0], "no", "<H", 4), FILE, DATA, "part 5 of 4"),
    "another part": (lambda folder, parts: parts.reverse(), FILE, UNSUPPORTED, "name the first"),
    "other names": (renamed, FILE, UNSUPPORTED, "found by their names"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parts_are_told(
    name: str, split: dict[str, tuple[Path, list[Path]]], opener: Opener, tmp_path: Path
) -> None:
    parts = [Path(shutil.copy(part, tmp_path)) for part in split["7"][1]]
    assert opener.open(parts[0])[:2] == (0, 0)
    damage, where, what, words = WRONG[name]
    damage(tmp_path, parts)
    found = opener.open(parts[0])
    assert found[:2] == (where, what), found
    assert words in found[2]
