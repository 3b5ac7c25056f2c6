"""Where a remote store is: any URL that fsspec knows, or a folder."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from rwkvflow.base.errors import UsageError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def redacted(url: str) -> str:
    """A URL without what may be secret in it."""
    return re.sub(r"(?<=://)[^/@]*@", "", url.split("?", 1)[0])


def of_folder(url: str) -> str:
    """A path as the URL that means the same from every folder; a URL as it is, and so a word that is no folder here."""
    is_path = not _SCHEME.match(url) and url and ("/" in url or Path(url).is_dir())
    return Path(url).expanduser().absolute().as_uri() if is_path else url


def open_url(url: str) -> tuple[Any, str]:
    """The file system and the path in it. Raises UsageError."""
    try:
        import fsspec
    except ImportError as error:
        raise UsageError("a remote store needs fsspec", remedy="pip install fsspec") from error
    if not _SCHEME.match(url):
        raise UsageError(
            f"the remote store {redacted(url)} is no URL",
            remedy="name a folder, or one that fsspec knows, such as s3://bucket/folder",
        )
    try:
        system, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            f"the remote store {redacted(url)} needs a package that is not installed: {error}",
            remedy="for s3://: pip install 'rwkvflow[s3]'; for others, what it names",
        ) from error
    except Exception as error:
        raise UsageError(f"the remote store {redacted(url)} cannot be opened: {type(error).__name__}") from error
    ask_for_no_leave(system)
    return system, str(root).rstrip("/")


def ask_for_no_leave(system: Any) -> None:
    """Let S3's client send a file without waiting for the server's "100 Continue".

    aiohttp waits for that without any time limit: a server that is gone in this moment would keep a run for ever.
    """
    if "s3" not in system.protocol or getattr(system, "session", "") is not None:
        return
    with contextlib.suppress(ImportError, AttributeError):
        from aiobotocore.session import AioSession  # type: ignore[import-not-found, import-untyped, unused-ignore]
        from botocore.handlers import add_expect_header

        session = AioSession(**system.kwargs)
        session.unregister("before-call.s3", add_expect_header)
        system.session = session
