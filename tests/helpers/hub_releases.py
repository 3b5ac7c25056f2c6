"""Two releases, old and new, and how tests publish them to the stand-in hub and see what it holds."""

from __future__ import annotations

from rwkvflow.net.progress import Told
from rwkvflow.publish.base import Published
from rwkvflow.publish.hub import HubOptions, HubPublisher
from tests.helpers.publishing import POLICY, contents, release
from tests.standin import Repository, StandIn

TOKEN = "hf_plantedPLANTEDplanted0123456789"  # noqa: S105 - of nobody
REPO = "me/models"
OLD = {
    "tiny7/tiny7-Q5_1.bin": b"five" * 5000,
    "tiny7/tiny7.safetensors": b"safe" * 4000,
    "tiny7/smoke/tiny7-Q5_1.bin.json": b'{"passed": true}\n',
    "gone/gone.bin": b"gone" * 100,
}
NEW = {
    "tiny7/tiny7-Q5_1.bin": b"FIVE" * 5000,
    "tiny7/tiny7.safetensors": OLD["tiny7/tiny7.safetensors"],
    "tiny7/smoke/tiny7-Q5_1.bin.json": b'{"passed": true, "again": 1}\n',
    "added/added.gguf": b"gguf" * 3000,
}


def publish(files: dict[str, bytes], *, told: Told | None = None, repo: str = REPO, **options: object) -> Published:
    return HubPublisher(repo, HubOptions(**options), POLICY).apply(release(files), told or Told())  # type: ignore[arg-type]


def holds(repository: Repository, files: dict[str, bytes], revision: str = "main") -> bool:
    """Whether a commit holds exactly this release, besides .gitattributes."""
    there: dict[str, bytes] = repository.contents(revision)
    there.pop(".gitattributes", None)
    return there == contents(release(files))


def commits(net: StandIn) -> int:
    return len(net.requests("POST", path="/commit/"))


def uploads(net: StandIn) -> int:
    return len(net.requests("PUT", host="cdn"))
