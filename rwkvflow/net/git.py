"""Engine sources from git: which commit a ref is, and a commit's files without any git beside them.

The git program is used, with an environment in which it asks nothing, runs no hooks and filters of the repository,
and speaks https, ssh and file only. The user's credential helpers, proxies and certificates still apply.
"""

from __future__ import annotations

import os
import re
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rwkvflow.base import process
from rwkvflow.base.errors import EnvironmentMissing, FetchError, Interrupted, LockError
from rwkvflow.base.files import no_space, remove
from rwkvflow.documents.sources import COMMIT, git_url, local_repository
from rwkvflow.documents.yaml.nearest import did_you_mean
from rwkvflow.net.http import scrub
from rwkvflow.worker.build.space import DiskSpace

TIMEOUT_S = 3600.0
_REF = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./+-]{0,200}")
_HARDENED = (
    ("core.hooksPath", os.devnull),
    ("core.fsmonitor", "false"),
    ("core.symlinks", "true"),
    ("protocol.allow", "never"),
    ("protocol.https.allow", "always"),
    ("protocol.ssh.allow", "always"),
    ("fetch.recurseSubmodules", "false"),
    ("submodule.recurse", "false"),
    ("core.autocrlf", "false"),
    ("core.eol", "lf"),
    ("filter.lfs.smudge", ""),
    ("filter.lfs.process", ""),
    ("filter.lfs.required", "false"),
    ("gc.auto", "0"),
    ("advice.detachedHead", "false"),
)


def resolve_git(url: str, ref: str | None, *, cwd: Path | None = None, cancel: threading.Event | None = None) -> str:
    """The commit (40 hex digits) of a branch, a tag or, for None, of the default branch.

    Annotated tags give the commit they point to. Raises LockError where there is no such ref, FetchError where the
    repository cannot be read.
    """
    url = git_url(url)
    if ref is not None and COMMIT.fullmatch(ref):
        return ref
    if ref is not None and (not _REF.fullmatch(ref) or ".." in ref):
        raise LockError(f"{ref!r} is not a git ref", remedy="name a branch, a tag or a full commit hash")
    lines = _git(["ls-remote", "--", url], url, cwd=cwd, timeout=120, cancel=cancel)
    rows = [line.split("\t", 1) for line in lines if "\t" in line]
    refs = {name: commit for commit, name in rows if COMMIT.fullmatch(commit)}
    wanted = ["HEAD"] if ref is None else [f"refs/tags/{ref}^{{}}", f"refs/tags/{ref}", f"refs/heads/{ref}", ref]
    for name in wanted:
        if name in refs:
            return refs[name]
    names = [re.sub(r"^refs/(heads|tags)/", "", name) for name in refs if not name.endswith("^{}")]
    raise LockError(
        f"{scrub(url)} has no branch or tag {ref or 'HEAD'!r}{did_you_mean(ref or '', names)}",
        remedy="name a branch, a tag or a full commit hash",
    )


def fetch_git(
    url: str,
    commit: str,
    destination: Path,
    *,
    submodules: bool | Sequence[str] = False,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
) -> str:
    """Put the files of a commit into `destination` (made anew, without .git); returns the commit.

    `submodules`: all of them and theirs, or those at these paths alone. One of a repository on this machine may have
    its submodules on this machine; of no other. `cwd` is where relative repository paths start.
    Raises FetchError, EnvironmentMissing without git, StoreError for a full disk, Interrupted.
    """
    url = git_url(url)
    if not COMMIT.fullmatch(commit):
        raise FetchError(f"{commit!r} is not a full commit hash")
    if "://" not in url and ":" not in url:
        url = str(((cwd or Path.cwd()) / Path(url).expanduser()).resolve())
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".git-", dir=destination.parent) as folder:
        clone = Path(folder) / "source"

        local = local_repository(url) is not None

        def git(*arguments: str) -> list[str]:
            where = ["-C", str(clone), *arguments]
            return _git(where, url, timeout=TIMEOUT_S, on_line=on_line, cancel=cancel, local=local, into=clone)

        _git(
            ["init", "--quiet", "--template=", "--", str(clone)],
            url,
            timeout=60,
            cancel=cancel,
            into=destination.parent,
        )
        try:
            git("fetch", "--quiet", "--no-tags", "--depth=1", "--", url, commit)
        except FetchError:  # servers may refuse single commits that no ref points to
            git("fetch", "--quiet", "--tags", "--", url, "+refs/heads/*:refs/remotes/origin/*")
        try:
            git("checkout", "--quiet", "--force", "--detach", commit, "--")
        except FetchError as error:
            raise FetchError(
                f"{scrub(url)} has no commit {commit}", remedy="check the hash; a fork's commits are in the fork"
            ) from error
        if submodules:
            git("remote", "add", "--", "origin", url)  # relative submodule URLs start there
            update = ("submodule", "--quiet", "update", "--init", "--depth=1", "--checkout", "--force")
            if isinstance(submodules, bool):
                git(*update, "--recursive")
            else:
                _named(git("config", "--file", ".gitmodules", "--get-regexp", r"\.path$"), submodules, url)
                git(*update, "--", *submodules)
        for path in sorted(clone.rglob(".git")):
            remove(path)
        _contained(clone)
        remove(destination)
        clone.rename(destination)
    return commit


def _named(lines: Sequence[str], wanted: Sequence[str], url: str) -> None:
    """Raises FetchError where a repository has no submodule at one of these paths."""
    there = [line.partition(" ")[2] for line in lines]
    for path in wanted:
        if path not in there:
            raise FetchError(
                f"{scrub(url)} has no submodule {path!r}{did_you_mean(path, there)}",
                remedy=f"it has {', '.join(sorted(there)[:12]) or 'none'}",
            )


def _contained(folder: Path) -> None:
    """Refuse links that lead out of the sources: what they point to is not pinned by the commit."""
    root = folder.resolve()
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise FetchError(f"{path.relative_to(folder)}: a link that leaves the repository is refused")


def _environment(local: bool) -> Mapping[str, str]:
    """`local`: git may read repositories of this machine, as those are that the person named."""
    hardened = (*_HARDENED, ("protocol.file.allow", "always" if local else "never"))
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith("GIT_") or "SSL" in key or "SSH" in key
    }
    settings = {"GIT_CONFIG_COUNT": str(len(hardened))}
    for index, (key, value) in enumerate(hardened):
        settings |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}
    return {
        **kept,
        **settings,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "https:ssh:file" if local else "https:ssh",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh -o BatchMode=yes"),
        "LC_ALL": "C",
    }


def _git(
    arguments: Sequence[str],
    url: str,
    *,
    timeout: float,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
    local: bool | None = None,
    into: Path | None = None,
) -> list[str]:
    """The lines that git says; `into` is a folder on the disk that it writes to."""
    local = local_repository(url) is not None if local is None else local
    lines: list[str] = []

    def hear(line: str) -> None:
        lines.append(line)
        if on_line:
            on_line(scrub(line))

    try:
        with DiskSpace([into] if into else []) as disk:
            done = process.run(
                ["git", *arguments], cwd=cwd, env=_environment(local), timeout=timeout, on_line=hear, cancel=cancel
            )
    except EnvironmentMissing as error:
        raise EnvironmentMissing(
            "an engine from git needs the git program", remedy="install git, or use a local folder as engine.source"
        ) from error
    if done.cancelled:
        raise Interrupted("git was stopped")
    if done.timed_out:
        raise FetchError(f"{scrub(url)}: git did not end within {timeout:g} s", remedy="check the network")
    if done.exit_code != 0 and disk.full:
        raise no_space(scrub(url))
    if done.exit_code != 0:
        raise _explained(scrub(url), scrub("\n".join(lines[-8:])))
    return lines


def _explained(url: str, text: str) -> FetchError:
    remedy = None
    if re.search(r"could not read (Username|Password)|Authentication failed|Permission denied", text):
        remedy = "the repository is private or absent: set up a credential helper or an ssh key for it"
    elif re.search(r"[Rr]epository .*not found|does not (exist|appear to be a git repository)", text):
        remedy = "check the address"
    elif "Could not resolve host" in text or "unable to access" in text:
        remedy = "check the network and the proxy settings"
    return FetchError(f"{url}: git failed: {text.strip()}", remedy=remedy)
