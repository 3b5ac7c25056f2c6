"""Publishing as a step of a run, and releases as others read them: our own fetch, the hub's client, PyPI's olah."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import PublishError
from rwkvflow.base.events import Event
from rwkvflow.execute.base import Outcome
from rwkvflow.execute.local import LocalExecutor
from rwkvflow.execute.publishing import look_again, publish_actions, publish_probes
from rwkvflow.net.download import fetch_file
from rwkvflow.net.progress import Told
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import LocalInput, Step
from rwkvflow.publish.hub import HubOptions, HubPublisher
from rwkvflow.release.check import check_release
from rwkvflow.release.release import assemble
from rwkvflow.store.store import Store
from tests.helpers.hub_releases import REPO, TOKEN
from tests.helpers.publishing import POLICY, contents, release
from tests.helpers.releases import Made, made
from tests.standin import StandIn


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return made(tmp_path_factory.mktemp("run") / "run")


def step_of(run: Made, **params: Any) -> Step:
    """The publish step of a run whose artifacts are there."""
    to = params["to"]
    place = {"publish-hub": to.startswith("hf://"), "publish-oci": to.startswith("oci://"), "publish-folder": True}
    return Step(
        id="publish",
        stage="publish",
        action=next(name for name, fits in place.items() if fits),
        params={**params, "release": {**run.params, "to": to}},
        inputs={name: LocalInput(digest, run.inputs[name]) for name, digest in run.digests.items()},
        outputs=("release",),
        local={"folder": str(run.root), **run.local},
    )


def released(run: Made, step: Step) -> dict[str, bytes]:
    """What the step publishes."""
    return contents(assemble(step.params["release"], run.inputs, run.digests, run.local))


def there(net: StandIn) -> dict[str, bytes]:
    """What the repository holds of it."""
    return {path: data for path, data in net.hub.repositories[REPO].contents().items() if path != ".gitattributes"}


def carry_out(store: Store, step: Step, events: list[Event] | None = None) -> Outcome:
    emit = (events if events is not None else []).append
    executor = LocalExecutor(store, publish_actions(store), publish_probes(store), emit, run="r", cores=1)
    return executor.run(Plan([step], [step.id]))[step.id]


def test_a_run_that_changes_nothing_asks_nobody(net: StandIn, run: Made, tmp_path: Path) -> None:
    store, events = Store(tmp_path / "store"), list[Event]()
    step = step_of(run, to=f"hf://{REPO}", endpoint=net.endpoint)
    first = carry_out(store, step, events)
    assert (first.status, first.error) == ("done", None)
    assert first.notes["to"].startswith(f"hf://{REPO}@release-")
    assert first.notes["commit"] == net.hub.repositories[REPO].branches["main"]
    net.seen.clear()
    assert carry_out(store, step, events).status == "cached"
    assert net.seen == []
    assert there(net) == released(run, step)
    told = repr(events).encode() + b"".join(p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file())
    assert TOKEN.encode() not in told


def test_going_back_to_an_older_recipe_publishes_it_again(net: StandIn, run: Made, tmp_path: Path) -> None:
    """The record of the older step is still in the store, but it is not what stands there."""
    store = Store(tmp_path / "store")
    one = step_of(run, to=f"hf://{REPO}", endpoint=net.endpoint)
    other = made(tmp_path / "other", formats=("safetensors",))
    two = step_of(other, to=f"hf://{REPO}", endpoint=net.endpoint)
    for step, files in ((one, run), (two, other), (one, run)):
        assert carry_out(store, step).status == "done"
        assert there(net) == released(files, step)
    assert len(net.hub.repositories[REPO].commits) == 4


def test_looking_again_finds_what_others_did(net: StandIn, run: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    step = step_of(run, to=f"hf://{REPO}", endpoint=net.endpoint)
    carry_out(store, step)
    net.hub.repositories[REPO].commit({"README.md": b"# by hand"})
    assert carry_out(store, step).status == "cached"
    look_again(store, [step])
    assert carry_out(store, step).status == "done"
    assert there(net) == released(run, step)
    net.seen.clear()
    look_again(store, [step])
    assert carry_out(store, step).status == "done"
    assert {seen.method for seen in net.seen} <= {"GET", "HEAD"}


def test_what_failed_is_tried_again(net: StandIn, run: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    step = step_of(run, to=f"hf://{REPO}", endpoint=net.endpoint)
    net.fault("status", "/commit/", status=403)
    failed = carry_out(store, step)
    assert failed.status == "failed"
    assert isinstance(failed.error, PublishError)
    assert carry_out(store, step).status == "done"


def test_two_places_are_two_steps(net: StandIn, run: Made, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    hub = step_of(run, to=f"hf://{REPO}", endpoint=net.endpoint)
    folder = step_of(run, to=str(tmp_path / "out"))
    assert carry_out(store, folder).status == "done"
    assert carry_out(store, hub).status == "done"
    assert carry_out(store, replace(hub, params={**hub.params, "branch": "next"})).status == "done"
    assert set(net.hub.repositories[REPO].branches) == {"main", "next"}
    assert carry_out(store, hub).status == "cached"
    assert carry_out(store, folder).status == "cached"


def test_what_is_published_can_be_fetched_and_verified(net: StandIn, run: Made, tmp_path: Path) -> None:
    published = HubPublisher(REPO, HubOptions(private=True, tag="v1"), POLICY).apply(run.assemble(), Told())
    for file in run.assemble().files:
        source = f"hf://{REPO}@v1/{file.path}"
        sha256, size = fetch_file(source, tmp_path / "got" / file.path, recipe_folder=tmp_path)
        assert (f"sha256:{sha256}", size) == (file.digest, file.size)
    assert check_release(tmp_path / "got").problems == []
    assert published.to == f"hf://{REPO}@v1"


def test_the_command_line_verifies_a_repository(net: StandIn, run: Made) -> None:
    HubPublisher(REPO, HubOptions(tag="v1"), POLICY).apply(run.assemble(), Told())
    argv = [sys.executable, "-m", "rwkvflow", "verify", f"hf://{REPO}@v1"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    good = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stderr
    assert "all as published" in good.stdout
    stray = net.hub.repositories[REPO]
    stray.commit({"stray.bin": b"not of the release"})
    bad = subprocess.run([*argv[:-1], f"hf://{REPO}@main"], env=env, capture_output=True, text=True, check=False)
    assert bad.returncode == 9
    assert "stray.bin" in bad.stdout
    away = subprocess.run([*argv[:-1], "hf://nobody/nothing"], env=env, capture_output=True, text=True, check=False)
    assert away.returncode == 7
    assert "nobody/nothing" in away.stderr


def test_olah_reads_what_was_published(net: StandIn, tmp_path: Path) -> None:
    """A mirror that knows nothing of us, between the stand-in and the hub's client: all three agree on the protocol."""
    program = Path(sys.executable).with_name("olah-cli")
    if not program.exists():
        pytest.skip("PyPI's olah is not installed beside this Python")
    files = {"a/a.bin": os.urandom(1 << 20), "a/a.json": b"{}", "a/empty.bin": b""}
    HubPublisher(REPO, HubOptions(tag="v1"), POLICY).apply(release(files), Told())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    cdn = net.cdn.removeprefix("http://")
    argv = [str(program), "--host", "127.0.0.1", "--port", host.split(":")[1], "--hf-scheme", "http"]
    argv += ["--hf-netloc", net.endpoint.removeprefix("http://"), "--hf-lfs-netloc", cdn]
    argv += ["--mirror-netloc", host, "--mirror-lfs-netloc", host]
    argv += ["--repos-path", str(tmp_path / "olah"), "--log-path", str(tmp_path / "logs")]
    process = subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(host.split(":")[1])), 1).close()
                break
            except OSError:
                assert process.poll() is None, "olah did not start"
                assert time.monotonic() < end, "olah does not answer"
                time.sleep(0.1)
        code = "import sys, huggingface_hub as hub; hub.snapshot_download(sys.argv[1], revision='v1', local_dir='got')"
        done = subprocess.run(
            [sys.executable, "-c", code, REPO],
            cwd=tmp_path,
            env={**os.environ, "HF_ENDPOINT": f"http://{host}", "HF_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    finally:
        process.terminate()
        process.wait(20)
    got = {
        path.relative_to(tmp_path / "got").as_posix(): path.read_bytes()
        for path in (tmp_path / "got").rglob("*")
        if path.is_file() and ".cache" not in path.parts and path.name != ".gitattributes"
    }
    assert got == contents(release(files))
