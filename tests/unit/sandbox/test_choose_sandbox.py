"""Which sandbox is taken, with the reason; without any Docker engine in reach (conftest points DOCKER_HOST nowhere)."""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import EnvironmentMissing, UsageError
from rwkvflow.base.hashing import tree_digest
from rwkvflow.base.shipped import PACKAGE
from rwkvflow.cli.serve import NEEDED
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.sandbox import daemon
from rwkvflow.sandbox.choose import brings_code, choose
from rwkvflow.sandbox.daemon import is_orphan, owner_labels, remedy_for, unreachable
from rwkvflow.sandbox.docker import user_for
from rwkvflow.sandbox.doctor import PACKAGES, examine
from rwkvflow.sandbox.isolation.walls import Walls, of_python, walls


def test_host_is_honest(tmp_path: Path) -> None:
    sandbox, why = choose("host", tmp_path)
    assert sandbox.name == "host"
    assert str(walls()) in why
    assert not list(tmp_path.iterdir()), "choosing makes nothing"


def test_auto_without_an_engine_takes_the_host_and_says_why(tmp_path: Path) -> None:
    sandbox, why = choose("auto", tmp_path)
    assert sandbox.name == "host"
    assert "Docker engine at tcp://unit-tests-touch-no-docker.invalid:1" in why
    assert str(walls()) in why


def test_a_host_without_walls_says_so_and_takes_no_code_of_a_recipe_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for none in (Walls(), Walls(namespaces=True), Walls(landlock=1)):
        monkeypatch.setattr("rwkvflow.sandbox.isolation.walls.walls", lambda none=none: none)
        monkeypatch.setattr("rwkvflow.sandbox.host.walls", lambda none=none: none)
        assert choose("auto", tmp_path)[0].name == "host", "nothing but shipped code runs"
        with pytest.raises(EnvironmentMissing, match="brings an engine: that is code of its own") as error:
            choose("auto", tmp_path, (), "the recipe brings an engine")
        assert "--sandbox host" in str(error.value.remedy)
        sandbox, why = choose("host", tmp_path, (), "the recipe brings an engine")
        assert (sandbox.name, str(none) in why) == ("host", True)
    assert "no isolation" in str(Walls())
    monkeypatch.setattr("rwkvflow.sandbox.isolation.walls.walls", lambda: Walls(True, True, 7))
    assert choose("auto", tmp_path, (), "the recipe brings an engine")[0].name == "host"


@pytest.mark.parametrize(
    ("engine", "image", "extra", "words"),
    [
        ({}, {}, [], None),
        ({"source": {"git": "https://example.org/e.git"}}, {}, [], "brings an engine"),
        ({"source": {"path": "engine"}}, {}, [], "brings an engine"),
        ({"cmake": {"CMAKE_CXX_COMPILER_LAUNCHER": "./x"}}, {}, [], "how the engine is built"),
        ({"patches": [{"name": "p", "files": ["*"], "pattern": "a", "replace": "b"}]}, {}, [], "how the engine is"),
        ({}, {"wheels": ["evil==1.0"]}, [], "brings wheels"),
        ({}, {}, [{"name": "own", "command": ["x"], "outputs": ["y"]}], "the stage own"),
    ],
)
def test_code_of_its_own_is_found_wherever_it_stands(engine: Any, image: Any, extra: Any, words: str | None) -> None:
    recipe = Recipe.model_validate(
        {"name": "r", "models": [{"name": "m", "source": "m.pth"}], "formats": ["ggml-f16"], "engine": engine}
        | {"images": [{"python": "3.11", **image}]}
    )
    found = brings_code(recipe, Workflow.model_validate({"extra": extra}))
    assert found is None if words is None else words in str(found)


def test_docker_without_an_engine_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentMissing) as error:
        choose("docker", tmp_path)
    assert error.value.exit_code == 4
    assert "--sandbox host" in str(error.value.remedy)


def test_unknown_sandbox(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="auto, docker, host"):
        choose("dokcer", tmp_path)


def _wrapped(cause: BaseException) -> Exception:
    """As docker-py hands it on: DockerException(text) from ConnectionError(ProtocolError('…', cause))."""
    inner = ConnectionError("Connection aborted.", cause)
    outer = RuntimeError("Error while fetching server API version")
    outer.__cause__ = inner
    return outer


def test_each_way_to_be_out_of_reach_has_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST")
    denied = unreachable(_wrapped(PermissionError(13, "Permission denied")))
    assert "permission denied" in denied.message
    assert "usermod" in str(denied.remedy)
    absent = unreachable(_wrapped(FileNotFoundError(2, "No such file")))
    assert "no Docker engine answers" in absent.message
    assert "systemctl start docker" in str(absent.remedy)
    down = unreachable(_wrapped(ConnectionRefusedError(111, "refused")))
    assert down.message == absent.message


def test_an_engine_that_is_too_old() -> None:
    for good in ("20.10.0", "20.10.24+dfsg1", "28.2.2", "29.0.0-rc.1", "library-import"):
        daemon._check_version(good)
    with pytest.raises(EnvironmentMissing, match=r"19\.03\.5; 20\.10 is the oldest"):
        daemon._check_version("19.03.5")


REMEDIES = {
    "failed to register layer: write /x: no space left on device": "docker system prune",
    "Get https://registry-1.docker.io/v2/: dial tcp: lookup registry-1.docker.io: no such host": "docker load",
    "Get https://registry-1.docker.io/v2/: net/http: TLS handshake timeout": "docker load",
    "toomanyrequests: You have reached your pull rate limit": "docker login",
    "pull access denied for nosuch, repository does not exist": "image.base",
    "pull access denied for rwkvflow-base, repository does not exist": "rwkvflow image bootstrap",
    "dockerfile parse error line 1: unknown instruction: FRM": "BuildKit",
    'OCI runtime create failed: exec: "python3": executable file not found in $PATH': "no python3",
    "Range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available": "workflow.yaml",
}


@pytest.mark.parametrize("message", REMEDIES)
def test_remedies(message: str) -> None:
    assert REMEDIES[message] in str(remedy_for(message))


def test_no_remedy_is_made_up() -> None:
    assert remedy_for("the command '/bin/x' returned a non-zero code: 1") is None


def test_owner_of_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = owner_labels()
    assert not is_orphan(mine), "this process lives"
    assert not is_orphan({}), "whose it is is unknown"
    if not Path("/proc/self/stat").exists():
        pytest.skip("no /proc: a process is known by its number only")
    assert is_orphan({**mine, "org.rwkvflow.started": "1"}), "the same number, another process"
    assert not is_orphan({**mine, "org.rwkvflow.machine": "elsewhere/boot"}), "another machine's"
    host = mine["org.rwkvflow.machine"].split("/")[0]
    assert is_orphan({**mine, "org.rwkvflow.machine": f"{host}/another-boot"}), "before a restart"
    another = {**mine, "org.rwkvflow.machine": f"{host}/another-boot"}
    assert not is_orphan(another, running=True), "nothing runs on after a restart: another machine of this name"
    monkeypatch.setattr("rwkvflow.sandbox.daemon._started", lambda pid: daemon.UNKNOWN)
    assert not is_orphan({**mine, "org.rwkvflow.started": "1"}), "it lives, and the system hides since when"
    monkeypatch.undo()
    assert not is_orphan({**mine, "org.rwkvflow.namespace": "pid:[1]"}), "its numbers mean nothing here"
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert is_orphan({**mine, "org.rwkvflow.pid": str(child)})


def test_user_of_a_container() -> None:
    assert user_for(["name=seccomp,profile=default"], 1000, 100) == "1000:100"
    assert user_for(["name=seccomp,profile=default"], 0, 0) == "65534:65534"
    assert user_for(["name=seccomp,profile=default", "name=rootless"], 1000, 100) == "0:0", "is the caller outside"


def test_a_pythons_own_settings_are_within_the_walls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian's sitecustomize.py is a link to /etc/python3.11: out of reach, every command begins with an error."""
    monkeypatch.setattr("os.path.realpath", lambda path, **options: str(path))
    monkeypatch.setattr(Path, "is_dir", lambda self: str(self) == "/etc/python3.11")
    assert of_python(Path("/usr/bin/python3.11")) == [Path("/usr"), Path("/etc/python3.11")]
    assert of_python(Path("/opt/p/bin/python3.12")) == [Path("/opt/p")]


def test_what_ships_in_an_image_is_copied_to_where_the_engine_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, folder, file = tmp_path / "mine.pth", PACKAGE / "engine" / "tools", PACKAGE / "py.typed"
    monkeypatch.delenv(daemon.IN_IMAGE, raising=False)
    assert daemon.seen_by_engine(folder, tmp_path / "copy") == folder
    monkeypatch.setenv(daemon.IN_IMAGE, "1")
    assert daemon.seen_by_engine(mine, tmp_path / "copy") == mine, "the user's own is mounted under its own path"
    for _ in range(2):  # a second try finds the first one's copy
        copy = daemon.seen_by_engine(folder, tmp_path / "shipped" / "tools")
        assert copy == tmp_path / "shipped" / "tools"
        assert tree_digest(copy) == tree_digest(folder)
    assert daemon.seen_by_engine(file, tmp_path / "shipped" / "file").read_bytes() == file.read_bytes()


def test_doctor_without_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    checks = {check.name: check for check in examine(tmp_path / "not" / "there")}
    assert checks["docker"].status == "warn"
    assert checks["docker"].remedy
    assert checks["python"].status == "ok"
    assert checks["hub token"].message == "given by HF_TOKEN"
    assert "hf_secret" not in str(checks)
    assert not (tmp_path / "not").exists()
    assert all(check.remedy for check in checks.values() if check.status != "ok")


def test_doctor_says_which_packages_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = {check.name: check for check in examine(tmp_path)}
    for name, modules, _, _ in PACKAGES:
        assert there[name].status == "ok"
        assert all(module in there[name].message for module in modules), "all of them are in the environment of tests"
        assert there[name].remedy is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    gone = {check.name: check for check in examine(tmp_path)}
    assert gone["s3"].message == "not installed, and needed for s3://: s3fs"
    assert (gone["s3"].status, gone["s3"].remedy) == ("ok", "pip install 'rwkvflow[s3]'")
    assert gone["tokenizers"].status == "warn"


def test_what_doctor_looks_for_is_what_an_extra_brings() -> None:
    document = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = {**document["optional-dependencies"], None: document["dependencies"]}
    for _, modules, _, extra in PACKAGES:
        names = {re.split(r"[^A-Za-z0-9_-]", item)[0].lower().replace("-", "_") for item in brought[extra]}
        assert {{"OpenSSL": "pyopenssl"}.get(module, module) for module in modules} <= names
    assert next(modules for name, modules, _, _ in PACKAGES if name == "serving") == NEEDED
