"""What the hub and its CDN answer: the rows of ROUTES. Reading is here, writing in writing.py."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.standin.storage import Commit, Entry, Repository
from tests.standin.writing import ROUTES as WRITING
from tests.standin.writing import Writing

if TYPE_CHECKING:
    from tests.standin.server import Answer, StandIn

PAGE = 50  # entries of a tree listing
ID = r"(?P<id>[^/]+/[^/]+)"

# (host, methods, path, name of the method below)
ROUTES = (
    ("hub", "GET HEAD", r"/api/whoami-v2", "whoami"),
    ("hub", "GET HEAD", rf"/api/models/{ID}(?:/revision/(?P<rev>[^/]+))?", "info"),
    ("hub", "GET HEAD", rf"/api/models/{ID}/refs", "refs"),
    ("hub", "GET HEAD", rf"/api/models/{ID}/tree/(?P<rev>[^/]+)(?P<path>/.*)?", "tree"),
    ("hub", "POST", rf"/api/models/{ID}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    ("hub", "GET HEAD", rf"/{ID}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    ("cdn", "GET HEAD", r"/lfs/(?P<oid>[0-9a-f]{64})", "blob"),
    *WRITING,
)


class Refusal(Exception):
    """An error answer, with the headers that the client reads."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class HubRoutes(Writing):
    """Stateless: all state is in StandIn.hub."""

    def __init__(self, standin: StandIn) -> None:
        self.standin = standin

    def answer(self, host: str, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer | None:
        """The answer to a request, or None where no route fits."""
        from tests.standin.server import Answer

        parts = urlsplit(target)
        for route_host, methods, pattern, name in ROUTES:
            found = re.fullmatch(pattern, parts.path)
            if route_host == host and method in methods.split() and found:
                values = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                try:
                    result: Answer = getattr(self, name)(values, parse_qs(parts.query), headers, body)
                    return result
                except Refusal as refusal:
                    return Answer.json({"error": refusal.message}, refusal.status, refusal.headers)
        return None

    def user(self, headers: Mapping[str, str]) -> str | None:
        """Who asks. Raises Refusal for a token that nobody has."""
        token = headers.get("authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.standin.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.standin.tokens[token]

    def repository(self, values: Mapping[str, str], headers: Mapping[str, str]) -> Repository:
        """The repository, if it may be seen."""
        user = self.user(headers)
        found = self.standin.hub.repositories.get(values["id"])
        if found is None or (found.private and user not in found.readers):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return found

    def commit(self, repository: Repository, revision: str) -> Commit:
        """The commit of a revision."""
        found = repository.find(revision)
        if found is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def whoami(self, values: Any, query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        user = self.user(headers)
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        return Answer.json({"type": "user", "name": user, "orgs": [], "auth": {"type": "access_token"}})

    def info(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        repository = self.repository(values, headers)
        commit = self.commit(repository, values.get("rev", "main"))
        return Answer.json(
            {
                "id": repository.id,
                "modelId": repository.id,
                "sha": commit.sha,
                "private": repository.private,
                "gated": "auto" if repository.gated else False,
                "siblings": [
                    {"rfilename": path, **({"size": commit.files[path].size} if "blobs" in query else {})}
                    for path in sorted(commit.files)
                ],
                "tags": [],
            }
        )

    def refs(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        repository = self.repository(values, headers)
        rows = {
            "branches": [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
                for name, sha in repository.branches.items()
            ],
            "tags": [
                {"name": name, "ref": f"refs/tags/{name}", "targetCommit": sha} for name, sha in repository.tags.items()
            ],
            "converts": [],
        }
        return Answer.json(rows)

    def tree(
        self, values: dict[str, str], query: dict[str, list[str]], headers: Mapping[str, str], body: bytes
    ) -> Answer:
        from tests.standin.server import Answer

        repository = self.repository(values, headers)
        commit = self.commit(repository, values["rev"])
        start = int(query.get("cursor", ["0"])[0])
        paths = sorted(commit.files)
        rows = [_row(path, commit.files[path]) for path in paths[start : start + PAGE]]
        link = {}
        if start + PAGE < len(paths):
            base = f"{self.standin.endpoint}/api/models/{repository.id}/tree/{values['rev']}"
            link = {"Link": f'<{base}?recursive=true&cursor={start + PAGE}>; rel="next"'}
        return Answer.json(rows, headers=link)

    def paths_info(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        repository = self.repository(values, headers)
        commit = self.commit(repository, values["rev"])
        if headers.get("content-type", "").startswith("application/json"):
            asked = json.loads(body)["paths"]
        else:
            asked = parse_qs(body.decode()).get("paths", [])
        return Answer.json([_row(path, commit.files[path]) for path in asked if path in commit.files])

    def resolve(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        repository = self.repository(values, headers)
        user = self.user(headers)
        if repository.gated and user not in repository.granted:
            raise Refusal(403 if user else 401, f"Access to model {repository.id} is restricted", "GatedRepo")
        commit = self.commit(repository, values["rev"])
        entry = commit.files.get(values["path"])
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        told = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if entry.lfs:
            told |= {"ETag": f'"{entry.oid}"', "X-Linked-ETag": f'"{entry.oid}"', "X-Linked-Size": str(entry.size)}
            signature = f"{self.standin.cdn}/lfs/{entry.oid}?X-Signature=signed-for-this-request"
            return Answer(302, b"", {**told, "Location": signature})
        told |= {"ETag": f'"{entry.blob_id}"', "Content-Type": "text/plain; charset=utf-8"}
        return Answer(200, self.standin.hub.read(entry.oid) or b"", told, ranges=True)

    def blob(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        data = self.standin.hub.read(values["oid"])
        if "authorization" in headers:
            return Answer(400, b"<Error>only one auth mechanism allowed</Error>")  # as S3 does
        if data is None:
            return Answer(404, b"<Error>NoSuchKey</Error>")
        told = {"ETag": f'"cdn-{values["oid"][:16]}"', "Content-Type": "application/octet-stream"}
        return Answer(200, data, told, ranges=True)


def _row(path: str, entry: Entry) -> dict[str, Any]:
    row: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.blob_id}
    if entry.lfs:
        row["lfs"] = {"oid": entry.oid, "size": entry.size, "pointerSize": 134}
    return row
