"""rwkvflow as software that is found and installed: metadata, links, man pages, completion, action, release."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from packaging.version import Version

import hatch_build
from rwkvflow.cli import cli
from rwkvflow.display.manual import escaped
from scripts import build_wheels

ROOT = Path(__file__).resolve().parents[2]
RELEASE = ROOT / ".github" / "workflows" / "release.yml"
ACTION = ROOT / "action.yml"
URL = "https://git.example.org/owner/name"


def check(schema: str, file: Path) -> None:
    pytest.importorskip("check_jsonschema")
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def metadata(monkeypatch: pytest.MonkeyPatch, url: str) -> dict[str, Any]:
    monkeypatch.setenv("RWKVFLOW_PROJECT_URL", url)
    monkeypatch.setenv("RWKVFLOW_PROJECT_REF", "v9.9")
    found: dict[str, Any] = {"version": "9.9"}
    hatch_build.LinksHook(str(ROOT), {}).update(found)
    return found


def test_links_of_the_description_lead_somewhere_from_a_package_index(monkeypatch: pytest.MonkeyPatch) -> None:
    text = metadata(monkeypatch, f"{URL}/")["readme"]["text"]
    links = re.findall(r"!?\[[^\]]*\]\(([^)\s]+)\)", text)
    assert links
    assert not [link for link in links if not link.startswith(("https://", "#"))]
    assert f"{URL}/raw/v9.9/docs/images/run.svg" in links
    for link in links:
        if link.startswith(URL):
            path = link.split("/v9.9/", 1)[1].partition("#")[0]
            assert (ROOT / path).is_file(), link
    assert metadata(monkeypatch, URL)["urls"]["Changelog"] == f"{URL}/blob/v9.9/CHANGELOG.md"


def test_nothing_is_claimed_of_where_the_sources_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found = metadata(monkeypatch, "")
    assert found["urls"] == {}
    assert found["readme"]["text"] == (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_version_is_that_of_the_tag(tmp_path: Path) -> None:
    """And a commit without one is no release, which can be told from every other."""

    def git(*words: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert hatch_build.version(tmp_path) == "0+unknown"
    git("init", "--quiet")
    (tmp_path / "file").write_text("a")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    one = git("rev-parse", "--short=12", "HEAD")
    assert hatch_build.version(tmp_path) == f"0+g{one}"
    for tag, found in (("mine", f"0+g{one}"), ("v9.9.0rc1", "9.9.0rc1")):
        git("tag", tag)
        assert hatch_build.version(tmp_path) == found
    (tmp_path / "file").write_text("b")
    assert hatch_build.version(tmp_path) == "0+gv9.9.0rc1.changed"
    git("commit", "--quiet", "--all", "--message", "two")
    two = git("rev-parse", "--short=12", "HEAD")
    assert hatch_build.version(tmp_path) == f"0+g{two}"
    (tmp_path / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: rwkvflow\nVersion: 9.9.1\n\nVersion: 1\n")
    assert hatch_build.version(tmp_path) == "9.9.1", "a source package, perhaps below somebody's repository"
    for text in (f"0+g{one}", "0+gv9.9.0rc1.changed", "0+unknown", "9.9.0rc1"):
        assert str(Version(text)) == text


def test_every_command_has_a_man_page_that_roff_reads(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["man", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert isinstance(cli, click.Group)
    there = {path.stem for path in tmp_path.glob("*.1")}
    assert {"rwkvflow", "rwkvflow-cache-gc", "rwkvflow-engine-build"} <= there
    assert {f"rwkvflow-{name}" for name in cli.commands} <= there
    convert = (tmp_path / "rwkvflow-convert.1").read_text()
    assert convert.startswith('.TH "RWKVFLOW-CONVERT" "1"')
    assert r"\-\-format" in convert
    assert "EXIT STATUS" in (tmp_path / "rwkvflow.1").read_text()
    lines = [line for path in tmp_path.glob("*.1") for line in path.read_text().splitlines()]
    assert {line.split()[0] for line in lines if line.startswith(".")} == {".TH", ".SH", ".PP", ".TP", ".B"}
    if (groff := shutil.which("groff")) is not None:
        for page in (tmp_path / "rwkvflow.1", tmp_path / "rwkvflow-convert.1"):
            run = subprocess.run([groff, "-man", "-ww", "-Tutf8", page], capture_output=True, text=True, check=True)
            assert not run.stderr, run.stderr


def test_text_in_a_man_page_is_no_request() -> None:
    assert escaped(".so /etc/passwd") == r"\&.so /etc/passwd"
    assert escaped(r"a\b - c") == r"a\eb \- c"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("rwkvflow convert m.pth out --format gguf-q4_k", {"gguf-q4_k_m", "gguf-q4_k_s"}),
        ("rwkvflow convert m.pth out --format q8_0", {"ggml-q8_0", "gguf-q8_0", "ggml-q8_0-from-f32"}),
        ("rwkvflow run recipes/demo.yaml --only rwkv7-demo/ggml-f16", {"rwkv7-demo/ggml-f16@py3.11"}),
        ("rwkvflow run recipes/absent.yaml --only x", set()),
        ("rwkvflow comp", {"compare", "completion"}),
    ],
)
def test_shells_complete_formats_and_identifiers(words: str, found: set[str]) -> None:
    environment = {
        **os.environ,
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_RWKVFLOW_COMPLETE": "bash_complete",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", "from rwkvflow.cli import cli; cli(prog_name='rwkvflow')"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert {line.split(",", 1)[1] for line in done.stdout.split()} == found, done.stderr


def test_the_action_is_valid_and_its_step_runs() -> None:
    check("vendor.github-actions", ACTION)
    action = yaml.safe_load(ACTION.read_text())
    steps = {step.get("name"): step for step in action["runs"]["steps"]}
    assert "${{" not in steps["Run"]["run"] + steps["Install"]["run"], "what is given is never part of a command"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COMMAND": "matrix",
        "RECIPE": "recipes/demo.yaml",
        "ARGUMENTS": "--by model",
    }
    words = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", steps["Run"]["run"]]
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["rwkv4-demo/*", "rwkv7-demo/*"]


def test_the_release_workflow_is_valid_and_builds_what_is_there() -> None:
    check("vendor.github-workflows", RELEASE)
    document = yaml.safe_load(RELEASE.read_text())
    build, publish = document["jobs"]["build"], document["jobs"]["publish"]
    runs = "\n".join(step.get("run", "") for step in build["steps"])
    assert "scripts/build_wheels.py dist\n" in runs, "all platforms"
    assert {tag.split("_")[0] for tag in build_wheels.TARGETS} == {"manylinux", "musllinux", "macosx", "win"}
    dev = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["dev"]
    for package in ("ziglang", "cmake", "ninja"):
        (pinned,) = [item for item in dev if item.startswith(f"{package}==")]
        assert pinned in runs, "a release is built by the compiler that the tests have"
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["needs"] == "build"
    assert "password" not in str(publish), "trusted publishing has none"


def test_the_image_of_a_release_is_pushed_when_its_wheels_are_published() -> None:
    """What is pushed, and how, is tried in test_tool_image.py."""
    jobs = yaml.safe_load(RELEASE.read_text())["jobs"]
    image = jobs["image"]
    assert image["needs"] == "publish"
    assert [name for name, job in jobs.items() if "packages" in job.get("permissions", {})] == ["image"]
    steps = {step.get("name", step.get("uses", "").partition("@")[0]): step for step in image["steps"]}
    assert "github.token" in steps["Log in"]["env"]["TOKEN"]
    assert not [step for step in steps.values() if "${{" in step.get("run", "")], "never part of a command"
    attest = steps["actions/attest-build-provenance"]["with"]
    assert attest == {
        "subject-name": "${{ steps.push.outputs.name }}",
        "subject-digest": "${{ steps.push.outputs.digest }}",
        "push-to-registry": True,
    }
    assert steps["Build and push"]["shell"] == steps["Log in"]["shell"] == "bash", "what fails in a pipe fails"
