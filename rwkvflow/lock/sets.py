"""Which files a source stands for that names the first part of a model in several: see engine/parts."""

from __future__ import annotations

from collections.abc import Callable, Collection

from rwkvflow.base.errors import FetchError, UsageError
from rwkvflow.documents.sources import parse_source
from rwkvflow.engine.parts import FileSet, set_named
from rwkvflow.net.http import Connection
from rwkvflow.net.remote import Listing, remote_of
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.read import shards

MOST = 512  # files of a set, as many as are opened at once


def set_begun(text: str, name: str) -> FileSet | None:
    """The set of the file that a source names, which has to be the first of it; None for one that stands alone.

    Raises UsageError for another part.
    """
    found = set_named(name)
    if found is None:
        return None
    if found.count > MOST:
        raise UsageError(f"{text} would be one of {found.count} files; at most {MOST} are read")
    if found.number != 1:
        raise UsageError(
            f"{text} is part {found.number} of {found.count} of a model", remedy=f"name the first: {found.names[0]}"
        )
    return found


def listing_beside(text: str, connection: Connection) -> Listing | None:
    """The files beside the one that a source elsewhere names; None where its server lists none. Raises FetchError."""
    source = parse_source(text)
    if not source.folders:
        return None
    return remote_of(parse_source(text.rpartition("/")[0], folder=True)).listing(connection)


def files_of_set(
    text: str, begun: FileSet, names: Collection[str] | None, read: Callable[[str], bytes], beside: Collection[str] = ()
) -> list[str]:
    """The files of a set, of which an index is read: its parts, the index, and those of `beside` that are there.

    names: the files where it lies, None where nobody lists them. Raises FetchError that names a part which is missing.
    """
    wanted = list(begun.names)
    if begun.index is not None:
        _refuse_missing(text, begun, [begun.index], names)
        try:
            wanted = sorted(set(shards.weight_map(begun.index, read(begun.index)).values()))
        except WorkerError as error:
            raise FetchError(f"{text}: {error}") from error
        if begun.names[0] not in wanted:
            raise FetchError(f"{text}: {begun.index} beside it names {wanted[0]}, and is another model's")
    _refuse_missing(text, begun, wanted, names)
    if begun.index is not None:
        wanted += [begun.index, *(name for name in beside if names is not None and name in names)]
    return wanted


def _refuse_missing(text: str, begun: FileSet, wanted: list[str], names: Collection[str] | None) -> None:
    missing = [name for name in wanted if names is not None and name not in names]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FetchError(
            f"{text}: {begun.place_of(missing[0])}{more}, is missing where it lies",
            remedy="all parts of a model have to lie beside one another",
        )
