"""Lock resolution with the real uv, the real hub client and git, against servers and wheels on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import FetchError, LockError, RwkvflowError
from rwkvflow.base.events import Event, Notice, StepProgress
from rwkvflow.documents.load import lock_from_text
from rwkvflow.documents.lock import Lock, LockedBase, LockedWheel, disagreements
from rwkvflow.documents.lock_text import lock_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.lock.header import BLOCK
from rwkvflow.lock.pins import pinned
from rwkvflow.lock.resolve import resolve
from rwkvflow.net.http import Policy
from rwkvflow.net.packages.wheels import download_wheels, resolve_wheels
from rwkvflow.store.store import Store
from tests.standin import Asset, StandIn

TOKEN = "hf_PlantedTokenThatMustNotLeak0123456789"  # noqa: S105 - planted to be looked for
DATA = random.Random(3).randbytes(100_000)
SUM = hashlib.sha256(DATA).hexdigest()
LINUX = "linux-x86_64"
X86 = "manylinux_2_17_x86_64.manylinux2014_x86_64"
FAST = Policy(attempts=2, first_delay_s=0.01, connect_s=5, stall_s=5)


def wheel(folder: Path, name: str, version: str, tag: str = "py3-none-any", requires: tuple[str, ...] = ()) -> Path:
    """A real, tiny wheel."""
    folder.mkdir(parents=True, exist_ok=True)
    distribution = name.replace("-", "_")
    info = f"{distribution}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files = {
        f"{distribution}.py": "",
        f"{info}/METADATA": metadata + "".join(f"Requires-Dist: {item}\n" for item in requires),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    record = ""
    for file, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{file},sha256={digest},{len(text)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    path = folder / f"{distribution}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in files.items():
            archive.writestr(zipfile.ZipInfo(file), text)
    return path


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip finds: the pinned packages as empty wheels, and torch in several builds."""
    folder = tmp_path / "wheelhouse"
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    for role, requirements in pinned("3.11").items():
        for requirement in requirements:
            name, version = requirement.split("==")
            compiled = role == "worker"
            wheel(folder, name, version, f"cp311-cp311-{X86}" if compiled else "py3-none-any")
            if compiled:
                wheel(folder, name, version, "cp311-cp311-macosx_11_0_arm64")
    wheel(folder, "pyrwkv-tokenizer", "0.9.1", f"cp38-abi3-{X86}")
    wheel(folder, "tokenizers", "0.20.3")
    wheel(folder, "only-linux", "1.0")
    wheel(folder, "only-arm-mac", "1.0")
    for_gpus = ("nvidia-cublas; platform_system == 'Linux'", "sympy")
    markers = ("only-linux; sys_platform == 'linux'", "only-arm-mac; platform_machine == 'arm64'", "sympy")
    wheel(folder, "sympy", "1.14.0")
    wheel(folder, "nvidia-cublas", "13.0")
    wheel(folder, "torch", "2.13.0+cpu", f"cp311-cp311-{X86}", markers)
    wheel(folder, "torch", "2.13.0+cu126", f"cp311-cp311-{X86}", for_gpus)
    wheel(folder, "torch", "2.13.0", f"cp311-cp311-{X86}", for_gpus)
    wheel(folder, "torch", "2.13.0", "cp311-cp311-manylinux_2_28_aarch64", for_gpus)
    wheel(folder, "torch", "2.13.0", "cp311-none-macosx_11_0_arm64", markers)
    wheel(folder, "torch", "2.12.0", f"cp312-cp312-{X86}", for_gpus)
    wheel(folder, "torch", "2.14.0", f"cp311-cp311-{X86}", for_gpus)
    wheel(folder, "torch", "2.14.0+cu126", f"cp311-cp311-{X86}", for_gpus)
    wheel(folder, "wants-torch", "1.0", requires=("torch",))
    return folder


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    with StandIn(tmp_path / "standin") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        yield standin


Locking = Callable[..., Lock]
NO_PIP: dict[str, Any] = {"platforms": []}  # where wheels are not what a test is about


@pytest.fixture
def lock(tmp_path: Path, wheelhouse: Path, net: StandIn) -> Locking:
    """Lock a recipe given as a mapping."""
    (tmp_path / "model.pth").write_bytes(DATA)

    def make(changes: Mapping[str, Any] | None = None, **options: Any) -> Lock:
        recipe = Recipe.model_validate(
            {
                "name": "test",
                "models": [{"name": "m", "source": "model.pth"}],
                "formats": ["ggml-q5_1"],
                **(changes or {}),
            }
        )
        defaults: dict[str, Any] = {"platforms": [LINUX], "base_of": lambda reference, python: None, "policy": FAST}
        made = resolve(recipe, tmp_path / "recipe.yaml", store=Store(tmp_path / "store"), **{**defaults, **options})
        assert disagreements(recipe, made) == []
        assert lock_from_text(lock_text(made), "lock") == made
        return made

    return make


def names(wheels: tuple[LockedWheel, ...] | list[LockedWheel]) -> list[str]:
    return [f"{item.name}=={item.version}" for item in wheels]


# ---- wheels --------------------------------------------------------------------------------------------------------


def test_a_small_recipe(lock: Locking, wheelhouse: Path, tmp_path: Path) -> None:
    made = lock()
    locked = made.models["m"]
    assert (locked.source, locked.resolved, locked.sha256, locked.size) == ("model.pth", "model.pth", SUM, len(DATA))
    wheels = made.images["py3.11"].platforms[LINUX]
    pins = pinned("3.11")
    assert not wheels.installer
    assert names(wheels.toolchain) == sorted(pins["toolchain"])
    assert names(wheels.worker) == sorted(pins["worker"])
    for item in (*wheels.worker, *wheels.toolchain):
        assert hashlib.sha256((wheelhouse / item.filename).read_bytes()).hexdigest() == item.sha256
    assert made.engine.kind == "builtin"
    text = lock_text(made)
    assert str(tmp_path) not in text
    assert "://" not in text


def test_torch_is_the_cpu_build_and_dependencies_follow_the_targets_markers(lock: Locking) -> None:
    made = lock({"images": [{"torch": "2.13.0"}]}, platforms=[LINUX, "macos-arm64"])
    platforms = made.images["py3.11-torch2.13.0"].platforms
    pins = pinned("3.11")["worker"]
    assert names(platforms[LINUX].worker) == sorted([*pins, "only-linux==1.0", "sympy==1.14.0", "torch==2.13.0+cpu"])
    mac = names(platforms["macos-arm64"].worker)
    assert mac == sorted([*pins, "only-arm-mac==1.0", "sympy==1.14.0", "torch==2.13.0"])


def test_gpu_builds_are_taken_only_by_name(lock: Locking, wheelhouse: Path) -> None:
    made = lock({"images": [{"torch": "2.13.0+cu126"}]})
    wheels = names(made.images["py3.11-torch2.13.0-cu126"].platforms[LINUX].worker)
    assert {"torch==2.13.0+cu126", "nvidia-cublas==13.0"} <= set(wheels)
    for platform, version in ((LINUX, "2.14.0"), ("linux-aarch64", "2.13.0")):
        with pytest.raises(
            LockError, match=rf"torch {version} .*{platform} can only be found as a build for GPUs"
        ) as no:
            resolve_wheels("3.11", platform, [f"torch=={version}"])
        assert f"{version}+cu126" in (no.value.remedy or "")


def test_constraints_of_pips_configuration_hide_no_torch(
    lock: Locking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is there is looked for without them; what is taken still keeps to them."""
    (tmp_path / "constraints.txt").write_text("torch<=2.13.5\n")
    (tmp_path / "pip.conf").write_text(f"[global]\nconstraint = {tmp_path / 'constraints.txt'}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    made = lock({"images": [{"torch": "2.13.0"}]}, platforms=[LINUX])
    assert "torch==2.13.0+cpu" in names(made.images["py3.11-torch2.13.0"].platforms[LINUX].worker)
    with pytest.raises(LockError, match=r"no set of wheels fits .*torch==2\.14\.0\+cu126"):
        resolve_wheels("3.11", LINUX, ["torch==2.14.0+cu126"])


def test_torch_must_be_named_by_the_image(wheelhouse: Path) -> None:
    with pytest.raises(LockError, match="wants-torch needs PyTorch"):
        resolve_wheels("3.11", LINUX, ["wants-torch"])
    found = resolve_wheels("3.11", LINUX, ["wants-torch", "torch==2.13.0"])
    assert "torch==2.13.0+cpu" in names(found)


def test_a_python_and_a_torch_that_do_not_go_together(lock: Locking) -> None:
    with pytest.raises(LockError) as caught:
        lock({"images": [{"torch": "2.12.0"}]})
    message = str(caught.value)
    assert "images.py3.11-torch2.12.0: there is no wheel of torch 2.12.0 for Python 3.11 on linux-x86_64" in message
    assert "that Python has torch 2.13.0, 2.13.0+cpu, 2.13.0+cu126, 2.14.0" in message
    assert "torch 2.12.0 has wheels for Python 3.12" in message
    with pytest.raises(LockError, match="that Python has no torch at all; no Python has torch 1"):
        resolve_wheels("3.10", LINUX, ["torch==1.0.0"])


def test_requirements_that_nothing_fits(wheelhouse: Path) -> None:
    with pytest.raises(LockError, match=r"fits sympy==9.9; it has 1\.14\.0"):
        resolve_wheels("3.11", LINUX, ["sympy==9.9"])
    with pytest.raises(LockError, match="fits absent; it has none at all"):
        resolve_wheels("3.11", LINUX, ["absent"])
    with pytest.raises(LockError, match="no requirement"):
        resolve_wheels("3.11", LINUX, ["--index-url=x"])
    with pytest.raises(LockError, match="no wheels for windows"):
        resolve_wheels("3.11", "windows-x86_64", ["sympy"])


def test_tokenizers_and_extra_wheels_come_along(lock: Locking, wheelhouse: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    wheel(wheelhouse, "numpy", "1.26.4", f"cp311-cp311-{X86}")
    models = [
        {"name": "a", "source": "model.pth", "tokenizer": "world"},
        {"name": "b", "source": "model.pth", "tokenizer": "./tokenizer.json"},
    ]
    made = lock({"models": models, "images": [{"wheels": ["numpy<2", "sympy"]}], "engine": {"toolchain": "system"}})
    wheels = made.images["py3.11"].platforms[LINUX]
    assert {"numpy==1.26.4", "sympy==1.14.0", "pyrwkv-tokenizer==0.9.1", "tokenizers==0.20.3"} <= set(
        names(wheels.worker)
    )
    assert wheels.toolchain == ()
    assert made.tokenizers["b"].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert list(made.tokenizers) == ["b"]


def test_an_index_with_a_login_leaves_no_trace(
    lock: Locking, wheelhouse: Path, net: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in wheelhouse.glob("*.whl"):
        net.assets[path.name] = Asset(path.read_bytes())
        name = path.name.split("-")[0].replace("_", "-").lower()
        page = net.assets.setdefault(f"simple/{name}/", Asset(b"<!DOCTYPE html>", content_type="text/html"))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        page.data += f'<a href="{net.url(path.name).replace("+", "%2B")}#sha256={digest}">{path.name}</a>'.encode()
        net.assets[path.name.replace("+", "%2B")] = net.assets[path.name]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", net.url("simple").replace("//", "//user:index-secret@"))
    text = lock_text(lock({"images": [{"torch": "2.13.0"}]}))
    assert "index-secret" not in text
    assert "127.0.0.1" not in text
    assert "torch-2.13.0+cpu" in text
    net.fault("status", "/simple/", status=404, times=10_000)
    with pytest.raises(RwkvflowError) as caught:
        lock({"images": [{"torch": "2.13.0"}]})
    assert "index-secret" not in str(caught.value)


def test_download_brings_what_is_missing_and_verifies(wheelhouse: Path, tmp_path: Path) -> None:
    wheels = resolve_wheels("3.11", LINUX, ["torch==2.13.0"])
    folder, lines = tmp_path / "wheels", list[str]()
    download_wheels(wheels, python="3.11", platform=LINUX, destination=folder, on_line=lines.append)
    assert sorted(path.name for path in folder.iterdir()) == sorted(item.filename for item in wheels)
    assert lines
    spoiled = folder / wheels[0].filename
    spoiled.write_bytes(b"damage")
    (folder / ".incoming-killed").mkdir()
    (folder / ".incoming-killed/torch.whl").write_bytes(b"half of it")
    lines.clear()
    download_wheels(wheels, python="3.11", platform=LINUX, destination=folder, on_line=lines.append)
    assert hashlib.sha256(spoiled.read_bytes()).hexdigest() == wheels[0].sha256
    assert sorted(path.name for path in folder.iterdir()) == sorted(item.filename for item in wheels)
    assert not any("torch" in line for line in lines)
    lines.clear()
    download_wheels(wheels, python="3.11", platform=LINUX, destination=folder, on_line=lines.append)
    assert lines == []


def test_download_of_two_versions_of_a_package(wheelhouse: Path, tmp_path: Path) -> None:
    old = resolve_wheels("3.11", LINUX, ["sympy"])
    wheel(wheelhouse, "sympy", "1.15.0")
    wheels = [*old, *resolve_wheels("3.11", LINUX, ["sympy"]), *old]
    download_wheels(wheels, python="3.11", platform=LINUX, destination=tmp_path / "wheels")
    assert sorted(path.name for path in (tmp_path / "wheels").iterdir()) == [
        "sympy-1.14.0-py3-none-any.whl",
        "sympy-1.15.0-py3-none-any.whl",
    ]


def test_download_refuses_other_bytes_and_odd_names(wheelhouse: Path, tmp_path: Path) -> None:
    [sympy] = resolve_wheels("3.11", LINUX, ["sympy"])
    folder = tmp_path / "wheels"

    def download(*wheels: LockedWheel) -> None:
        download_wheels(wheels, python="3.11", platform=LINUX, destination=folder)

    with pytest.raises(FetchError, match="is not the one in the lock"):
        download(sympy.model_copy(update={"sha256": "0" * 64}))
    with pytest.raises(FetchError, match="no longer have"):
        download(sympy.model_copy(update={"version": "9.9", "filename": "sympy-9.9-py3-none-any.whl"}))
    for filename in ("../sympy-1.14.0-py3-none-any.whl", "other-1.14.0-py3-none-any.whl", "sympy", "-r"):
        with pytest.raises(LockError, match="cannot be in a file named"):
            download(sympy.model_copy(update={"filename": filename}))
    assert list(folder.glob("*")) == []


# ---- files, engines, bases -----------------------------------------------------------------------------------------


def test_hub_branches_become_commits_without_a_download(
    lock: Locking, net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = net.hub.create("owner/model", private=True)
    repo.readers = {"me"}
    first = repo.commit({"model.pth": DATA, "small.json": b"{}"})
    repo.tags["v1"] = first
    repo.commit({"model.pth": DATA[::-1]})
    net.tokens[TOKEN] = "me"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    events: list[Event] = []
    made = lock(
        {
            "models": [
                {"name": "head", "source": "hf://owner/model/model.pth", "tokenizer": "hf://owner/model/small.json"},
                {"name": "tag", "source": "hf://owner/model@v1/model.pth", "sha256": SUM},
            ]
        },
        emit=events.append,
        **NO_PIP,
    )
    assert made.models["head"].resolved == f"hf://owner/model@{repo.branches['main']}/model.pth"
    assert made.models["head"].sha256 == hashlib.sha256(DATA[::-1]).hexdigest()
    assert made.models["tag"].resolved == f"hf://owner/model@{first}/model.pth"
    assert made.models["tag"].size == len(DATA)
    assert made.tokenizers["head"].size == 2
    assert all("range" in seen.headers for seen in net.requests(host="cdn")), "headers only"
    assert TOKEN not in lock_text(made)
    assert not any(TOKEN in repr(event) for event in events)
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_rate_limits_of_the_hub_are_waited_for(lock: Locking, net: StandIn) -> None:
    net.hub.create("owner/model").commit({"model.pth": DATA})
    net.fault("status", "/api/models/", status=429, headers={"Retry-After": "0"})
    net.fault("status", "/resolve/", status=503)
    made = lock({"models": [{"name": "m", "source": "hf://owner/model/model.pth"}]}, **NO_PIP)
    assert made.models["m"].sha256 == SUM


def test_web_files_with_a_hash_are_only_asked_for_their_size(lock: Locking, net: StandIn, tmp_path: Path) -> None:
    net.assets["model.pth"] = Asset(DATA)
    source = {"name": "m", "source": net.url("model.pth")}
    assert lock({"models": [{**source, "sha256": SUM}]}, **NO_PIP).models["m"].size == len(DATA)
    assert [seen.method for seen in net.seen] == ["GET", "HEAD"]
    assert net.seen[0].headers["range"] == f"bytes=0-{BLOCK - 1}", "its header"
    assert lock({"models": [source]}, **NO_PIP).models["m"].sha256 == SUM
    assert Store(tmp_path / "store").path(f"sha256:{SUM}") is not None
    assert list((tmp_path / "store/downloads").iterdir()) == []


def test_all_problems_are_told_together(lock: Locking, net: StandIn) -> None:
    net.hub.create("owner/model").commit({"model.pth": DATA})
    models = [
        {"name": "local", "source": "modle.pth"},
        {"name": "hub", "source": "hf://owner/model/absent.pth"},
        {"name": "hash", "source": "hf://owner/model/model.pth", "sha256": "1" * 64},
        {"name": "web", "source": net.url("absent")},
    ]
    with pytest.raises(LockError) as caught:
        lock({"models": models, "images": [{"torch": "9.9.9"}], "engine": {"source": {"path": "nowhere"}}})
    text = str(caught.value)
    assert "6 inputs cannot be locked" in text
    for part in (
        "models.local: ",
        "did you mean",
        "models.hub: owner/model has no file 'absent.pth'",
        f"expected sha256 {'1' * 64}, got {SUM}",
        "models.web: ",
        "404",
        "images.py3.11-torch9.9.9: there is no wheel of torch 9.9.9",
        "engine: nowhere is no folder",
    ):
        assert part in text


def test_one_problem_keeps_its_class(lock: Locking) -> None:
    with pytest.raises(FetchError, match=r"models\.m: .* does not exist"):
        lock({"models": [{"name": "m", "source": "absent.pth"}]}, **NO_PIP)
    with pytest.raises(FetchError, match=f"models.m: model.pth: expected sha256 {'3' * 64}"):
        lock({"models": [{"name": "m", "source": "model.pth", "sha256": "3" * 64}]}, **NO_PIP)


def test_engines(lock: Locking, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    with pytest.raises(LockError, match="engine has no CMakeLists"):
        lock({"engine": {"source": {"path": "engine"}}}, **NO_PIP)
    (folder / "CMakeLists.txt").write_text("project(x C)\n")
    made = lock({"engine": {"source": {"path": "engine"}}}, **NO_PIP).engine
    assert (made.kind, made.resolved) == ("folder", "engine")
    (folder / "CMakeLists.txt").write_text("project(y C)\n")
    assert lock({"engine": {"source": {"path": "engine"}}}, **NO_PIP).engine.digest != made.digest

    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q", "-b", "main")
    git("add", ".")
    git("commit", "-q", "-m", "one")
    url = folder.as_uri()
    made = lock({"engine": {"source": {"git": url, "ref": "main"}}}, **NO_PIP).engine
    assert (made.kind, made.resolved, made.digest) == ("git", f"{url}@{git('rev-parse', 'HEAD')}", None)
    with pytest.raises(LockError, match="no branch or tag 'mian'; did you mean 'main'"):
        lock({"engine": {"source": {"git": url, "ref": "mian"}}}, **NO_PIP)


def test_what_still_agrees_is_kept(lock: Locking, net: StandIn, wheelhouse: Path) -> None:
    repo = net.hub.create("owner/model")
    repo.commit({"model.pth": DATA})
    hub = {"name": "hub", "source": "hf://owner/model/model.pth"}
    recipe: dict[str, Any] = {"models": [hub], "images": [{"wheels": ["sympy"]}]}
    first = lock(recipe, platforms=[LINUX, "macos-arm64"])
    repo.commit({"model.pth": DATA[::-1]})
    wheel(wheelhouse, "sympy", "1.15.0")
    net.seen.clear()
    assert lock(recipe, previous=first) == first
    assert net.seen == []
    local = {"name": "local", "source": "model.pth"}
    images = [{"wheels": ["sympy", "only-linux"]}]
    second = lock({"models": [hub, local], "images": images}, previous=first)
    assert second.models["hub"] == first.models["hub"]
    for platform in (LINUX, "macos-arm64"):
        worker = names(second.images["py3.11"].platforms[platform].worker)
        assert {"sympy==1.14.0", "only-linux==1.0"} <= set(worker)
    fresh = lock(recipe)
    assert fresh.models["hub"].resolved.split("@")[1].startswith(repo.branches["main"])
    assert "sympy==1.15.0" in names(fresh.images["py3.11"].platforms[LINUX].worker)


def test_a_platform_that_can_no_longer_be_kept_up_is_dropped_aloud(lock: Locking, wheelhouse: Path) -> None:
    first = lock(platforms=[LINUX, "macos-arm64"])
    events: list[Event] = []
    second = lock({"images": [{"torch": "2.13.0+cpu", "name": "py3.11"}]}, previous=first, emit=events.append)
    assert list(second.images["py3.11"].platforms) == [LINUX]
    assert any(isinstance(event, Notice) and "macos-arm64 are no longer locked" in event.message for event in events)


def test_a_changed_local_file_changes_the_lock(lock: Locking, tmp_path: Path) -> None:
    events: list[Event] = []
    first = lock(emit=events.append, **NO_PIP)
    assert any(isinstance(event, StepProgress) and event.step == "lock/m" for event in events)
    events.clear()
    assert lock(previous=first, emit=events.append, **NO_PIP) == first
    assert not any(isinstance(event, StepProgress) and event.step == "lock/m" for event in events)
    (tmp_path / "model.pth").write_bytes(DATA[::-1])
    assert lock(previous=first, **NO_PIP).models["m"].sha256 == hashlib.sha256(DATA[::-1]).hexdigest()


def test_bases(lock: Locking) -> None:
    asked: list[str] = []

    def base_of(kind: str, digit: str) -> Callable[[str | None, str], LockedBase]:
        def look(reference: str | None, python: str) -> LockedBase:
            asked.append(str(reference))
            reference = reference or f"python:{python}-slim"
            return LockedBase.model_validate({"reference": reference, "digest": f"sha256:{digit * 64}", "kind": kind})

        return look

    registry = lock(base_of=base_of("registry", "a"), **NO_PIP)
    assert registry.images["py3.11"].base is not None
    again = lock(base_of=base_of("registry", "b"), previous=registry, **NO_PIP)
    assert json.loads(again.model_dump_json()) == json.loads(registry.model_dump_json())
    assert len(asked) == 1
    local = lock(base_of=base_of("local", "a"), **NO_PIP)
    base = lock(base_of=base_of("local", "b"), previous=local, **NO_PIP).images["py3.11"].base
    assert base is not None
    assert base.digest == f"sha256:{'b' * 64}"
    kept = lock(previous=local, **NO_PIP).images["py3.11"].base
    assert kept == local.images["py3.11"].base
    assert asked == ["None", "None", "python:3.11-slim"], "what was chosen once is kept, and looked at again"
