"""Models that are split over several files, read as if these were one.

Three layouts are known, all with the files in one folder:

    *.safetensors.index.json   {"weight_map": {tensor: file}} (transformers), and the .safetensors that it names
    *.bin.index.json           the same with torch files
    NAME-00001-of-00003.gguf   llama.cpp's shards, numbered from 1; each says split.no (from 0), split.count and
                               split.tensors.count (of all shards); the metadata of the model stands in the first

`open_model` takes any of these, the first part, a folder that holds one of them, and a plain file. The Joined that it
gives for several files is a RawFile of all their bytes, one after another, so that a place in it is one number.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from rwkvflow.engine.parts import PART, part_name
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read.rawfile import RawFile, is_there
from rwkvflow.worker.read.torch_file.pth import Index
from rwkvflow.worker.read.torch_file.remedies import GATHERING

MAX_INDEX: Final = 8 << 20  # bytes of an index; one of a hundred thousand tensors
MAX_SHARDS: Final = 512  # file descriptors that are open at once
INDEX_SUFFIXES: Final = (".safetensors.index.json", ".bin.index.json")
shard_name = part_name  # of safetensors, too
_SHARD: Final = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})(\.safetensors|\.bin)", re.DOTALL)
# What a folder may hold, most telling first: where one kind is there, the others are copies of the same model.
_GLOBS: Final = (
    ("*.safetensors.index.json",),
    ("*-00001-of-[0-9][0-9][0-9][0-9][0-9].gguf",),
    ("*.safetensors", "*.st"),
    ("*.gguf",),
    ("*.bin.index.json",),
    ("pytorch_model.bin",),
)


class Joined(RawFile):
    """Several plain files as one. `parts` are the files, `starts` where each begins; `name` is the index's.

    weight_map: tensor to file name, where an index says so; None for GGUF shards, which say it themselves.
    """

    def __init__(self, path: Path, parts: Sequence[Path], weight_map: Mapping[str, str] | None = None) -> None:
        """Raises WorkerError naming the file that is missing or not a plain one."""
        self._begin(path, weight_map)
        try:
            for index, part in enumerate(parts, 1):
                if not is_there(part):
                    raise WorkerError(
                        f"{path}: its part {index} of {len(parts)}, {part.name}, is missing. "
                        "Download or copy it beside the others."
                    )
                self._add(RawFile(part))
        except BaseException:
            self.close()
            raise

    @classmethod
    def of(cls, path: Path, parts: Sequence[RawFile]) -> Joined:
        """Of parts that are open already; closing it closes them."""
        joined = cls.__new__(cls)
        joined._begin(path, None)
        for part in parts:
            joined._add(part)
        return joined

    def _begin(self, path: Path, weight_map: Mapping[str, str] | None) -> None:
        self.path, self.name, self.weight_map = path, path.name, weight_map
        self.parts: list[RawFile] = []
        self.starts: list[int] = []
        self.size = 0

    def _add(self, part: RawFile) -> None:
        self.starts.append(self.size)
        self.parts.append(part)
        self.size += part.size

    def close(self) -> None:
        """Closes all of them."""
        for part in self.parts:
            part.close()

    def into(self, buffer: memoryview, offset: int) -> None:
        """Read bytes of the file into a buffer."""
        done = 0
        while done < len(buffer):
            index = bisect_right(self.starts, offset + done) - 1
            part, within = self.parts[index], offset + done - self.starts[index]
            count = min(len(buffer) - done, part.size - within)
            if count <= 0 and index == len(self.parts) - 1:
                raise WorkerError(f"{self.name}: read past its end")
            part.into(buffer[done : done + count], within)
            done += count


def open_model(path: Path | str) -> RawFile:
    """The file, or the Joined of all files, of the model that `path` names: a file, an index, a first shard, a folder.

    Nothing but an index is read. Raises WorkerError where there is nothing of the kind, or a part is missing.
    """
    path = Path(path)
    try:
        found = _in_folder(path) if path.is_dir() else path
    except (OSError, ValueError) as error:
        raise WorkerError(f"{path}: cannot open it: {getattr(error, 'strerror', None) or error}") from error
    if found.name.endswith(INDEX_SUFFIXES):
        tensors = _weight_map(found)
        names = sorted(set(tensors.values()))
        return Joined(found, [found.with_name(name) for name in names], tensors)
    if (match := PART.fullmatch(found.name)) is not None and int(match[3]) > 1:
        return _gguf(found, match)
    if (match := _SHARD.fullmatch(found.name)) is not None and int(match[3]) > 1:
        index = found.with_name(f"{match[1]}{match[4]}.index.json")
        if index.is_file():  # without one it is read as a file of its own
            _first(found, match, match[4])
            return open_model(index)
    return RawFile(found)


def files_of(path: Path | str) -> list[Path]:
    """The files that hold the tensors of the model at `path`, in order. Raises as open_model."""
    with open_model(path) as file:
        return [part.path for part in file.parts] if isinstance(file, Joined) else [file.path]


def _in_folder(folder: Path) -> Path:
    for globs in _GLOBS:
        found = sorted(path for pattern in globs for path in folder.glob(pattern))
        if len(found) > 1:
            raise WorkerError(
                f"{folder}: a folder with several models ({found[0].name}, {found[1].name}"
                f"{', …' if len(found) > 2 else ''}); name one of the files"
            )
        if found:
            return found[0]
    if _is_deepspeed(folder):
        raise WorkerError(f"{folder}: the folder of a DeepSpeed checkpoint: {GATHERING}")
    if names := sorted(path.name for path in folder.glob("*.pth")):
        some = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        raise WorkerError(f"{folder}: a folder of checkpoints; name one of its files: {some}")
    raise WorkerError(
        f"{folder}: a folder without a model: it holds no .safetensors, no index of them, no .gguf and no "
        "pytorch_model.bin"
    )


def _is_deepspeed(folder: Path) -> bool:
    """Whether DeepSpeed saved it: its script lies there, or parts of the model lie in it or a folder of it."""
    parts = ("*_model_states.pt", "*_optim_states.pt")
    return (folder / "zero_to_fp32.py").is_file() or any(
        next(folder.glob(f"{where}{part}"), None) for part in parts for where in ("", "*/")
    )


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor → file name, checked: files beside the index, and not too many."""
    with RawFile(path) as file:
        if file.size > MAX_INDEX:
            raise WorkerError(f"{path}: broken index: it has {file.size} bytes; no model's has more than {MAX_INDEX}")
        raw = file.bytes_at(0, file.size)
    return weight_map(str(path), raw)


def weight_map(path: str, raw: bytes) -> dict[str, str]:
    """What the index says whose bytes these are; `path` is for messages. Raises WorkerError for what is no index."""

    def bad(what: str) -> WorkerError:
        return WorkerError(f"{path}: broken index: {what}. Download or copy it again.")

    try:
        content = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise bad(f"it is not JSON ({str(error)[:100]})") from error
    found: Any = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found:
        raise bad("it has no weight_map of tensors to files")
    for name, part in found.items():
        if (
            not isinstance(part, str)
            or not part.isprintable()
            or "/" in part
            or "\\" in part
            or part in ("", ".", "..")
        ):
            raise bad(f"it says that {name[:100]!a} is in {str(part)[:100]!a}, which is no file beside it")
    if len(set(found.values())) > MAX_SHARDS:
        raise bad(f"it names {len(set(found.values()))} files; at most {MAX_SHARDS} are read")
    return found


def _first(path: Path, match: re.Match[str], suffix: str = ".gguf") -> None:
    """Raises WorkerError where a file is named as another part than the first."""
    number, count = int(match[2]), int(match[3])
    if number != 1:
        first = shard_name(match[1], 1, count, suffix)
        raise WorkerError(f"{path}: part {number} of {count}; name the first, {first}")


def _gguf(path: Path, match: re.Match[str]) -> RawFile:
    stem, count = match[1], int(match[3])
    _first(path, match)
    if count > MAX_SHARDS:
        raise WorkerError(f"{path}: it would be one of {count} files; at most {MAX_SHARDS} are read")
    return Joined(path, [path.with_name(shard_name(stem, i, count)) for i in range(1, count + 1)])


def merged(file: Joined, reader: Callable[[RawFile], Index]) -> Index:
    """The tensors of all parts, each read with `reader`. Raises WorkerError where they disagree with the index."""
    indexes = [reader(part) for part in file.parts]
    views = {}
    places: dict[str, str] = {}
    changes: dict[str, Callable[[Any], Any]] = {}
    for part, start, index in zip(file.parts, file.starts, indexes, strict=True):
        for name, view in index.views.items():
            if name in places:
                raise WorkerError(
                    f"{file.name}: {name!a} is in {places[name]} and in {part.name}: no parts of one model"
                )
            places[name] = part.name
            views[name] = replace(view, base=view.base + start)
        changes |= index.changes
    for name, wanted in (file.weight_map or {}).items():
        if places.get(name, wanted) != wanted or name not in places:
            raise WorkerError(
                f"{file.name}: it says that {name[:100]!a} is in {wanted}, and it is "
                f"{f'in {places[name]}' if name in places else 'not there'}. Download or copy the files again."
            )
    if file.weight_map is not None and len(places) > len(file.weight_map):
        extra = next(name for name in places if name not in file.weight_map)
        raise WorkerError(f"{file.name}: it says nothing of {extra!a}, which is in {places[extra]}")
    metadata = {key: value for index in indexes for key, value in index.metadata.items()}
    ignored = tuple(dict.fromkeys(name for index in indexes for name in index.ignored))

    def check(on_bytes: Callable[[int], None] | None) -> int:
        return sum(index.check(on_bytes) for index in indexes)

    return Index(views, metadata, ignored, check, changes)
