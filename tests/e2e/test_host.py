"""The whole run on the host sandbox, with real wheels, compiler and artifacts; and what happens when things break."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.cli import DEMO, ROOT, SIGKILL, Project, kill, project
from tests.helpers.hub_releases import REPO
from tests.standin import StandIn

HOST = ("--sandbox", "host")


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run once; its store is where other tests take wheels, environment and engine from."""
    from tests.e2e.conftest import CACHE

    made = project(tmp_path_factory.mktemp("warm") / "p", CACHE / "store")
    done = made("run", "recipe.yaml", *HOST)
    assert done.code == 0, done.err
    return made


@pytest.fixture
def other(warm: Project, tmp_path: Path) -> Project:
    """Another project on the same store."""
    return project(tmp_path / "p", warm.store)


@pytest.fixture
def apart(warm: Project, tmp_path: Path) -> Project:
    """A project on a store of its own, which starts with everything but what was converted."""
    made = project(tmp_path / "p", tmp_path / "store", seed=warm.store)
    for path in (made.store / "index").glob("*/*.json"):
        if json.loads(path.read_text())["step"].split("/")[0] in ("convert", "smoke", "reference", "publish"):
            path.unlink()
    (made.store / "environments").symlink_to(warm.store / "environments")  # a virtual environment cannot be moved
    return made


def test_a_run_ends_in_verified_artifacts_and_a_second_one_does_nothing(warm: Project) -> None:
    sums = (warm.folder / "out" / "SHA256SUMS").read_text()
    assert subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=warm.folder / "out", check=False).returncode == 0
    assert {line.split("  ")[1] for line in sums.splitlines()} >= {
        "tiny4/tiny4-FP16.bin",
        "tiny4/tiny4-Q5_1.bin",
        "tiny4/tiny4.safetensors",
        "README.md",
        "provenance.json",
        "recipe.lock.yaml",
    }
    start = time.monotonic()
    again = warm("run", "recipe.yaml", *HOST, "--json")
    print(f"a run that has nothing to do took {time.monotonic() - start:.2f} s")
    assert again.code == 0
    assert again.steps("done") == []
    finished = again.events[-1]
    assert finished["event"] == "RunFinished"
    assert finished["cached"] > 0


def test_the_notebook_runs_as_it_stands(warm: Project, tmp_path: Path) -> None:
    """Its cells, one after another, in a folder with the demo's checkpoint; each cell's last line is evaluated."""
    cells = json.loads((ROOT / "docs" / "notebooks" / "pipeline.ipynb").read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] for cell in cells if cell["cell_type"] == "code"), "outputs are of one machine"
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n".join(sources) + "\nprint(described['architecture']['version'], worst)\n")
    (tmp_path / "demo").mkdir()
    shutil.copy(DEMO / "rwkv7-demo.pth", tmp_path / "demo")
    done = subprocess.run(
        [sys.executable, "cells.py"], cwd=tmp_path, env=warm.environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("7 ")
    assert "done     smoke/tiny7/ggml-q5_1@py3.11" in done.stdout
    assert (tmp_path / "out" / "SHA256SUMS").is_file()


def test_deleting_an_artifact_brings_back_only_that_one(apart: Project) -> None:
    assert apart("run", "recipe.yaml", *HOST).code == 0
    before = apart.files()
    (apart.folder / "out" / "tiny4" / "tiny4-Q5_1.bin").unlink()
    done = apart("run", "recipe.yaml", *HOST, "--json")
    assert done.steps("done") == ["publish"], "the store still has it"
    assert apart.files() == before
    blob = apart.store / "blobs" / before["tiny4/tiny4-Q5_1.bin"][:2] / before["tiny4/tiny4-Q5_1.bin"]
    blob.unlink()
    (apart.folder / "out" / "tiny4" / "tiny4-Q5_1.bin").unlink()
    done = apart("run", "recipe.yaml", *HOST, "--json")
    assert done.steps("done") == ["convert/tiny4/ggml-q5_1@py3.11", "publish"]
    assert apart.files() == before


def test_plan_and_explain_name_what_changed(other: Project) -> None:
    assert other("run", "recipe.yaml", *HOST).code == 0
    text = (other.folder / "recipe.yaml").read_text()
    other.write("recipe.yaml", text.replace("tokens: 8", "tokens: 9"))
    planned = other("plan", "recipe.yaml", *HOST, "--json")
    states = {row["step"]: (row["state"], row["why"]) for row in json.loads(planned.out)}
    assert states["convert/tiny4/ggml-f16@py3.11"] == ("cached", "")
    assert states["reference/tiny4@py3.11"] == ("run", "changed: params.params.tokens")
    assert states["publish"][0] == "waits"
    told = {row["step"]: row["bytes"] for row in json.loads(planned.out) if "bytes" in row}
    assert told["convert/tiny4/ggml-q5_1@py3.11"] == (other.folder / "out/tiny4/tiny4-Q5_1.bin").stat().st_size
    explained = other("explain", "smoke/tiny4/ggml-f16@py3.11", "recipe.yaml", *HOST)
    assert "waits" in explained.out
    explained = other("explain", "reference/tiny4@py3.11", "recipe.yaml", *HOST)
    assert "params.params.tokens: 8 → 9" in explained.out
    assert other("explain", "reference/tiny5@py3.11", "recipe.yaml", *HOST).code == 2


@pytest.mark.parametrize(
    "moment",
    [
        ("StepStarted", "image/"),
        ("StepStarted", "engine/"),
        ("StepFinished", "engine/"),
        ("StepStarted", "convert/"),
        ("StepFinished", "convert/"),
        ("StepStarted", "smoke/"),
        ("StepStarted", "publish"),
        ("StepFinished", "publish"),
    ],
    ids=lambda moment: "-".join(moment).strip("/"),
)
def test_killed_at_any_moment_the_next_run_goes_on(warm: Project, apart: Project, moment: tuple[str, str]) -> None:
    event, stage = moment
    if stage in ("engine/", "image/"):
        for path in (apart.store / "index").glob("*/*.json"):
            if json.loads(path.read_text())["step"].startswith(stage):
                path.unlink()
    if stage == "image/":
        (apart.store / "environments").unlink()  # so that it is made again, in a folder of its own
    killed = apart.until(kill(event, stage=stage), SIGKILL, "run", "recipe.yaml", *HOST)
    assert killed.code == -SIGKILL
    finished = {name.split(": ")[0] for name in killed.steps("done")}
    again = apart("run", "recipe.yaml", *HOST, "--json")
    assert again.code == 0, again.err
    redone = set(again.steps("done")) - {"publish"}
    assert not finished & redone, "what was finished is not done again"
    assert apart.files() == warm.files()
    assert not list((apart.store / "tmp").iterdir())
    assert [path.name for path in apart.folder.iterdir() if "rwkvflow-" in path.name] == []


def test_ctrl_c_stops_commands_and_keeps_what_is_finished(apart: Project) -> None:
    stopped = apart.until(kill("StepStarted", stage="convert/"), signal.SIGINT, "run", "recipe.yaml", *HOST)
    assert stopped.code == 130
    assert "interrupted" in stopped.err
    assert not list((apart.store / "tmp").iterdir())
    assert apart("run", "recipe.yaml", *HOST).code == 0


def test_two_runs_at_once_do_each_step_once(apart: Project, tmp_path: Path) -> None:
    second = Project(tmp_path / "q", apart.store)
    shutil.copytree(apart.folder, second.folder)
    argv = ["run", "recipe.yaml", *HOST, "--json"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "rwkvflow", *argv],
            cwd=one.folder,
            env=one.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in (apart, second)
    ]
    done: list[str] = []
    for process in processes:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        events = [json.loads(line) for line in out.splitlines()]
        done += [e["step"] for e in events if e["event"] == "StepFinished" and e["status"] == "done"]
    steps = [name for name in done if name != "publish"]
    assert len(steps) == len(set(steps)), "no step was carried out twice"
    assert apart.files() == second.files()


def test_a_failed_smoke_stops_only_its_own_artifact(other: Project) -> None:
    text = (other.folder / "recipe.yaml").read_text()
    limits = "smoke: {limits: {ggml-q5_1: {logits: 0.000001}}, "
    other.write("recipe.yaml", text.replace("smoke: {", limits))
    done = other("run", "recipe.yaml", *HOST, "--json")
    assert done.code == 6
    assert done.steps("failed") == ["smoke/tiny4/ggml-q5_1@py3.11"]
    failed = next(e for e in done.events if e["event"] == "StepFinished" and e["status"] == "failed")
    assert "ggml-q5_1 allows 1e-06" in failed["message"]
    assert "tiny4/tiny4-FP16.bin" in other.files()
    assert "tiny4/tiny4-Q5_1.bin" not in other.files()
    assert "ggml-q5_1@py3.11" in (other.folder / "out" / "README.md").read_text()


def test_a_truncated_checkpoint_is_told_before_anything_runs(other: Project) -> None:
    path = other.folder / "models" / "rwkv4-demo.pth"
    path.write_bytes(path.read_bytes()[:-1000])
    done = other("run", "recipe.yaml", *HOST)
    assert done.code == 5
    assert "tiny4" in done.err
    assert "truncated" in done.err or "cut off" in done.err or "zip" in done.err
    assert not (other.folder / "out").exists()


def test_a_flipped_bit_is_noticed_by_the_lock(other: Project) -> None:
    assert other("lock", "recipe.yaml", *HOST).code == 0
    path = other.folder / "models" / "rwkv4-demo.pth"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = other("run", "recipe.yaml", *HOST, "--locked")
    assert done.code == 3, done.err
    assert "models.tiny4: models/rwkv4-demo.pth has sha256" in done.err
    assert "rwkvflow lock" in done.err
    assert not (other.folder / "out").exists()


def test_a_checkpoint_that_was_trained_on_is_converted_again(other: Project) -> None:
    assert other("run", "recipe.yaml", *HOST).code == 0
    before = other.files()
    shutil.copy(DEMO / "rwkv7-demo.pth", other.folder / "models" / "rwkv4-demo.pth")
    done = other("run", "recipe.yaml", *HOST)
    assert done.code == 0, done.err
    assert "making recipe.lock.yaml: models.tiny4: models/rwkv4-demo.pth has" in done.err
    assert other.files()["tiny4/tiny4-FP16.bin"] != before["tiny4/tiny4-FP16.bin"]


def test_a_pickle_that_calls_os_system_runs_nothing(other: Project) -> None:
    from tests.helpers import checkpoints

    canary = other.folder / "canary"
    pickle = b"\x80\x02cos\nsystem\nX" + len(f"touch {canary}").to_bytes(4, "little")
    pickle += f"touch {canary}".encode() + b"\x85R."
    record = ("archive/data.pkl", len(pickle), [pickle])
    checkpoints.write_zip(other.folder / "models" / "rwkv4-demo.pth", [record])
    done = other("run", "recipe.yaml", *HOST)
    assert done.code == 5
    assert "os.system" in done.err
    assert not canary.exists()


def test_locked_refuses_a_recipe_that_has_moved_on(other: Project) -> None:
    refused = other("run", "recipe.yaml", *HOST, "--locked")
    assert refused.code == 3
    assert "rwkvflow lock" in refused.err
    assert other("lock", "recipe.yaml", *HOST).code == 0
    shutil.copy(other.folder / "models" / "rwkv4-demo.pth", other.folder / "models" / "x.pth")
    text = (other.folder / "recipe.yaml").read_text()
    other.write("recipe.yaml", text.replace("rwkv4-demo.pth", "x.pth"))
    refused = other("run", "recipe.yaml", *HOST, "--locked")
    assert refused.code == 3
    assert "tiny4" in refused.err
    assert "x.pth" in refused.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_says_so_and_the_next_run_goes_on(apart: Project, warm: Project, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(small)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.decode().strip()}")
    try:
        store = small / "store"
        for part in ("downloads",):
            shutil.copytree(warm.store / part, store / part)
        filler = small / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=1M", "count=500"], check=False, capture_output=True)
        cramped = Project(apart.folder, store)
        done = cramped("run", "recipe.yaml", *HOST)
        assert done.code in (5, 8), done.err
        assert "space" in done.err.lower()
        filler.unlink()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_an_extra_stage_runs_in_the_environment_and_is_published(other: Project) -> None:
    other.write("count.py", "import sys, os\nopen(sys.argv[2], 'w').write(str(os.path.getsize(sys.argv[1])))\n")
    other.write(
        "workflow.yaml",
        "extra:\n"
        "  - name: count\n"
        "    needs: smoke\n"
        "    command: [python3, in/script, in/artifact, out/size.txt]\n"
        "    inputs: {artifact: artifact, script: count.py}\n"
        "    outputs: [size.txt]\n"
        "    publish: true\n",
    )
    done = other("run", "recipe.yaml", *HOST, "--workflow", "workflow.yaml")
    assert done.code == 0, done.err
    published = other.files()
    found = [path for path in published if path.endswith("size.txt")]
    assert len(found) == 3
    size = (other.folder / "out" / "tiny4" / "tiny4-FP16.bin").stat().st_size
    texts = {(other.folder / "out" / path).read_text() for path in found}
    assert str(size) in texts


def test_only_makes_one_artifact_and_publishes_nothing(other: Project) -> None:
    done = other("run", "recipe.yaml", *HOST, "--only", "*/safetensors@*", "--json")
    assert done.code == 0, done.err
    assert "smoke/tiny4/safetensors@py3.11" in done.steps("cached") + done.steps("done")
    assert not (other.folder / "out").exists()
    wrong = other("run", "recipe.yaml", *HOST, "--only", "tiny4/safetensor@py3.11")
    assert wrong.code == 2
    assert "did you mean 'tiny4/safetensors@py3.11'" in wrong.err


def test_a_daemon_that_is_down_is_an_error_or_a_reason(other: Project) -> None:
    away = {"DOCKER_HOST": f"unix://{other.folder}/no-such.sock"}
    refused = other("run", "recipe.yaml", "--sandbox", "docker", env=away)
    assert refused.code == 4
    assert "remedy" in refused.err
    done = other("run", "recipe.yaml", env=away)
    assert done.code == 0, done.err
    assert "host sandbox" in done.err


def test_cache_commands_look_after_the_store(apart: Project) -> None:
    assert apart("run", "recipe.yaml", *HOST).code == 0
    listed = apart("cache", "ls", "--json")
    assert any("convert/tiny4/ggml-f16@py3.11" in row["steps"] for row in json.loads(listed.out))
    assert apart("cache", "verify").out.strip() == "all intact"
    digest = apart.files()["tiny4/tiny4-FP16.bin"]
    blob = apart.store / "blobs" / digest[:2] / digest
    data = bytearray(blob.read_bytes())
    data[100] ^= 1
    blob.unlink()  # its bytes may be linked into another store
    blob.write_bytes(data)
    found = apart("cache", "verify")
    assert found.code == 8
    assert digest in found.out
    (apart.folder / "out" / "tiny4" / "tiny4-FP16.bin").unlink()
    again = apart("run", "recipe.yaml", *HOST, "--json")
    assert "convert/tiny4/ggml-f16@py3.11" in again.steps("done")
    assert apart.files()["tiny4/tiny4-FP16.bin"] == digest
    assert apart("cache", "gc", "--max-size", "1MiB").code == 0
    assert apart("run", "recipe.yaml", *HOST).code == 0


def test_convert_push_publishes_with_card_and_provenance_and_shows_the_recipe(
    net: StandIn, warm: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    made = Project(tmp_path / "p", warm.store)
    made.folder.mkdir()
    shutil.copy(DEMO / "rwkv7-demo.pth", made.folder / "mine.pth")
    words = ("convert", "mine.pth", "out", "--format", "ggml-q8_0", "--format", "safetensors", "--push", REPO, *HOST)
    done = made(*words)
    assert done.code == 0, done.err
    assert "out.yaml: the recipe of this" in done.err
    there = net.hub.repositories[REPO].contents()
    here = {path.relative_to(made.folder / "out").as_posix() for path in (made.folder / "out").rglob("*")}
    assert {"mine/mine-Q8_0.bin", "README.md", "SHA256SUMS", "provenance.json"} <= there.keys() & here
    assert made("verify", "out").code == 0
    again = made("run", "out.yaml", *HOST, "--json")
    assert again.code == 0
    assert again.steps("done") == [], "the recipe stands for what was asked"
