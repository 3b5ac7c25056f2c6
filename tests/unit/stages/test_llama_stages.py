"""llama.cpp in lock and plan: where a format is tested with it, and no trace of it elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from rwkvflow.app.pipeline import make_plan
from rwkvflow.base.errors import FetchError, LockError
from rwkvflow.documents.load import recipe_from_text
from rwkvflow.documents.lock import (
    Lock,
    LockedEngine,
    LockedFile,
    LockedImage,
    LockedWheel,
    LockedWheels,
    disagreements,
    locked_parts,
    recipe_digest,
)
from rwkvflow.documents.lock_text import lock_text
from rwkvflow.documents.recipe import Recipe
from rwkvflow.documents.workflow import Workflow
from rwkvflow.lock.resolve import packages_for
from rwkvflow.net.packages.source_package import unpack
from rwkvflow.plan.matrix import expand
from rwkvflow.plan.plan import Plan
from rwkvflow.plan.step import Ref
from rwkvflow.stages.blueprint import Blueprint
from rwkvflow.stages.llama import KEPT, ROOT

PLAIN = """\
name: x
models: [{name: a, source: a.pth}]
formats: [ggml-f16]
images: [{python: "3.11"}, {python: "3.12"}]
"""
WITH = PLAIN.replace("[ggml-f16]", "[ggml-f16, gguf-q8_0]")
ONE_IMAGE = WITH + 'matrix: {exclude: [{format: "gguf-*", image: py3.12}]}\n'


def recipe_of(text: str) -> Recipe:
    return recipe_from_text(text, "x.yaml", Path())


def lock_of(recipe: Recipe) -> Lock:
    wheel = LockedWheel(name="numpy", version="1", filename="numpy-1-py3-none-any.whl", sha256="0" * 64)
    wheels = LockedWheels(worker=(wheel,))
    return Lock(
        recipe=recipe_digest(recipe),
        models={"a": LockedFile(source="a.pth", resolved="a.pth", sha256="0" * 64, size=1)},
        images={
            image.name: LockedImage(python=image.python, platforms={"linux-x86_64": wheels}) for image in recipe.images
        },
        engine=LockedEngine(kind="builtin", resolved="builtin"),
        packages=packages_for(recipe),
    )


def plan_of(text: str, lock: Lock | None = None) -> Plan:
    recipe = recipe_of(text)
    return make_plan(
        Blueprint(
            recipe=recipe,
            recipe_path=Path("x.yaml").absolute(),
            workflow=Workflow.model_validate({"version": 1, "stages": {}}),
            workflow_path=Path("workflow.yaml").absolute(),
            lock=lock or lock_of(recipe),
            sandbox="host",
            platform="linux-x86_64",
            artifacts=tuple(expand(recipe)),
        )
    )


def test_a_recipe_without_gguf_has_no_trace_of_it() -> None:
    recipe = recipe_of(PLAIN)
    assert "packages" not in locked_parts(recipe)
    assert "packages" not in lock_text(lock_of(recipe))
    assert not any("llama" in name for name in plan_of(PLAIN).steps)


def test_steps_of_other_formats_stay_the_same() -> None:
    plain, more = plan_of(PLAIN).steps, plan_of(WITH).steps
    for name in ("convert/a/ggml-f16@py3.11", "smoke/a/ggml-f16@py3.11", "engine/librwkv@py3.11"):
        digests = dict.fromkeys(plain[name].inputs, "sha256:" + "0" * 64)
        assert plain[name].inputs == more[name].inputs
        assert plain[name].parts(digests) == more[name].parts(digests)


def test_it_is_fetched_built_and_used_where_gguf_is_made() -> None:
    steps = plan_of(ONE_IMAGE).steps
    assert "engine/llama.cpp@py3.11" in steps
    assert "engine/llama.cpp@py3.12" not in steps
    assert sorted(steps["image/py3.11"].params["engines"]) == ["librwkv", "llama.cpp"]
    assert sorted(steps["image/py3.12"].params["engines"]) == ["librwkv"]
    assert steps["image/py3.11"].inputs["llama.cpp"].step == "fetch/llama.cpp"  # type: ignore[union-attr]
    assert steps["smoke/a/gguf-q8_0@py3.11"].inputs["llama"].step == "engine/llama.cpp@py3.11"  # type: ignore[union-attr]
    assert "llama" not in steps["smoke/a/ggml-f16@py3.11"].inputs
    fetch = steps["fetch/llama.cpp"]
    assert fetch.params["sha256"] == lock_of(recipe_of(WITH)).packages["llama.cpp"].sha256  # type: ignore[index]


def test_images_with_the_same_toolchain_share_what_zig_builds() -> None:
    recipe = recipe_of(WITH)
    steps = plan_of(WITH).steps
    digests = {"source": "sha256:" + "0" * 64}
    for name in ("llama.cpp", "librwkv"):
        one, other = steps[f"engine/{name}@py3.11"], steps[f"engine/{name}@py3.12"]
        assert one.parts(digests) == other.parts(digests)
        assert (one.environment, other.environment) == ("image/py3.11", "image/py3.12")
    lock = lock_of(recipe)
    zig = LockedWheel(name="ziglang", version="9", filename="ziglang-9-py3-none-any.whl", sha256="1" * 64)
    newer = LockedWheels(worker=lock.images["py3.12"].platforms["linux-x86_64"].worker, toolchain=(zig,))
    image = lock.images["py3.12"].model_copy(update={"platforms": {"linux-x86_64": newer}})
    steps = plan_of(WITH, lock.model_copy(update={"images": {**lock.images, "py3.12": image}})).steps
    assert steps["engine/llama.cpp@py3.11"].parts(digests) != steps["engine/llama.cpp@py3.12"].parts(digests)


def test_what_the_machines_compiler_builds_is_of_one_environment() -> None:
    steps = plan_of(WITH + "engine: {source: builtin, toolchain: system}\n").steps
    assert steps["engine/llama.cpp@py3.11"].inputs["environment"] == Ref("image/py3.11", "environment")
    assert steps["engine/llama.cpp@py3.12"].inputs["environment"] == Ref("image/py3.12", "environment")


def test_a_lock_without_it_is_noticed() -> None:
    lock = lock_of(recipe_of(WITH)).model_copy(update={"packages": None})
    assert "packages.llama.cpp: is in the recipe, not in the lock" in disagreements(recipe_of(WITH), lock)
    with pytest.raises(LockError, match=r"does not pin llama\.cpp"):
        plan_of(WITH, lock)
    old = lock_of(recipe_of(WITH))
    assert "packages.llama.cpp: is in the lock, no longer in the recipe" in disagreements(recipe_of(PLAIN), old)


def test_an_epsilon_of_the_recipe_reaches_the_conversion_and_no_other_recipe() -> None:
    name = "convert/a/ggml-f16@py3.11"
    assert plan_of(PLAIN).steps[name].params["params"] == {}
    steps = plan_of(PLAIN.replace("source: a.pth", "source: a.pth, group_norm_eps: 1e-05")).steps
    assert steps[name].params["params"] == {"group_norm_eps": 1e-05}


def test_a_speed_that_is_asked_for_makes_only_the_smoke_anew() -> None:
    plain, timed = plan_of(PLAIN).steps, plan_of(PLAIN + "smoke: {speed: true}\n").steps
    changed = {name for name, step in timed.items() if step.params != plain[name].params}
    assert changed == {"smoke/a/ggml-f16@py3.11", "smoke/a/ggml-f16@py3.12"}
    assert timed["smoke/a/ggml-f16@py3.11"].params["params"]["speed"] is True
    assert "speed" not in plain["smoke/a/ggml-f16@py3.11"].params["params"]


# ---- source packages ------------------------------------------------------------------------------------------


def archive(path: Path, members: dict[str, bytes | None], link: str | None = None) -> Path:
    with tarfile.open(path, "w:gz") as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, link or "/etc/passwd"
                out.addfile(info)
            else:
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    return path


def test_only_what_is_kept_is_unpacked(tmp_path: Path) -> None:
    top = f"p-1/{ROOT}"
    members = {
        f"{top}/CMakeLists.txt": b"a",
        f"{top}/src/models/x.cpp": b"b",
        f"{top}/ggml/src/ggml.c": b"c",
        f"{top}/ggml/src/ggml-cuda/x.cu": b"d",
        f"{top}/models/huge.gguf": b"e",
        "p-1/setup.py": b"f",
        f"{top}/src/../../../../up.cpp": b"g",
        f"/{top}/src/root.cpp": b"h",
        f"{top}/src/link.cpp": None,
        f"{top}/srcs/x.cpp": b"i",
    }
    unpack(archive(tmp_path / "p.tar.gz", members), tmp_path / "out", root=ROOT, kept=KEPT)
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"CMakeLists.txt", "src/models/x.cpp", "ggml/src/ggml.c"}
    assert {path.name for path in tmp_path.iterdir()} == {"p.tar.gz", "out"}


def test_archives_that_are_none_or_have_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.tar.gz"
    broken.write_bytes(archive(tmp_path / "x.tar.gz", {f"p/{ROOT}/src/x": b"0" * 5000}).read_bytes()[:60])
    with pytest.raises(FetchError, match="cannot be unpacked"):
        unpack(broken, tmp_path / "out", root=ROOT, kept=KEPT)
    with pytest.raises(FetchError, match="none of the files"):
        unpack(archive(tmp_path / "y.tar.gz", {"p/x": b"1"}), tmp_path / "out", root=ROOT, kept=KEPT)
