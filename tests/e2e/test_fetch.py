"""Downloads against real servers on loopback, with everything that goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvflow.base.errors import FetchError, Interrupted, StoreError
from rwkvflow.net import download
from rwkvflow.net.download import fetch_file
from rwkvflow.net.http import Policy
from tests.standin import Asset, Repository, StandIn

TOKEN = "hf_PlantedTokenThatMustNotLeak0123456789"  # noqa: S105 - planted to be looked for
ROOT = Path(__file__).resolve().parents[2]
DATA = random.Random(7).randbytes(3 << 20)
SUM = hashlib.sha256(DATA).hexdigest()
FAST = Policy(attempts=4, first_delay_s=0.01, longest_delay_s=0.05, connect_s=5, stall_s=0.5)


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    with StandIn(tmp_path / "standin") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        standin.assets["model.pth"] = Asset(DATA)
        yield standin


@pytest.fixture
def repo(net: StandIn) -> Repository:
    repository = net.hub.create("owner/model")
    repository.commit({"model.pth": DATA, "tokenizer.json": b'{"small": 1}', "README.md": b"# Model"})
    return repository


def get(net: StandIn, source: str, to: Path, **options: object) -> tuple[str, int]:
    return fetch_file(source, to, recipe_folder=to.parent, policy=FAST, **options)  # type: ignore[arg-type]


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("standin", "hf-home"))


def test_downloads_and_tells_the_bytes(net: StandIn, tmp_path: Path) -> None:
    counts: list[int] = []
    assert get(net, net.url("model.pth"), tmp_path / "m", on_bytes=counts.append) == (SUM, len(DATA))
    assert (tmp_path / "m").read_bytes() == DATA
    assert sum(counts) == len(DATA)
    assert leftovers(tmp_path) == ["m"]


def test_what_is_there_already_is_not_asked_for(net: StandIn, tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(DATA)
    assert get(net, net.url("model.pth"), tmp_path / "m", sha256=SUM, size=len(DATA)) == (SUM, len(DATA))
    assert net.seen == []


def test_a_cut_connection_is_resumed_where_it_was_cut(net: StandIn, tmp_path: Path) -> None:
    net.fault("cut", "model.pth", after=1 << 20)
    net.fault("cut", "model.pth", after=1 << 20)
    assert get(net, net.url("model.pth"), tmp_path / "m", sha256=SUM)[0] == SUM
    ranges = [seen.headers.get("range") for seen in net.requests("GET")]
    assert ranges == [None, f"bytes={1 << 20}-", f"bytes={2 << 20}-"]
    assert all(seen.headers["if-range"] == net.assets["model.pth"].tag for seen in net.requests("GET")[1:])


def test_gives_up_after_some_attempts_and_the_next_process_goes_on(net: StandIn, tmp_path: Path) -> None:
    net.fault("cut", "model.pth", after=1 << 20)
    net.fault("status", "model.pth", status=503, times=FAST.attempts)
    with pytest.raises(FetchError, match=r"503.*gave up after 4 attempts"):
        get(net, net.url("model.pth"), tmp_path / "m")
    assert (tmp_path / "m.part").stat().st_size == 1 << 20
    assert not (tmp_path / "m").exists()
    assert get(net, net.url("model.pth"), tmp_path / "m") == (SUM, len(DATA))
    assert net.requests("GET")[-1].headers["range"] == f"bytes={1 << 20}-"
    assert leftovers(tmp_path) == ["m"]


def test_survives_kill_9(net: StandIn, tmp_path: Path) -> None:
    net.fault("stall", "model.pth", after=2 << 20, seconds=60)
    code = (
        "import sys; from pathlib import Path; from rwkvflow.net.download import fetch_file;"
        "fetch_file(sys.argv[1], Path(sys.argv[2]), recipe_folder=Path('.'))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, net.url("model.pth"), str(tmp_path / "m")], cwd=ROOT)
    part = tmp_path / "m.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size >= 1 << 20) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "m").exists()
    kept = part.stat().st_size
    assert kept >= 1 << 20
    assert get(net, net.url("model.pth"), tmp_path / "m", sha256=SUM)[0] == SUM
    assert net.requests("GET")[-1].headers["range"] == f"bytes={kept}-"


def test_starts_again_when_the_servers_file_changed(net: StandIn, tmp_path: Path) -> None:
    net.fault("cut", "model.pth", after=1 << 20)
    net.fault("status", "model.pth", status=500, times=FAST.attempts)
    with pytest.raises(FetchError):
        get(net, net.url("model.pth"), tmp_path / "m")
    new = bytes(reversed(DATA))
    net.assets["model.pth"] = Asset(new)
    assert get(net, net.url("model.pth"), tmp_path / "m")[0] == hashlib.sha256(new).hexdigest()
    assert (tmp_path / "m").read_bytes() == new


def test_starts_again_when_the_servers_file_became_shorter(net: StandIn, tmp_path: Path) -> None:
    net.fault("cut", "model.pth", after=2 << 20)
    net.fault("status", "model.pth", status=500, times=FAST.attempts)
    with pytest.raises(FetchError):
        get(net, net.url("model.pth"), tmp_path / "m")
    net.assets["model.pth"] = Asset(DATA[: 1 << 20])
    assert get(net, net.url("model.pth"), tmp_path / "m")[1] == 1 << 20


def test_resumes_by_date_and_by_hash_alone_and_not_without_either(net: StandIn, tmp_path: Path) -> None:
    dated = Asset(DATA, etag=None, headers={"Last-Modified": "Fri, 20 Nov 2026 12:00:00 GMT"})
    net.assets |= {"dated": dated, "weak": Asset(DATA, etag='W/"x"'), "bare": Asset(DATA, etag=None)}
    for name, known, expected in (
        ("dated", None, f"bytes={1 << 20}-"),
        ("weak", SUM, f"bytes={1 << 20}-"),
        ("bare", None, None),
    ):
        net.fault("cut", name, after=1 << 20)
        assert get(net, net.url(name), tmp_path / name, sha256=known)[0] == SUM
        assert net.requests("GET", path=name)[-1].headers.get("range") == expected


def test_servers_without_ranges_are_read_from_the_start(net: StandIn, tmp_path: Path) -> None:
    net.assets["model.pth"].ranges = False
    net.fault("cut", "model.pth", after=1 << 20)
    assert get(net, net.url("model.pth"), tmp_path / "m") == (SUM, len(DATA))


def test_a_damaged_part_leads_to_one_clean_attempt(net: StandIn, tmp_path: Path) -> None:
    net.fault("cut", "model.pth", after=1 << 20)
    net.fault("status", "model.pth", status=500, times=FAST.attempts)
    with pytest.raises(FetchError):
        get(net, net.url("model.pth"), tmp_path / "m", sha256=SUM)
    with (tmp_path / "m.part").open("r+b") as file:
        file.write(b"damage")
    assert get(net, net.url("model.pth"), tmp_path / "m", sha256=SUM)[0] == SUM


def test_a_wrong_file_is_told_and_not_kept(net: StandIn, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"expected sha256 {'0' * 64}, got {SUM}"):
        get(net, net.url("model.pth"), tmp_path / "m", sha256="0" * 64)
    assert leftovers(tmp_path) == []
    with pytest.raises(FetchError, match=f"expected 5 bytes, the server has {len(DATA)}"):
        get(net, net.url("model.pth"), tmp_path / "m", size=5)
    assert leftovers(tmp_path) == []
    assert len(net.requests("GET")) == 2


def test_more_than_expected_is_not_read_to_its_end(net: StandIn, tmp_path: Path) -> None:
    net.assets["model.pth"].chunked = True
    with pytest.raises(FetchError, match="sends more"):
        get(net, net.url("model.pth"), tmp_path / "m", size=1000)
    assert leftovers(tmp_path) == []


def test_chunked_answers_and_empty_files(net: StandIn, tmp_path: Path) -> None:
    net.assets["chunked"] = Asset(DATA, chunked=True)
    net.assets["empty"] = Asset(b"")
    assert get(net, net.url("chunked"), tmp_path / "c") == (SUM, len(DATA))
    assert get(net, net.url("empty"), tmp_path / "e") == (hashlib.sha256().hexdigest(), 0)
    assert (tmp_path / "e").read_bytes() == b""


@pytest.mark.parametrize(
    ("asset", "message"),
    [
        (Asset(b"x" * 5000, content_type="text/html; charset=utf-8"), "HTML page"),
        (Asset(b"\n  <!DOCTYPE HTML>\n<title>Log in</title>"), "HTML page"),
        (Asset(b"<html lang='en'>"), "HTML page"),
        (Asset(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"), "Git LFS pointer"),
    ],
)
def test_pages_and_pointers_are_refused(net: StandIn, tmp_path: Path, asset: Asset, message: str) -> None:
    net.assets["blob/model.pth"] = asset
    with pytest.raises(FetchError, match=message) as caught:
        get(net, net.url("blob/model.pth"), tmp_path / "m")
    assert caught.value.remedy
    assert leftovers(tmp_path) == []


def test_retry_after_is_honoured_and_too_long_a_wait_reported(net: StandIn, tmp_path: Path) -> None:
    net.fault("status", "model.pth", status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    get(net, net.url("model.pth"), tmp_path / "m")
    assert time.monotonic() - start >= 1
    net.fault("status", "model.pth", status=429, headers={"Retry-After": "100000"})
    with pytest.raises(FetchError, match="asks to wait 100000 s"):
        get(net, net.url("model.pth"), tmp_path / "again")


def test_a_dropped_connection_is_tried_again(net: StandIn, tmp_path: Path) -> None:
    net.fault("drop", "model.pth", times=2)
    assert get(net, net.url("model.pth"), tmp_path / "m")[0] == SUM


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_stalled_and_dripping_connections_are_left(net: StandIn, tmp_path: Path, kind: str) -> None:
    net.fault(kind, "model.pth", after=len(DATA) // 2, seconds=600)  # type: ignore[arg-type]
    if kind == "drip":
        net.assets["model.pth"].chunked = True
        net.assets["model.pth"].data = DATA[: len(DATA) // 2] + bytes(len(DATA) // 2)
    start = time.monotonic()
    digest = get(net, net.url("model.pth"), tmp_path / "m")[0]
    assert digest == hashlib.sha256(net.assets["model.pth"].data).hexdigest()
    assert time.monotonic() - start < 60
    assert len(net.requests("GET")) == 2


def test_cancelling_ends_a_hanging_read_at_once_and_keeps_what_came(net: StandIn, tmp_path: Path) -> None:
    net.fault("stall", "model.pth", after=2 << 20, seconds=60)
    cancel = threading.Event()
    threading.Timer(0.5, cancel.set).start()
    start = time.monotonic()
    with pytest.raises(Interrupted):
        fetch_file(net.url("model.pth"), tmp_path / "m", recipe_folder=tmp_path, cancel=cancel)
    assert time.monotonic() - start < 5
    assert (tmp_path / "m.part").stat().st_size == 2 << 20
    assert json.loads((tmp_path / "m.part.json").read_text())["total"] == len(DATA)


def test_threads_that_want_the_same_file_take_turns(net: StandIn, tmp_path: Path) -> None:
    results: list[tuple[str, int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(get(net, net.url("model.pth"), tmp_path / "m", sha256=SUM)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(SUM, len(DATA))] * 4
    assert len(net.requests("GET")) == 1
    assert leftovers(tmp_path) == ["m"]


def test_a_full_disk_is_told_before_the_first_byte(
    net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    with pytest.raises(StoreError, match=f"{len(DATA)} bytes are needed, 1000 are free"):
        get(net, net.url("model.pth"), tmp_path / "m")
    assert leftovers(tmp_path) == []


def test_a_disk_that_fills_up_on_the_way_is_told(net: StandIn, tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path; from rwkvflow.net.download import fetch_file;"
        "from rwkvflow.base.errors import RwkvflowError; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from rwkvflow.base import files; files.errno.ENOSPC = files.errno.EFBIG;"  # the limit answers EFBIG
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: fetch_file(sys.argv[1], Path(sys.argv[2]), recipe_folder=Path('.'))\n"
        "except RwkvflowError as error: sys.exit(f'{type(error).__name__}: {error}')"
    )
    command = [sys.executable, "-c", code, net.url("model.pth"), str(tmp_path / "m")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "StoreError: fetching m: no space left" in done.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("name", "status", "message"), [("absent", 404, "404"), ("model.pth", 403, "403")])
def test_final_answers_are_not_tried_again(net: StandIn, tmp_path: Path, name: str, status: int, message: str) -> None:
    net.fault("status", name, status=status)
    with pytest.raises(FetchError, match=message):
        get(net, net.url(name) + "?X-Signature=secret", tmp_path / "m")
    assert len(net.seen) == 1
    assert leftovers(tmp_path) == []


def test_messages_show_no_signed_query(net: StandIn, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        get(net, net.url("absent") + "?X-Signature=secret", tmp_path / "m")
    assert "secret" not in str(caught.value)


def test_redirects_are_followed_but_not_in_circles(net: StandIn, tmp_path: Path) -> None:
    net.assets["here"] = Asset(b"", redirect="model.pth")
    net.assets["circle"] = Asset(b"", redirect="circle")
    assert get(net, net.url("here"), tmp_path / "m")[0] == SUM
    with pytest.raises(FetchError, match="more than 10 redirects"):
        get(net, net.url("circle"), tmp_path / "c")


def test_the_proxy_of_the_environment_is_used(net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "http://user:proxy-secret@127.0.0.1:9")
    with pytest.raises(FetchError) as caught:
        get(net, net.url("model.pth"), tmp_path / "m")
    assert "refused" in str(caught.value).lower()
    assert "proxy-secret" not in str(caught.value)
    assert net.seen == []


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program to make a certificate with")
    path, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=standin"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    both = tmp_path / "both.pem"
    both.write_text(path.read_text() + key.read_text())
    return both


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_certificates_of_the_environment_are_trusted(
    net: StandIn, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    with StandIn(tmp_path / "secure", certificate) as secure:
        secure.assets |= {"model.pth": Asset(DATA), "down": Asset(b"", redirect=f"{net.url('model.pth')}")}
        with pytest.raises(FetchError, match="its certificate is not trusted") as caught:
            get(secure, secure.url("model.pth"), tmp_path / "m")
        assert "SSL_CERT_FILE" in (caught.value.remedy or "")
        assert secure.seen == []
        monkeypatch.setenv(variable, str(tmp_path / "cert.pem"))
        assert get(secure, secure.url("model.pth"), tmp_path / "m")[0] == SUM
        with pytest.raises(FetchError, match="from https to http, which is refused"):
            get(secure, secure.url("down"), tmp_path / "d")
        login = tmp_path / "netrc"
        login.write_text("machine 127.0.0.1 login me password netrc-secret\n")
        monkeypatch.setenv("NETRC", str(login))
        get(secure, secure.url("model.pth"), tmp_path / "again")
        assert secure.seen[-1].headers["authorization"].startswith("Basic ")


def test_hub_files_come_from_the_cdn_without_the_token(
    net: StandIn, repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.private, repo.readers = True, {"me"}
    net.tokens[TOKEN] = "me"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    net.fault("cut", "/lfs/", after=1 << 20)
    source = f"hf://owner/model@{repo.branches['main']}/model.pth"
    assert get(net, source, tmp_path / "m", sha256=SUM, size=len(DATA)) == (SUM, len(DATA))
    assert get(net, source.replace("model.pth", "tokenizer.json"), tmp_path / "t")[1] == 12
    assert {seen.headers.get("authorization") for seen in net.requests(host="hub")} == {f"Bearer {TOKEN}"}
    on_cdn = net.requests(host="cdn")
    assert len(on_cdn) == 2
    assert on_cdn[1].headers["range"] == f"bytes={1 << 20}-"
    assert not any(TOKEN in value for seen in on_cdn for value in seen.headers.values())
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_the_lock_is_compared_before_the_download(net: StandIn, repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=f"expected sha256 {'1' * 64}, got {SUM}"):
        get(net, "hf://owner/model/model.pth", tmp_path / "m", sha256="1" * 64)
    assert leftovers(tmp_path) == []


HUB_CASES = [
    ("hf://owner/absent/f", None, "no repository owner/absent", "set HF_TOKEN"),
    ("hf://owner/absent/f", "me", "no repository owner/absent", "this token may not"),
    ("hf://owner/private/model.pth", None, "or it is private", "set HF_TOKEN"),
    (
        "hf://owner/gated/model.pth",
        None,
        "owner/gated is gated",
        "accept its licence at .*/owner/gated and set HF_TOKEN",
    ),
    ("hf://owner/gated/model.pth", "me", "owner/gated is gated", "accept its licence"),
    ("hf://owner/model@mian/model.pth", None, "no revision 'mian'; did you mean 'main'", "branches"),
    ("hf://owner/model/modle.pth", None, "no file 'modle.pth'; did you mean 'model.pth'", "files"),
    ("hf://owner/model/model.pth", "nobody", "does not know this token", "valid token"),
]


@pytest.mark.parametrize(("source", "user", "message", "remedy"), HUB_CASES)
def test_hub_problems_say_what_to_do(
    net: StandIn,
    repo: Repository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    user: str | None,
    message: str,
    remedy: str,
) -> None:
    net.hub.create("owner/private", private=True).commit({"model.pth": DATA})
    net.hub.create("owner/gated", gated=True).commit({"model.pth": DATA})
    if user:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        net.tokens |= {} if user == "nobody" else {TOKEN: user}
    with pytest.raises(FetchError, match=message) as caught:
        get(net, source, tmp_path / "m")
    assert caught.value.remedy
    assert re.search(remedy, caught.value.remedy)
    assert TOKEN not in str(caught.value)


def test_local_files_are_copied_or_verified_in_place(net: StandIn, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/model.pth").write_bytes(DATA)
    counts: list[int] = []
    for source in ("in/model.pth", "file:in/model.pth", (tmp_path / "in/model.pth").as_uri()):
        assert get(net, source, tmp_path / "m", sha256=SUM) == (SUM, len(DATA))
    get(net, "model.pth", tmp_path / "in/model.pth", on_bytes=counts.append)
    assert sum(counts) == len(DATA)
    assert leftovers(tmp_path / "in") == ["model.pth"]
    with pytest.raises(FetchError, match="expected sha256"):
        get(net, "model.pth", tmp_path / "in/model.pth", sha256="2" * 64)
    assert (tmp_path / "in/model.pth").read_bytes() == DATA
    with pytest.raises(FetchError, match="does not exist") as caught:
        get(net, "in/modle.pth", tmp_path / "x")
    assert "model.pth" in (caught.value.remedy or "")


GIT = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
for role in ("AUTHOR", "COMMITTER"):
    GIT |= {f"GIT_{role}_NAME": "t", f"GIT_{role}_EMAIL": "t@localhost", f"GIT_{role}_DATE": "2026-01-01T00:00:00Z"}


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **GIT}
    command = ["git", "-c", "protocol.file.allow=always", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "CMakeLists.txt").write_text("project(x C)\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    git(folder, "tag", "-a", "v1", "-m", "first")
    (folder / "later.c").write_text("int x;\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "two")
    return folder


def test_git_refs_become_commits_and_commits_files(upstream: Path, tmp_path: Path) -> None:
    head, first = git(upstream, "rev-parse", "HEAD"), git(upstream, "rev-parse", "HEAD~1")
    url = upstream.as_uri()
    assert download.resolve_git(url, "main") == head == download.resolve_git(url, None)
    assert download.resolve_git(url, "v1") == first
    with pytest.raises(Exception, match="no branch or tag 'mian'; did you mean 'main'"):
        download.resolve_git(url, "mian")
    assert download.fetch_git(url, first, tmp_path / "out") == first
    assert leftovers(tmp_path / "out") == ["CMakeLists.txt"]
    download.fetch_git(url, head, tmp_path / "out")
    assert leftovers(tmp_path / "out") == ["CMakeLists.txt", "later.c"]
    with pytest.raises(FetchError, match="has no commit"):
        download.fetch_git(url, "0" * 40, tmp_path / "none")


def test_git_submodules_come_only_when_asked_for(upstream: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q", "-b", "main")
    git(outer, "submodule", "--quiet", "add", upstream.as_uri(), "ggml")
    git(outer, "commit", "-q", "-m", "with a submodule")
    head = git(outer, "rev-parse", "HEAD")
    download.fetch_git(outer.as_uri(), head, tmp_path / "without")
    assert not (tmp_path / "without/ggml/CMakeLists.txt").exists()
    download.fetch_git(outer.as_uri(), head, tmp_path / "with", submodules=True)
    assert (tmp_path / "with/ggml/CMakeLists.txt").is_file()
    assert not list((tmp_path / "with").rglob(".git"))


def test_git_submodules_can_be_named(upstream: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    git(outer, "init", "-q", "-b", "main")
    git(outer, "submodule", "--quiet", "add", upstream.as_uri(), "ggml")
    git(outer, "submodule", "--quiet", "add", upstream.as_uri(), "far")
    git(outer, "config", "--file", ".gitmodules", "submodule.far.url", (tmp_path / "nowhere").as_uri())
    git(outer, "commit", "-q", "-am", "one cannot be reached")
    head = git(outer, "rev-parse", "HEAD")
    with pytest.raises(FetchError):
        download.fetch_git(outer.as_uri(), head, tmp_path / "all", submodules=True)
    download.fetch_git(outer.as_uri(), head, tmp_path / "one", submodules=["ggml"])
    assert (tmp_path / "one/ggml/CMakeLists.txt").is_file()
    assert not (tmp_path / "one/far/CMakeLists.txt").exists()
    with pytest.raises(FetchError, match="has no submodule 'gml'; did you mean"):
        download.fetch_git(outer.as_uri(), head, tmp_path / "none", submodules=["gml"])


@pytest.mark.parametrize("url", ["https://example.org/x", "git@example.org:x", "ssh://example.org/x"])
def test_a_repository_from_elsewhere_brings_none_of_this_machine(
    url: str, upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment that git gets is tried on a repository of this machine, by every way that names one."""
    from rwkvflow.net import git as module

    for place in (upstream.as_uri(), str(upstream), f"file://localhost{upstream}"):
        with pytest.raises(FetchError, match="not allowed"):
            module._git(["ls-remote", "--", place], url, timeout=60)
    assert module._git(["ls-remote", "--", upstream.as_uri()], upstream.as_uri(), timeout=60)


def test_git_runs_no_hooks_and_takes_no_options(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    (hooks / "post-checkout").write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
    (hooks / "post-checkout").chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(f"[core]\n\thooksPath = {hooks}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    download.fetch_git(upstream.as_uri(), git(upstream, "rev-parse", "HEAD"), tmp_path / "out")
    assert not (tmp_path / "hook-ran").exists()
    for url in ("--upload-pack=touch x", "ext::sh -c touch% x", "http://127.0.0.1/x.git", "git://host/x"):
        with pytest.raises(Exception, match="git"):
            download.resolve_git(url, "main")


def test_git_links_that_leave_the_repository_are_refused(upstream: Path, tmp_path: Path) -> None:
    (upstream / "link").symlink_to("/etc/passwd")
    git(upstream, "add", ".")
    git(upstream, "commit", "-q", "-m", "link")
    with pytest.raises(FetchError, match="link that leaves"):
        download.fetch_git(upstream.as_uri(), git(upstream, "rev-parse", "HEAD"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
