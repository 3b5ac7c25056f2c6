"""Publish to a repository of the Hugging Face Hub: one commit that holds the whole release, then a tag.

Everything is decided by comparing the branch with the release. So whatever became of an earlier attempt (killed,
answer lost, somebody else did the same), the next one goes on from what is there, and where nothing is left to do,
nothing is done. The commit names its parent: the branch changes from one whole release to the next or not at all.

Files that are in the repository and in no release of ours stay. Files of the release before (its SHA256SUMS lists
them) that are not in this one are removed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rwkvflow.base.errors import PublishError
from rwkvflow.base.hashing import CHUNK
from rwkvflow.base.text import bytes_text
from rwkvflow.documents.destinations import HubDestination
from rwkvflow.net.http import Policy, TemporaryProblemError
from rwkvflow.net.progress import Told
from rwkvflow.publish.base import Changes, FileChange, Given, Proven, Published, refuse_others
from rwkvflow.publish.hub_calls import Addition, ConflictError, Head, HubCalls, RemoteFile
from rwkvflow.release.artifacts import ReleaseFile, from_bytes
from rwkvflow.release.names import CARD, PROVENANCE, SIGNATURE, SUMS
from rwkvflow.release.provenance.statement import stated_name
from rwkvflow.release.release import Release
from rwkvflow.release.sums import parse_sums

LARGEST = 50 * 10**9  # bytes; downloads of more are refused by the hub outside xet
ATTRIBUTES = ".gitattributes"
REPLACEABLE = frozenset({CARD, ATTRIBUTES})  # what the hub's own page puts into a new repository
MOST_CONFLICTS = 10  # commits of others that may come between before we give up


@dataclass(frozen=True)
class HubOptions:
    """What a recipe may say besides the repository. `private` None: as it is, or the account's default."""

    branch: str = "main"
    private: bool | None = None
    tag: str | None = None


@dataclass(frozen=True)
class _Plan:
    """What lacks at a commit."""

    head: Head
    there: Mapping[str, RemoteFile]
    wanted: Mapping[str, ReleaseFile]
    writes: tuple[str, ...]
    deletes: tuple[str, ...]

    @property
    def done(self) -> bool:
        return not self.writes and not self.deletes


def publisher(place: HubDestination, given: Given) -> HubPublisher:
    """As HubDestination names it."""
    branch = place.branch or given.options.get("branch") or "main"
    return HubPublisher(place.repo, HubOptions(branch, given.options.get("private"), given.options.get("tag")))


class HubPublisher:
    """hf://owner/name."""

    def __init__(self, repo: str, options: HubOptions | None = None, policy: Policy | None = None) -> None:
        self.repo, self.options, self.policy = repo, options or HubOptions(), policy or Policy()
        self._proven = Proven()

    def plan(self, release: Release) -> Changes:
        """What would be committed on top of the branch as it is now."""
        refuse_too_large(release)
        calls = HubCalls(self.repo, self.policy, Told())
        tag, notes = self._tag(release), []
        head = self._head(calls)
        if head is None:
            kind = "private repository" if self.options.private else "repository"
            notes.append(f"creates the {kind}" if calls.exists() is None else f"creates branch {self.options.branch}")
            wanted = _wanted(release, b"")
            plan = _Plan(Head("", False), {}, wanted, tuple(wanted), ())
        else:
            plan = self._compare(calls, release, head)
        if not self._standing_tag(calls, tag, plan.wanted, known=head is not None):
            notes.append(f"sets the tag {tag}")
        changes = [
            FileChange("replace" if path in plan.there else "add", path, plan.wanted[path].size) for path in plan.writes
        ]
        changes += [FileChange("delete", path) for path in plan.deletes]
        return Changes(self._to(), tuple(changes), len(plan.wanted) - len(plan.writes), tuple(notes))

    def apply(self, release: Release, told: Told) -> Published:
        """Commit what lacks, tag it, read it back. Raises PublishError with what to do."""
        refuse_too_large(release)
        calls = HubCalls(self.repo, self.policy, told)
        head = self._ready(calls)
        tag = self._tag(release)
        tagged = self._standing_tag(calls, tag, _wanted(release, b""), known=True)
        plan = self._compare(calls, release, head)
        before = plan
        if not plan.done:
            plan = self._commit(calls, release, plan)
            self._verify(calls, plan, before.writes)
        if not tagged:
            calls.tag(tag, plan.head.commit)
            self._standing_tag(calls, tag, plan.wanted, known=True)
        facts = {
            "commit": plan.head.commit,
            "tag": tag,
            "files": str(len(release.files)),
            "changed": str(len(before.writes) + len(before.deletes)),
        }
        return Published(f"hf://{self.repo}@{tag}", facts)

    # ---- before ------------------------------------------------------------------------------------------------

    def _to(self) -> str:
        return f"hf://{self.repo}" + (f"@{self.options.branch}" if self.options.branch != "main" else "")

    def _tag(self, release: Release) -> str:
        """The recipe's tag, or one that says which release it is."""
        return self.options.tag or f"release-{_sums(release).digest.removeprefix('sha256:')[:12]}"

    def _head(self, calls: HubCalls) -> Head | None:
        head = calls.head(self.options.branch)
        if head is not None and self.options.private not in (None, head.private):
            is_, is_to_be = ("private", "public") if head.private else ("public", "private")
            raise PublishError(
                f"hf://{self.repo} is {is_}, and the recipe says that it is to be {is_to_be}",
                remedy=f"change it at {calls.page}/settings, or change `private` in the recipe",
            )
        return head

    def _ready(self, calls: HubCalls) -> Head:
        """The branch, made where it is not there."""
        head = self._head(calls)
        if head is None:
            if calls.exists() is None:
                calls.told.log(f"creating {calls.page}")
                calls.create(self.options.private)
                head = self._head(calls)
            if head is None and self.options.branch != "main" and (main := calls.head("main")):
                calls.branch(self.options.branch, main.commit)
                head = self._head(calls)
        if head is None:
            raise PublishError(
                f"hf://{self.repo} has no commit on {self.options.branch} to build upon",
                remedy=f"make a first commit at {calls.page}, e.g. of a README.md",
            )
        return head

    def _standing_tag(self, calls: HubCalls, tag: str, wanted: Mapping[str, ReleaseFile], *, known: bool) -> bool:
        """Whether the tag is there and holds this release. Raises PublishError where it holds something else."""
        commit = calls.tags().get(tag) if known else None
        if commit is None:
            return False
        there = calls.tree(commit)
        wrong = [path for path, file in wanted.items() if path != ATTRIBUTES and not _same(file, there.get(path))]
        if wrong:
            raise PublishError(
                f"hf://{self.repo} has a tag {tag} already, of commit {commit[:12]}, which holds another release "
                f"({wrong[0]}{f' and {len(wrong) - 1} more files' if len(wrong) > 1 else ''} differ)",
                remedy="give this release another tag in the recipe, or leave `tag` out",
            )
        return True

    # ---- what lacks --------------------------------------------------------------------------------------------

    def _compare(self, calls: HubCalls, release: Release, head: Head) -> _Plan:
        there = calls.tree(head.commit)
        attributes = calls.read(ATTRIBUTES, head.commit) if ATTRIBUTES in there else b""
        wanted = _wanted(release, attributes)
        writes = tuple(path for path, file in wanted.items() if not _same(file, there.get(path)))
        is_release = SUMS in there and PROVENANCE in there
        foreign = [path for path in writes if path in there and path not in REPLACEABLE]
        if foreign and not is_release:
            raise PublishError(
                f"hf://{self.repo} has a {foreign[0]} that rwkvflow did not publish, and the release has another one",
                remedy="publish to a new repository, or remove or rename that file there first",
            )
        deletes: list[str] = []
        if is_release and writes:
            refuse_others(self._to(), stated_name(calls.read(PROVENANCE, head.commit)), release)
            old, problems = parse_sums(calls.read(SUMS, head.commit).decode("utf-8", "replace"))
            before = {*old, SUMS, SIGNATURE} if not problems else set()
            added = [path for path in foreign if path not in before and before]
            if added:
                raise PublishError(
                    f"{self._to()} has a {added[0]} that is no file of the release there, and the new one has it, too",
                    remedy="remove or rename that file there first, or publish to another repository",
                )
            deletes = sorted(path for path in before if path in there and path not in wanted)
        return _Plan(head, there, wanted, writes, tuple(deletes))

    # ---- the commit --------------------------------------------------------------------------------------------

    def _commit(self, calls: HubCalls, release: Release, plan: _Plan) -> _Plan:
        """Commit until nothing lacks. Returns the plan that proves it: of the head, with nothing left to do."""
        conflicts, patience = 0, calls.patience()
        while not plan.done:
            calls.told.check()
            problem: Exception
            try:
                made = self._attempt(calls, release, plan)
            except (TemporaryProblemError, ConflictError) as error:
                problem = error
            else:
                return self._compare(calls, release, Head(made, plan.head.private))
            now = self._ready(calls)
            if now.commit != plan.head.commit:
                after = self._compare(calls, release, now)
                conflicts += 1
                if not after.done:
                    self._allow(calls, plan, after, conflicts)
                    calls.told.log(f"somebody else committed {now.commit[:12]} meanwhile; publishing on top of it")
                plan = after
            else:
                temporary = problem if isinstance(problem, TemporaryProblemError) else None
                patience.failed(temporary or TemporaryProblemError(str(problem)))
        return plan

    def _attempt(self, calls: HubCalls, release: Release, plan: _Plan) -> str:
        for path in plan.writes:
            self._proven.check(plan.wanted[path])
        total = sum(plan.wanted[path].size for path in plan.writes)
        sent: dict[str, int] = {}

        def on_bytes(path: str, position: int) -> None:
            sent[path] = max(sent.get(path, 0), position)
            calls.told.progress(min(sum(sent.values()), total), total)

        calls.told.progress(0, total)
        made = calls.commit(
            [_addition(plan.wanted[path]) for path in plan.writes],
            plan.deletes,
            branch=self.options.branch,
            parent=plan.head.commit,
            message=(f"Publish {release.name}", f"Made by rwkvflow. {SUMS}: {_sums(release).digest}"),
            on_bytes=on_bytes,
        )
        calls.told.progress(total, total)
        return made

    def _allow(self, calls: HubCalls, mine: _Plan, now: _Plan, conflicts: int) -> None:
        """Go on after somebody else's commit, unless it touched what this release is made of."""
        ours = {*mine.wanted, *mine.deletes} - {ATTRIBUTES}
        theirs = [
            path
            for path in sorted(ours)
            if mine.there.get(path) != now.there.get(path) and (path in now.writes or path in now.deletes)
        ]
        if not theirs and conflicts < MOST_CONFLICTS:
            return
        if not theirs:
            raise PublishError(
                f"hf://{self.repo}: {conflicts} commits of others came between", remedy="run again when it is quiet"
            )
        more = f" and {len(theirs) - 1} more files of the release" if len(theirs) > 1 else ""
        raise PublishError(
            f"hf://{self.repo}: somebody else changed {theirs[0]}{more} in commit {now.head.commit[:12]} while "
            f"this was publishing; their version stands, and this release was not published over it",
            remedy=f"look at {calls.page}/commits/{self.options.branch}; to publish over it, run again",
        )

    # ---- after -------------------------------------------------------------------------------------------------

    def _verify(self, calls: HubCalls, plan: _Plan, written: tuple[str, ...]) -> None:
        """Read back: LFS files by the sha256 that the hub tells, the others by their bytes."""
        wrong = [path for path, file in plan.wanted.items() if not _same(file, plan.there.get(path))]
        wrong += [path for path in plan.deletes if path in plan.there]
        for path in written:
            remote = plan.there.get(path)
            if path in wrong or remote is None or remote.sha256 is not None:
                continue
            data = calls.read(path, plan.head.commit)
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != plan.wanted[path].digest:
                wrong.append(path)
        if wrong:
            raise PublishError(
                f"hf://{self.repo}: commit {plan.head.commit[:12]} does not hold what was sent: {', '.join(wrong[:5])}",
                remedy=f"look at {calls.page}/tree/{plan.head.commit}; a .gitignore there keeps files out. "
                "Then run again",
            )


def refuse_too_large(release: Release) -> None:
    """Raise PublishError for a file that the hub would store but let nobody download."""
    for file in release.files:
        if file.size > LARGEST:
            size, most = bytes_text(file.size), bytes_text(LARGEST)
            raise PublishError(
                f"{file.path} has {size}, and the hub serves no file of more than {most}",
                remedy="leave its format out of this recipe, or publish it to a folder or a bucket",
            )


def _sums(release: Release) -> ReleaseFile:
    return next(file for file in release.files if file.path == SUMS)


def _wanted(release: Release, attributes: bytes) -> dict[str, ReleaseFile]:
    """Path → file; .gitattributes first, completed from what is there."""
    first = from_bytes(ATTRIBUTES, lfs_attributes(attributes))
    return {file.path: file for file in (first, *release.files)}


def weight_suffixes() -> tuple[str, ...]:
    """File name endings that go to LFS whatever their size."""
    from rwkvflow.worker.formats import FORMATS

    found = {f".{entry.suffix.rpartition('.')[2]}" for entry in FORMATS.values() if "." in entry.suffix}
    return tuple(sorted(found | {".bin", ".gguf", ".pth", ".safetensors"}))


def lfs_attributes(existing: bytes) -> bytes:
    """.gitattributes with LFS patterns for all weights; what stands there stays as it is."""
    text = existing.decode("utf-8", "surrogateescape")
    has = {line.split()[0] for line in text.splitlines() if line.split() and "filter=lfs" in line.split()}
    if text and not text.endswith("\n"):
        text += "\n"
    missing = (f"*{suffix}" for suffix in weight_suffixes() if f"*{suffix}" not in has)
    text += "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in missing)
    return text.encode("utf-8", "surrogateescape")


def _addition(file: ReleaseFile) -> Addition:
    weights = file.path.endswith(weight_suffixes()) and file.size > 0  # empty files cannot go to LFS
    source = file.source if isinstance(file.source, bytes) else str(file.source)
    return Addition(file.path, source, file.digest.removeprefix("sha256:"), True if weights else None)


def _same(file: ReleaseFile, remote: RemoteFile | None) -> bool:
    if remote is None:
        return False
    if remote.sha256 is not None:
        return f"sha256:{remote.sha256}" == file.digest
    return remote.size == file.size and remote.blob_id == git_blob_id(file)


def git_blob_id(file: ReleaseFile) -> str:
    """SHA-1 over "blob <size>\\0" and the bytes, as git names them."""
    digest = hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    for chunk in _chunks(file):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: ReleaseFile) -> Iterator[bytes]:
    if isinstance(file.source, bytes):
        yield file.source
        return
    with file.source.open("rb", buffering=0) as opened:
        while chunk := opened.read(CHUNK):
            yield chunk
