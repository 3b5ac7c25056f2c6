"""What the stand-in hub does with everything that writes: repositories, LFS, commits, tags, branches."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.standin.storage import ConflictError, Entry, Repository

if TYPE_CHECKING:
    from tests.standin.server import Answer, StandIn

ID = r"(?P<id>[^/]+/[^/]+)"
ATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
REGULAR_MOST = 10 << 20  # bytes of a file that may be inlined in a commit

ROUTES = (
    ("hub", "POST", r"/api/repos/create", "create"),
    ("hub", "POST", r"/api/validate-yaml", "validate_yaml"),
    ("hub", "POST", rf"/api/models/{ID}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("hub", "POST", rf"/{ID}\.git/info/lfs/objects/batch", "batch"),
    ("hub", "POST", rf"/{ID}\.git/info/lfs/complete/(?P<oid>[0-9a-f]{{64}})", "complete"),
    ("hub", "POST", rf"/{ID}\.git/info/lfs/verify", "verify"),
    ("hub", "POST", rf"/api/models/{ID}/commit/(?P<rev>[^/]+)", "write_commit"),
    ("hub", "POST", rf"/api/models/{ID}/tag/(?P<rev>[^/]+)", "tag"),
    ("hub", "POST", rf"/api/models/{ID}/branch/(?P<name>[^/]+)", "branch"),
    ("cdn", "PUT", rf"/upload/{ID}/(?P<oid>[0-9a-f]{{64}})(?:/(?P<part>\d+))?", "put"),
)


class Writing:
    """Mixed into HubRoutes."""

    standin: StandIn

    def writable(self, values: Mapping[str, str], headers: Mapping[str, str]) -> Repository:
        """The repository, if the one who asks may write to it."""
        from tests.standin.hub import Refusal

        user = self.user(headers)  # type: ignore[attr-defined]
        repository: Repository = self.repository(values, headers)  # type: ignore[attr-defined]
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user not in repository.writers | {repository.id.split("/")[0]}:
            raise Refusal(403, f"You don't have the rights to write to {repository.id}")
        return repository

    def create(self, values: Any, query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.hub import Refusal
        from tests.standin.server import Answer

        asked = json.loads(body)
        user = self.user(headers)  # type: ignore[attr-defined]
        owner = asked.get("organization") or user
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if owner != user:
            raise Refusal(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        name = f"{owner}/{asked['name']}"
        with self.standin.hub.lock:
            if name in self.standin.hub.repositories:
                return Answer.json(
                    {"error": "You already created this model repo", "url": f"{self.standin.endpoint}/{name}"}, 409
                )
            repository = self.standin.hub.create(name, private=asked.get("visibility") == "private")
            repository.readers.add(owner)
            repository.commit({".gitattributes": ATTRIBUTES}, summary="initial commit", lfs={".gitattributes": False})
        return Answer.json({"url": f"{self.standin.endpoint}/{name}", "name": name, "id": name})

    def validate_yaml(self, values: Any, query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        import yaml

        from tests.standin.server import Answer

        found = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
        try:
            front = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError:
            front = "broken"
        if found and not isinstance(front, dict):
            return Answer.json({"errors": [{"message": "the front matter is no mapping"}], "warnings": []}, 400)
        return Answer.json({"errors": [], "warnings": [] if front else [{"message": "empty or missing yaml metadata"}]})

    def preupload(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.hub import Refusal
        from tests.standin.server import Answer

        repository = self.writable(values, headers)
        commit = self.commit(repository, values["rev"])  # type: ignore[attr-defined]
        attributes = commit.files.get(".gitattributes")
        text = (self.standin.hub.read(attributes.oid) or b"").decode() if attributes else ""
        suffixes = tuple(re.findall(r"^\*(\.\S+) filter=lfs", text, re.MULTILINE))
        asked = json.loads(body)["files"]
        if len(asked) > 256:
            raise Refusal(413, "too many files")
        rows = []
        for file in asked:
            there = commit.files.get(file["path"])
            lfs = file["path"].endswith(suffixes) if suffixes else False
            lfs = lfs or file["size"] > REGULAR_MOST
            rows.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if lfs else "regular",
                    "shouldIgnore": False,
                    **({"oid": there.oid if there.lfs else there.blob_id} if there else {}),
                }
            )
        return Answer.json({"files": rows})

    def batch(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        repository = self.writable(values, headers)
        base = f"{self.standin.endpoint}/{repository.id}.git/info/lfs"
        rows = []
        for item in json.loads(body)["objects"]:
            row: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["size"] == 0:
                row["error"] = {"code": 422, "message": "empty objects cannot be stored"}
            elif item["oid"] not in repository.uploaded:
                href = f"{self.standin.cdn}/upload/{repository.id}/{item['oid']}"
                upload: dict[str, Any] = {"href": f"{href}?X-Signature=for-one"}
                if item["size"] > self.standin.multipart_from:
                    count = -(-item["size"] // self.standin.part_size)
                    parts = {f"{part:05}": f"{href}/{part}?X-Signature=for-{part}" for part in range(1, count + 1)}
                    upload = {
                        "href": f"{base}/complete/{item['oid']}",
                        "header": {"chunk_size": str(self.standin.part_size), **parts},
                    }
                row["actions"] = {"upload": upload, "verify": {"href": f"{base}/verify", "header": {}}}
            rows.append(row)
        return Answer.json({"transfer": "basic", "objects": rows})

    def put(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.server import Answer

        if "authorization" in headers:
            return Answer(400, b"<Error>only one auth mechanism allowed</Error>")
        repository = self.standin.hub.repositories[values["id"]]
        if "part" in values:
            with self.standin.hub.lock:
                repository.parts.setdefault(values["oid"], {})[int(values["part"])] = body
            return Answer(200, headers={"ETag": f'"part-{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'})
        return Answer(200 if self._keep(repository, values["oid"], body) else 400)

    def complete(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        """No authorization: the client sends none, the address is what the batch call gave away."""
        from tests.standin.server import Answer

        repository = self.standin.hub.repositories[values["id"]]
        parts = repository.parts.get(values["oid"], {})
        told = [(part["partNumber"], part["etag"]) for part in json.loads(body)["parts"]]
        etag = {n: f'"part-{hashlib.md5(data, usedforsecurity=False).hexdigest()}"' for n, data in parts.items()}
        if told != sorted(etag.items()) or json.loads(body)["oid"] != values["oid"]:
            return Answer.json({"error": "invalid parts"}, 400)
        if not self._keep(repository, values["oid"], b"".join(parts[number] for number in sorted(parts))):
            return Answer.json({"error": "the object has another sha256"}, 400)
        repository.parts.pop(values["oid"], None)
        return Answer.json({"success": True})

    def _keep(self, repository: Repository, oid: str, data: bytes) -> bool:
        if hashlib.sha256(data).hexdigest() != oid:
            return False
        with self.standin.hub.lock:
            self.standin.hub.entry(data, True)
            repository.uploaded.add(oid)
        return True

    def verify(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.hub import Refusal
        from tests.standin.server import Answer

        repository = self.writable(values, headers)
        asked = json.loads(body)
        data = self.standin.hub.read(asked["oid"]) if asked["oid"] in repository.uploaded else None
        if data is None or len(data) != asked["size"]:
            raise Refusal(404, "the object was not uploaded")
        return Answer.json({})

    def write_commit(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        from tests.standin.hub import Refusal
        from tests.standin.server import Answer

        repository = self.writable(values, headers)
        summary, parent = "", None
        changes: dict[str, Entry | None] = {}
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "header":
                    summary, parent = value["summary"], value.get("parentCommit")
                case "file":
                    data = base64.b64decode(value["content"])
                    changes[value["path"]] = self.standin.hub.entry(data, False)
                case "lfsFile":
                    stored = self.standin.hub.read(value["oid"])
                    if value["oid"] not in repository.uploaded or stored is None or len(stored) != value["size"]:
                        raise Refusal(400, f"LFS object {value['oid']} was never uploaded")
                    changes[value["path"]] = self.standin.hub.entry(stored, True)
                case "deletedFile":
                    changes[value["path"]] = None
        if values["rev"] not in repository.branches:
            raise Refusal(404, f"Invalid rev id: {values['rev']}", "RevisionNotFound")
        try:
            sha = repository.commit_entries(changes, branch=values["rev"], parent=parent, summary=summary)
        except ConflictError:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.") from None
        url = f"{self.standin.endpoint}/{repository.id}/commit/{sha}"
        return Answer.json({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def tag(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        return self._ref(values, headers, "tags", json.loads(body)["tag"], values["rev"])

    def branch(self, values: dict[str, str], query: Any, headers: Mapping[str, str], body: bytes) -> Answer:
        return self._ref(
            values, headers, "branches", values["name"], json.loads(body or b"{}").get("startingPoint", "main")
        )

    def _ref(self, values: Mapping[str, str], headers: Mapping[str, str], kind: str, name: str, at: str) -> Answer:
        from tests.standin.hub import Refusal
        from tests.standin.server import Answer

        repository = self.writable(values, headers)
        commit = self.commit(repository, at)  # type: ignore[attr-defined]
        with self.standin.hub.lock:
            refs = getattr(repository, kind)
            if name in refs:
                raise Refusal(409, f"Reference {name} already exists")
            refs[name] = commit.sha
        return Answer.json({})
