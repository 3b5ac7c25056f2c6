"""The whole run in real containers, and the same bytes as on the host."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import docker
import pytest

from rwkvflow.sandbox.docker import DockerSandbox
from tests.e2e.cli import DEMO, ROOT, SIGKILL, Project, kill, project
from tests.e2e.conftest import CACHE
from tests.e2e.test_faults_containers import BOUNDARIES, fresh, kill_one
from tests.unit.release.test_verify import key_pair

pytestmark = pytest.mark.docker
DOCKER, HOST = ("--sandbox", "docker"), ("--sandbox", "host")
NATIVE = ROOT / "tests" / "engine" / "projects" / "native"


@pytest.fixture(scope="session")
def warm(base: Any, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has been run once in Docker."""
    made = project(tmp_path_factory.mktemp("docker") / "p", CACHE / "docker-store")
    done = made("run", "recipe.yaml", *DOCKER)
    assert done.code == 0, done.err
    return made


@pytest.fixture
def other(warm: Project, tmp_path: Path) -> Project:
    """Another project on the same store."""
    return project(tmp_path / "p", warm.store)


def test_the_demo_gives_the_same_bytes_in_docker_and_on_the_host(base: Any, tmp_path: Path) -> None:
    made = {}
    for name, sandbox in (("docker", DOCKER), ("host", HOST)):
        folder = tmp_path / name
        shutil.copytree(ROOT / "recipes" / "demo", folder / "recipes" / "demo")
        shutil.copy(ROOT / "recipes" / "demo.yaml", folder / "recipes")
        store = CACHE / ("docker-store" if name == "docker" else "store")
        made[name] = Project(folder, store)
        done = made[name]("run", "recipes/demo.yaml", *sandbox)
        assert done.code == 0, done.err
    files = {name: one.files("out/demo") for name, one in made.items()}
    artifacts = [path for path in files["host"] if path.endswith((".bin", ".safetensors"))]
    assert len(artifacts) == 16
    assert {path: files["docker"][path] for path in artifacts} == {path: files["host"][path] for path in artifacts}
    libraries = {}
    for name, sandbox in (("docker", DOCKER), ("host", HOST)):
        built = made[name]("engine", "build", "recipes/demo.yaml", *sandbox)
        assert built.code == 0, built.err
        libraries[name] = (Path(built.out.strip().rpartition(": ")[2]) / "lib" / "librwkv.so").read_bytes()
    assert libraries["docker"] == libraries["host"]


def test_a_second_run_asks_no_container(warm: Project) -> None:
    again = warm("run", "recipe.yaml", *DOCKER, "--json")
    assert again.code == 0
    assert again.steps("done") == []


@pytest.mark.soak
def test_a_release_of_docker_is_made_again_on_the_host_and_both_vouch_for_it(warm: Project, tmp_path: Path) -> None:
    """The other way round is in test_rebuild.py."""
    (tmp_path / "said").mkdir()
    lines = []
    for name, sandbox in (("ann", "host"), ("bob", "docker")):
        key_pair(tmp_path, name)
        said = ("--attest", f"{tmp_path}/{name}.key", "-o", f"{tmp_path}/said/{name}.json")
        done = warm("verify", "out", "--rebuild", "--recipe", "recipe.yaml", "--sandbox", sandbox, *said)
        assert done.code == 0, done.out + done.err
        assert f"7 files made again, each with the same bytes ({sandbox})" in done.out
        lines += [line for line in done.out.splitlines() if "differs" in line]
    assert not [line for line in lines if "patch" in line], "the published patch is the same as well"
    people = [text for name in ("ann", "bob") for text in ("--rebuilder", f"{name}={tmp_path}/{name}.pub")]
    done = warm("verify", "out", "--require-rebuilds", "2", "--attestations", f"{tmp_path}/said", *people)
    assert done.code == 0, done.out
    (tmp_path / "said" / "ann.json").unlink()
    done = warm("verify", "out", "--require-rebuilds", "2", "--attestations", f"{tmp_path}/said", *people)
    assert done.code == 9
    assert "nothing that counts came from ann" in done.out


def test_the_image_carries_what_it_was_made_of_and_no_compiler(warm: Project, client: Any) -> None:
    # Of a recipe's image; tests of the sandbox alone make others beside it.
    every = [image.labels for image in client.images.list(name="rwkvflow/worker")]
    labels = [each for each in every if each.get("org.opencontainers.image.title", "").startswith("rwkvflow worker")]
    assert labels
    for label in labels:
        for name in ("recipe", "lock", "engine"):
            assert label[f"org.rwkvflow.{name}"].startswith("sha256:")
    rendered = warm("render", "recipe.yaml")
    assert rendered.code == 0
    assert "--require-hashes" not in rendered.out or "pip" in rendered.out
    assert rendered.out.count("FROM ") >= 5


def test_killed_in_a_container_the_next_run_sweeps_and_goes_on(other: Project, warm: Project, client: Any) -> None:
    text = (other.folder / "recipe.yaml").read_text()
    other.write("recipe.yaml", text.replace("tokens: 8", "tokens: 4000"))
    moment = kill("StepStarted", stage="reference/")
    killed = other.until(moment, SIGKILL, "run", "recipe.yaml", *DOCKER)
    assert killed.code == -SIGKILL
    other.write("recipe.yaml", text.replace("tokens: 8", "tokens: 9"))
    done = other("run", "recipe.yaml", *DOCKER)
    assert done.code == 0, done.err
    assert DockerSandbox().sweep() == 0, "the run has swept what the killed one left"
    artifact = "tiny4/tiny4-Q5_1.bin"
    assert other.files()[artifact] == warm.files()[artifact]


def test_a_container_that_is_killed_costs_its_steps(warm: Project, tmp_path: Path, client: Any) -> None:
    """At any moment, and with its engine: in test_faults_containers.py.

    The first one copies an engine, and may be over before it is struck: then the next one is.
    """
    ways = (kill_one(fresh(warm, tmp_path / str(number)), warm, client, number, 0) for number in range(BOUNDARIES))
    assert "killed" in ways


def test_no_secret_reaches_an_output_an_image_a_lock_or_a_report(base: Any, warm: Project, tmp_path: Path) -> None:
    planted = "hf_PlantedTokenThatMustNotLeak0123456789"
    secrets = {"HF_TOKEN": planted, "AWS_SECRET_ACCESS_KEY": planted, "PIP_INDEX_PASSWORD": planted}
    made = project(tmp_path / "p", tmp_path / "store")
    made.write(
        "env.py", "import os, sys\nopen(sys.argv[1], 'w').write(repr(dict(os.environ)))\nprint(dict(os.environ))\n"
    )
    made.write(
        "workflow.yaml",
        "extra:\n  - {name: env, command: [python3, in/script, out/x], inputs: {script: env.py}, outputs: [x]}\n",
    )
    told = ""
    for sandbox in (DOCKER, HOST):
        done = made("run", "recipe.yaml", *sandbox, "--workflow", "workflow.yaml", "-v", "--json", env=secrets)
        assert done.code == 0, done.err
        told += done.out + done.err
    report = made("report", "recipe.yaml", "-o", "report.html", env=secrets)
    assert report.code == 0, report.err
    told += report.out + report.err
    assert planted not in told
    assert "PYTHONHASHSEED" in told, "the extra stage printed its environment"
    looked = 0
    for root in (made.folder, made.store):
        for path in root.rglob("*"):
            if path.is_file() and path.stat().st_size < 64 << 20:
                looked += 1
                assert planted.encode() not in path.read_bytes(), path
    assert looked > 100
    for image in docker.from_env().images.list(name="rwkvflow/worker"):
        assert planted not in json.dumps(image.attrs)
        assert planted not in json.dumps(image.history())


def test_a_container_that_eats_its_memory_limit_says_which_to_raise(other: Project) -> None:
    other.write("eat.py", "held = []\nwhile True: held.append(bytearray(8 << 20))\n")
    other.write(
        "workflow.yaml",
        "extra:\n"
        "  - {name: eat, command: [python3, in/script], inputs: {script: eat.py}, outputs: [x], memory: 64MiB}\n",
    )
    done = other("run", "recipe.yaml", *DOCKER, "--workflow", "workflow.yaml", "--only", "tiny4/safetensors@*")
    assert done.code == 5
    assert "ran out of its memory limit of 0.06 GiB" in done.err
    assert "memory in workflow.yaml" in done.err


def test_an_engine_of_the_users_is_patched_and_built_in_the_image(base: Any, tmp_path: Path, warm: Project) -> None:
    """A CMake project that uses -march=native and bakes an absolute path in: both are gone."""
    made = project(
        tmp_path / "p",
        warm.store,
        more="engine:\n  source: {path: native}\n  library: '**/*.so'\n",
    )
    shutil.copytree(NATIVE, made.folder / "native")
    done = made("engine", "build", "recipe.yaml", *DOCKER)
    assert done.code == 0, done.err
    diff = made("engine", "diff", "recipe.yaml", *DOCKER)
    assert diff.code == 0, diff.err
    removed = [line for line in diff.out.splitlines() if line.startswith("-") and "native" in line]
    assert any("-march=native" in line for line in removed)
    folder = Path(next(line.split(": ", 1)[1] for line in done.out.splitlines() if "custom" in line))
    library = next(path for path in (folder / "lib").iterdir())
    assert b"/job/" not in library.read_bytes()
    assert str(tmp_path).encode() not in library.read_bytes()


def test_a_matrix_of_two_images_with_and_without_torch(base: Any, tmp_path: Path, client: Any) -> None:
    folder = tmp_path / "m"
    shutil.copytree(DEMO, folder / "recipes" / "demo")
    shutil.copy(ROOT / "recipes" / "demo-torch.yaml", folder / "recipes")
    made = Project(folder, CACHE / "docker-store")
    done = made("run", "recipes/demo-torch.yaml", *DOCKER)
    assert done.code == 0, done.err
    rows = json.loads((folder / "out" / "demo-torch" / "provenance.json").read_text())
    assert rows
    text = (folder / "recipes" / "demo-torch.lock.yaml").read_text()
    assert "2.13.0+cpu" in text
    tags = [tag for image in client.images.list(name="rwkvflow/worker") for tag in image.tags]
    torch = [
        tag
        for tag in tags
        if subprocess.run(
            [
                "docker",
                "run",
                "--rm",
                "--network",
                "none",
                tag,
                "python3",
                "-c",
                "import torch; print(torch.__version__)",
            ],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        == "2.13.0+cpu"
    ]
    assert torch, "one of the images has torch"
    assert len(torch) < len(tags)


def test_a_recipe_whose_base_is_missing_says_how_to_get_one(tmp_path: Path, base: Any) -> None:
    made = project(tmp_path / "p", tmp_path / "store", more="image: {base: 'no-such-base:1', python: '3.11'}\n")
    done = made("run", "recipe.yaml", *DOCKER)
    assert done.code in (3, 4), done.err
    assert "no-such-base:1" in done.err
    assert "remedy" in done.err
