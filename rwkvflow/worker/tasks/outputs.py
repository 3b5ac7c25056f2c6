"""Reports a finished file to the host."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rwkvflow.worker.protocol import emit


def finish(job: str, name: str, path: Path) -> None:
    """Hash a complete output file and say that it is there."""
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    emit(output={"job": job, "name": name, "sha256": digest, "size": path.stat().st_size})
