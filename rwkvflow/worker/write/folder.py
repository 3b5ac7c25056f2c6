"""Writes several Layouts as the files of one folder."""

from __future__ import annotations

import shutil
import threading
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rwkvflow.worker.write.file import FileWriter
from rwkvflow.worker.write.layout import Layout, Slot, Written


class FolderWriter:
    """A Writer of a folder. To its users the files are one after another, so slots stand at offsets in all of them.

    A file is open from the first of its bytes to the last, so that a folder of many needs few descriptors.
    """

    def __init__(self, path: Path, layouts: Mapping[str, Layout]) -> None:
        """Makes the folder, which must not be there or be empty. Raises OSError."""
        path.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._layouts = list(layouts.items())
        self._open: dict[int, FileWriter] = {}
        self._done: set[int] = set()
        self._opening = threading.Lock()
        self._aborted = False
        self._starts: list[int] = []
        self.size = 0
        slots: dict[str, list[Slot]] = {}
        remarks: list[str] = []
        for layout in layouts.values():
            self._starts.append(self.size)
            for source, own in layout.slots.items():
                moved = (replace(slot, offset=slot.offset + self.size) for slot in own)
                slots.setdefault(source, []).extend(moved)
            remarks += layout.remarks
            self.size += layout.size
        self.slots: Mapping[str, tuple[Slot, ...]] = {source: tuple(own) for source, own in slots.items()}
        self.remarks = tuple(remarks)

    def write(self, slot: Slot, start: int, data: memoryview) -> None:
        """Put bytes of a slot in their place."""
        index, own = self._place(slot)
        self._file(index).write(own, start, data)

    def put(self, slot: Slot, start: int, data: memoryview) -> None:
        """Take bytes that have been written, for the digests."""
        index, own = self._place(slot)
        file = self._file(index)
        file.put(own, start, data)
        if file.complete:  # and so every write is done
            self._finish(index)

    def _place(self, slot: Slot) -> tuple[int, Slot]:
        """Which file a slot is in, and the slot there."""
        index = bisect_right(self._starts, slot.offset) - 1
        return index, replace(slot, offset=slot.offset - self._starts[index])

    def close(self) -> Written:
        """Finish the artifact. Whoever keeps the folder hashes it."""
        for index in range(len(self._layouts)):
            if index not in self._done:
                self._file(index)
                self._finish(index)
        return Written(self.size, None)

    def abort(self) -> None:
        """Remove what has been written."""
        with self._opening:
            self._aborted = True  # a thread that comes late must not make the folder anew
            for file in self._open.values():
                file.abort()
        shutil.rmtree(self._path, ignore_errors=True)

    def _file(self, index: int) -> FileWriter:
        with self._opening:
            if self._aborted:
                raise OSError(f"{self._path.name} was given up")
            if index not in self._open:
                name, layout = self._layouts[index]
                self._open[index] = FileWriter(self._path / name, layout)
            return self._open[index]

    def _finish(self, index: int) -> None:
        self._open[index].close()
        del self._open[index]
        self._done.add(index)
