"""Writes several Layouts as the files of one folder."""

from __future__ import annotations

import shutil
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rwkvflow.worker.formats.base import Layout, Slot, Written
from rwkvflow.worker.formats.file import FileWriter


class FolderWriter:
    """A Writer of a folder. To its users the files are one after another, so slots stand at offsets in all of them."""

    def __init__(self, path: Path, layouts: Mapping[str, Layout]) -> None:
        """Makes the folder, which must not be there or be empty. Raises OSError."""
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._files: list[FileWriter] = []
        self._starts: list[int] = []
        self.size = 0
        slots: dict[str, list[Slot]] = {}
        remarks: list[str] = []
        try:
            for name, layout in layouts.items():
                self._starts.append(self.size)
                self._files.append(FileWriter(path / name, layout))
                for source, own in layout.slots.items():
                    moved = (replace(slot, offset=slot.offset + self.size) for slot in own)
                    slots.setdefault(source, []).extend(moved)
                remarks += layout.remarks
                self.size += layout.size
        except BaseException:
            self.abort()
            raise
        self.slots: Mapping[str, tuple[Slot, ...]] = {source: tuple(own) for source, own in slots.items()}
        self.remarks = tuple(remarks)

    def write(self, slot: Slot, start: int, data: memoryview) -> None:
        """See Writer."""
        file, own = self._place(slot)
        file.write(own, start, data)

    def put(self, slot: Slot, start: int, data: memoryview) -> None:
        """See Writer."""
        file, own = self._place(slot)
        file.put(own, start, data)

    def _place(self, slot: Slot) -> tuple[FileWriter, Slot]:
        index = bisect_right(self._starts, slot.offset) - 1
        return self._files[index], replace(slot, offset=slot.offset - self._starts[index])

    def close(self) -> Written:
        """See Writer. Whoever keeps the folder hashes it."""
        for file in self._files:
            file.close()
        return Written(self.size, None)

    def abort(self) -> None:
        """See Writer."""
        for file in self._files:
            file.abort()
        shutil.rmtree(self._path, ignore_errors=True)
