"""Wrong and hostile files through the command line: one clear line each, quickly, in little memory, no traceback.

All cases of a command run in one process, whose address space has a limit: what asks for the memory that a file claims
to need ends in a MemoryError there.
"""

from __future__ import annotations

import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import checkpoints

ROOT = Path(__file__).resolve().parents[4]
ROOM = 384 << 20  # bytes of address space beyond what the program takes without any file
SECONDS = 20.0  # of the processor, for one file: far above any, and far below what grows out of proportion
SIZES: dict[str, Any] = {"layers": 1, "width": 64, "vocab": 40}
Make = Callable[[Path], Path]


# ---- the files -------------------------------------------------------------------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, body: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + body


def info(name: str = "a", dims: tuple[int, ...] = (8, 4), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


MODEL = pair("general.architecture", 8, text("rwkv7"))


def gguf(*parts: bytes, tensors: int = 0, pairs: int = 0, size: int = 0, name: str = "x.gguf") -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        body = b"GGUF" + struct.pack("<IQQ", 3, tensors, pairs) + b"".join(parts)
        path.write_bytes(body + bytes(-len(body) % 32) + bytes(256))
        if size:
            os.truncate(path, size)
        return path

    return make


def raw(data: bytes, size: int = 0, name: str = "x.bin") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        if size:
            os.truncate(folder / name, size)
        return folder / name

    return make


def header(content: object) -> bytes:
    body = (content if isinstance(content, str) else json.dumps(content)).encode()
    return struct.pack("<Q", len(body)) + body


def entry(shape: list[object], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def ggml(dims: tuple[int, ...] = (8, 4), kind: int = 0, key: bytes = b"a", start: tuple[int, ...] = (101, 40, 64, 1, 1),
         length: int | None = None, count: int | None = None, size: int = 0) -> Make:  # fmt: skip
    head = struct.pack("<I5i", 0x67676D66, *start)
    tensor = struct.pack("<3i", len(dims) if count is None else count, len(key) if length is None else length, kind)
    return raw(head + tensor + struct.pack(f"<{len(dims)}i", *dims) + key + bytes(128), size)


def truncated(share: float, suffix: str) -> Make:
    def make(folder: Path) -> Path:
        path = checkpoints.make(folder / f"x{suffix}", "7", **SIZES)
        os.truncate(path, int(path.stat().st_size * share) if share < 1 else path.stat().st_size - 1)
        return path

    return make


def bomb(folder: Path) -> Path:
    """Records of zeros that are a thousandth of their size in the file."""
    path = folder / "x.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("x/data.pkl", bytes(64 << 20))
        archive.writestr("x/data/0", bytes(64 << 20))
    return path


def packed(folder: Path) -> Path:
    """A checkpoint whose data are compressed, so that it claims more than it has."""
    source = checkpoints.make(folder / "source.pth", "7", **SIZES)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(folder / "x.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            kind = zipfile.ZIP_STORED if name.endswith("data.pkl") else zipfile.ZIP_DEFLATED
            new.writestr(name, old.read(name), kind)
    source.unlink()
    return folder / "x.pth"


def claimed(folder: Path) -> Path:
    """A pickle whose storage is far larger than its record."""
    pickle = checkpoints.Pickle().op(b"}(").text("emb.weight").tensor("FloatStorage", "0", 2**50, (2**25, 2**25))
    records = [("x/data.pkl", body := pickle.op(b"u").done()), ("x/byteorder", b"little"), ("x/data/0", bytes(64))]
    assert body
    checkpoints.write_zip(folder / "x.pth", [(name, len(data), [data]) for name, data in records])
    return folder / "x.pth"


def calling(folder: Path) -> Path:
    """A pickle that would run a command."""
    body = b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R."
    checkpoints.write_zip(folder / "x.pth", [("x/data.pkl", len(body), [body])])
    return folder / "x.pth"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


def index(places: dict[str, str], files: dict[str, int]) -> Make:
    """An index, and files that hold the n-th third of a model each."""

    def make(folder: Path) -> Path:
        entries = checkpoints.entries("7", "bf16", **SIZES)
        for name, part in files.items():
            checkpoints.write_safetensors(folder / name, entries[part::3])
        listed = {item.name: f"{number % 3}.safetensors" for number, item in enumerate(entries)}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": listed | places}))
        return path

    return make


def shards(*said: tuple[int, int, int], names: int | None = None, present: int | None = None) -> Make:
    """GGUF shards that say (no, count, tensors) of themselves, each with one tensor."""
    count = names or len(said)

    def make(folder: Path) -> Path:
        for number, (no, of, total) in enumerate(said[: present or len(said)]):
            parts = [] if number else [MODEL]
            parts += [pair("split.no", 2, struct.pack("<H", no)), pair("split.count", 2, struct.pack("<H", of))]
            parts += [pair("split.tensors.count", 5, struct.pack("<i", total))]
            name = f"x-{number + 1:05d}-of-{count:05d}.gguf" if count > 1 else "x.gguf"
            gguf(*parts, info(f"t{number}"), tensors=1, pairs=len(parts), name=name)(folder)
        return folder / (f"x-00001-of-{count:05d}.gguf" if count > 1 else "x.gguf")

    return make


MANY = struct.pack("<IIQ", 9, 8, 2**23)
CASES: dict[str, tuple[Make, str]] = {
    # GGUF
    "gguf-tensors": (gguf(MODEL, tensors=2**63, pairs=1), "claims 9223372036854775808 tensors"),
    "gguf-pairs": (gguf(MODEL, pairs=2**63), "9223372036854775808 metadata"),
    "gguf-million-tensors": (gguf(MODEL, tensors=10**6, pairs=1), "broken GGUF"),
    "gguf-key": (gguf(struct.pack("<Q", 2**63), pairs=1), "a text of 9223372036854775808"),
    "gguf-text": (gguf(pair("a", 8, struct.pack("<Q", 2**40)), pairs=1), "a text of"),
    "gguf-array": (gguf(text("a") + struct.pack("<IIQ", 9, 0, 2**62), pairs=1), "cut short or absurdly long"),
    "gguf-texts": (gguf(text("a") + struct.pack("<IIQ", 9, 8, 2**62), pairs=1), "broken GGUF"),
    "gguf-empty-texts": (gguf(text("a") + MANY, pairs=1, size=1 << 30), "broken GGUF"),
    "gguf-nested": (gguf(text("a") + struct.pack("<IIQ", 9, 9, 1), pairs=1), "an array of the type 9"),
    "gguf-dims": (gguf(MODEL, info(dims=(2**63, 2**63)), tensors=1, pairs=1), "outside the file"),
    "gguf-no-values": (gguf(MODEL, info(dims=(2**62, 0)), tensors=1, pairs=1), "has the dims"),
    "gguf-wrapping-dims": (gguf(MODEL, info(dims=(2**32, 2**32)), tensors=1, pairs=1), "outside the file"),
    "gguf-number-of-dims": (gguf(MODEL, text("a") + struct.pack("<I", 2**31), tensors=1, pairs=1), "dims"),
    "gguf-offset": (gguf(MODEL, info(offset=2**40), tensors=1, pairs=1), "outside the file"),
    "gguf-wrapping-offset": (gguf(MODEL, info(offset=2**64 - 32), tensors=1, pairs=1), "outside the file"),
    "gguf-unaligned": (gguf(MODEL, info(offset=5), tensors=1, pairs=1), "not aligned"),
    "gguf-alignment-0": (gguf(MODEL, pair("general.alignment", 4, bytes(4)), pairs=2), "alignment is 0"),
    "gguf-alignment-3": (gguf(MODEL, pair("general.alignment", 4, b"\3\0\0\0"), pairs=2), "alignment is 3"),
    "gguf-alignment-huge": (gguf(MODEL, pair("general.alignment", 4, b"\0\0\0\x80"), pairs=2), "alignment is"),
    "gguf-type": (gguf(MODEL, info(kind=99), tensors=1, pairs=1), "unknown type 99"),
    "gguf-start": (raw(b"GGUF"), "cut short"),
    "gguf-header": (raw(b"GGUF\3\0\0\0" + bytes(10)), "cut short"),
    "gguf-half": (gguf(MODEL, info(dims=(60,)), tensors=1, pairs=1, size=300), "outside the file"),
    "gguf-cut-index": (gguf(MODEL, info(dims=(60,)), tensors=1, pairs=1, size=90), "cut short"),
    # safetensors
    "safetensors-10GB": (raw(struct.pack("<Q", 10**10) + b'{"a"', 10**10 + 8), "claims 10000000000 bytes"),
    "safetensors-2^63": (raw(struct.pack("<Q", 2**63) + b'{"a":1}'), "claims 9223372036854775808"),
    "safetensors-longer": (raw(struct.pack("<Q", 1000) + b'{"a":1}'), "claims 1000 bytes and the file has"),
    "safetensors-nested": (raw(header('{"a":' + "[" * 10**6)), "not JSON"),
    "safetensors-many": (raw(header("{" + ",".join(f'"{i}":{{}}' for i in range(400_000)) + "}")), "safetensors"),
    "safetensors-shape": (raw(header({"a": entry([2**62, 2**62], [0, 4])})), "place"),
    "safetensors-negative": (raw(header({"a": entry([-1], [0, 4])})), "odd shape"),
    "safetensors-float": (raw(header({"a": entry([1e300], [0, 4])})), "odd shape"),
    "safetensors-outside": (raw(header({"a": entry([1 << 40], [0, 4 << 40])})), "it should have"),
    "safetensors-overlap": (raw(header({"a": entry([1], [0, 4]), "b": entry([1], [0, 4])}) + bytes(4)), "overlaps"),
    "safetensors-type": (raw(header({"a": entry([1], [0, 4], "F31")}) + bytes(4)), "unknown"),
    # rwkv.cpp
    "ggml-dims": (ggml((2**31 - 1, 2**31 - 1, 2**31 - 1, 2**31 - 1)), "cut short"),
    "ggml-negative": (ggml((-8, 4)), "dims"),
    "ggml-number-of-dims": (ggml(count=2**31 - 1), "dims"),
    "ggml-key": (ggml(length=2**31 - 1), "a key of 2147483647"),
    "ggml-vocabulary": (ggml(start=(101, 2**31 - 1, -5, 1, 1)), "make no model"),
    "ggml-type": (ggml(start=(101, 40, 64, 1, 77)), "data type 77"),
    "ggml-half": (ggml(size=100), "cut short"),
    "ggml-cut-index": (ggml(size=40), "cut short"),
    "ggml-header": (raw(b"fmgg" + bytes(8)), "less than a header"),
    # torch
    "pth-bomb": (bomb, "compressed"),
    "pth-packed": (packed, "compressed"),
    "pth-claims": (claimed, "its data has 64 bytes"),
    "pth-calls": (calling, "refused"),
    "pth-old": (raw(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(99), name="x.pth"), "old kind"),
    # cut short
    **{f"half{suffix}": (truncated(0.5, suffix), "") for suffix in (".pth", ".safetensors")},
    **{f"last-byte{suffix}": (truncated(1, suffix), "") for suffix in (".pth", ".safetensors")},
    # several files
    "shard-missing": (index({}, {"0.safetensors": 0, "2.safetensors": 2}), "1.safetensors, is missing"),
    "shard-twice": (index({}, {"0.safetensors": 0, "1.safetensors": 0, "2.safetensors": 2}), "no parts of one model"),
    "shard-elsewhere": (index({"a": "/etc/passwd"}, {}), "no file beside it"),
    "shard-odd": (
        index({"a": "0.safetensors"}, {f"{i}.safetensors": i for i in range(3)}), "0.safetensors, and it is not"
    ),
    "index-text": (raw(b"weights", name="x.safetensors.index.json"), "not JSON"),
    "gguf-shard-missing": (shards((0, 3, 2), (1, 3, 2), names=3), "x-00003-of-00003.gguf, is missing"),
    "gguf-shard-order": (shards((0, 2, 2), (0, 2, 2)), "no parts of one model"),
    "gguf-shard-count": (shards((0, 2, 2), (1, 3, 2)), "no parts of one model"),
    "gguf-shard-total": (shards((0, 2, 5), (1, 2, 5)), "hold 2 tensors and should hold 5"),
    "gguf-shard-name": (shards((0, 3, 2), names=1), "has to be called NAME-00001-of-00003.gguf"),
    "gguf-shard-99999": (gguf(MODEL, pairs=1, name="x-00001-of-99999.gguf"), "at most 512"),
    # no model at all
    "empty": (raw(b""), "the file is empty"),
    "page": (raw(b"<!DOCTYPE html><html>"), "a web page"),
    "lfs": (raw(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "noise": (raw(bytes(range(7, 207))), "neither a torch file nor"),
    "folder": (lambda folder: folder, "a folder without a model"),
    "fifo": (fifo, "not a plain file"),
    "device": (lambda folder: Path("/dev/zero"), "not a plain file"),
}  # fmt: skip


# ---- in the limited process ----------------------------------------------------------------------------------------


def run_all(command: str, folder: Path, good: Path) -> None:
    """Prints [name, exit code or what was raised, standard output, standard error, processor seconds] for each case."""
    import rwkvflow.__main__ as program

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + ROOM, taken + ROOM))
    found = []
    for case in sorted(folder.iterdir()):
        path = json.loads((case / "path.json").read_text())
        words = {
            "inspect": [path],
            "convert": [path, str(folder.parent / "out.bin"), "--format", "ggml-f32"],
            "compare": [path, str(good)],
            "compare-second": [str(good), path],
        }[command]
        sys.argv = ["rwkvflow", command.partition("-")[0], *words]
        out, err = io.StringIO(), io.StringIO()
        start = time.process_time()
        try:
            with redirect_stdout(out), redirect_stderr(err):
                program.main()
            code: object = "it returned"
        except SystemExit as error:
            code = error.code
        except BaseException as error:  # what a user would see as a traceback
            code = f"{type(error).__name__}: {error}"
        found.append([case.name, code, out.getvalue(), err.getvalue(), time.process_time() - start])
    print(json.dumps(found))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder with one for each case, whose path.json names the file; and a good checkpoint."""
    top = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in CASES.items():
        (top / "cases" / name / "x").mkdir(parents=True)
        path = make(top / "cases" / name / "x")
        (top / "cases" / name / "path.json").write_text(json.dumps(str(path)))
    return top / "cases", checkpoints.make(top / "good.pth", "7", **SIZES)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc to know the address space")
@pytest.mark.parametrize("command", ["inspect", "convert", "compare", "compare-second"])
def test_hostile_files(command: str, files: tuple[Path, Path]) -> None:
    code = (
        f"import test_hostile_inputs as t; from pathlib import Path; t.run_all({command!r}, Path({str(files[0])!r}), "
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}Path({str(files[1])!r}))"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout.splitlines()[-1])
    assert {row[0] for row in rows} == set(CASES)
    wrong = []
    for name, code, out, err, seconds in rows:
        lines = err.strip().splitlines()
        if not (code == 1 and not out and len(lines) == 1 and lines[0].startswith("error: ") and CASES[name][1] in err):
            wrong.append(f"{name}: ends with {code}, says {out[:300]}{err[:600]}")
        if seconds > SECONDS:
            wrong.append(f"{name}: takes {seconds:.1f} s")
        if len(err) > 600:
            wrong.append(f"{name}: says too much: {len(err)} characters")
    assert not wrong, "\n".join(wrong)


def test_a_shape_that_no_array_can_have(tmp_path: Path) -> None:
    """Without values it fits into any file."""
    from rwkvflow.worker.errors import WorkerError
    from rwkvflow.worker.read.open import open_checkpoint

    path = raw(header({"a": entry([2**62, 2**62, 0], [0, 0])}))(tmp_path)
    with open_checkpoint(path) as checkpoint, pytest.raises(WorkerError, match="'a' has the absurd shape"):
        checkpoint.read("a")
