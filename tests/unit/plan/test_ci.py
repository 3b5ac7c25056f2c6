"""CI workflows: valid by the services' own schemas, every artifact in one job, and no recipe inside a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import UsageError
from rwkvflow.cli import cli
from rwkvflow.plan.ci import (
    _INSTALL,
    GITHUB_JOBS,
    GITLAB_JOBS,
    By,
    CiSettings,
    dump,
    github_matrix,
    github_reusable,
    github_workflow,
    gitlab_jobs,
    gitlab_workflow,
    jobs,
)
from rwkvflow.plan.matrix import Artifact, select

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
ARTIFACTS = st.lists(st.builds(Artifact, NAMES, NAMES, NAMES), min_size=1, max_size=12, unique=True)
SETTINGS = CiSettings("demo", "recipes/demo.yaml", "rwkvflow==0.1.0")


@pytest.mark.parametrize("by", ["artifact", "model", "format", "image"])
@given(artifacts=ARTIFACTS)
def test_every_artifact_is_made_by_exactly_one_job(by: By, artifacts: list[Artifact]) -> None:
    made = jobs(artifacts, by)
    assert sorted(name for job in made for name in job.artifacts) == sorted(artifact.id for artifact in artifacts)
    for job in made:
        assert [artifact.id for artifact in select(artifacts, [job.only])] == list(job.artifacts)


def check(schema: str, *files: Path, transform: tuple[str, ...] = ()) -> None:
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *transform, *map(str, files)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


SIGNING = {"contents": "read", "id-token": "write", "attestations": "write"}


def pair(chosen: CiSettings, folder: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The caller and the called one, both valid by the schema."""
    (folder / "w.yml").write_text(github_workflow(chosen, "w-build.yml"))
    (folder / "w-build.yml").write_text(github_reusable(chosen))
    check("vendor.github-workflows", folder / "w.yml", folder / "w-build.yml")
    first, second = (yaml.safe_load((folder / name).read_text()) for name in ("w.yml", "w-build.yml"))
    return first, second


@pytest.mark.parametrize(("name", "by"), [("demo", "artifact"), ("123", "model")])
def test_github_workflow_is_valid(tmp_path: Path, name: str, by: By) -> None:
    pytest.importorskip("check_jsonschema")
    chosen = CiSettings(name, "some where/re cipe.yaml", "rwkvflow[s3]==0.1.0", "docker", by, ("HF_TOKEN", "AWS_KEY"))
    caller, document = pair(chosen, tmp_path)
    assert caller["name"] == name
    assert caller["jobs"]["release"]["uses"] == "./.github/workflows/w-build.yml"
    assert document["jobs"]["publish"]["needs"] == "make"
    assert document["env"]["RECIPE"] == chosen.recipe
    secret = {"HF_TOKEN": "${{ secrets.HF_TOKEN }}", "AWS_KEY": "${{ secrets.AWS_KEY }}"}
    assert caller["jobs"]["release"]["secrets"] == secret
    assert set(document["on"]["workflow_call"]["secrets"]) == set(secret)
    assert next(step["env"] for step in document["jobs"]["publish"]["steps"] if step.get("name") == "Publish") == secret
    for without in ("plan", "attest"):
        assert "secrets" not in dump(document["jobs"][without])


def test_only_the_job_that_signs_may_and_it_runs_nothing_else(tmp_path: Path) -> None:
    """What SLSA asks of provenance that cannot be forged: no step of a build has the right to sign."""
    pytest.importorskip("check_jsonschema")
    caller, document = pair(SETTINGS, tmp_path)
    assert caller["permissions"] == document["permissions"] == {"contents": "read"}
    assert caller["jobs"]["release"]["permissions"] == SIGNING, "the called one cannot have more than the caller gives"
    rights = {name: job.get("permissions") for name, job in document["jobs"].items()}
    assert rights == {"plan": None, "make": None, "publish": None, "attest": SIGNING}
    attest = document["jobs"]["attest"]
    assert attest["needs"] == "publish"
    assert [step["uses"].partition("@")[0] for step in attest["steps"]] == [
        "actions/download-artifact",
        "actions/attest-build-provenance",
        "actions/upload-artifact",
    ]
    assert not commands(attest)
    sums = attest["steps"][1]["with"]["subject-checksums"]
    assert [command for command in commands(document["jobs"]["publish"]) if command.endswith(f" --sums {sums}")]
    assert all(job["runs-on"] == "ubuntu-24.04" for job in document["jobs"].values()), "GitHub's own machines"


SLSA = {
    "Choose an appropriate build platform": "1–3",
    "Follow a consistent build process": "1–3",
    "Distribute provenance": "1–3",
    "Provenance exists": "1–3",
    "Provenance is authentic": "2–3",
    "Provenance is unforgeable": "3",
    "Hosted": "2–3",
    "Isolated: ephemeral, builds do not influence one another": "3",
    "Isolated: no secrets of the platform in reach of a build": "3",
    "Isolated: caches hold what was put into them": "3",
    "Isolated: no service through which somebody could influence a build": "3",
}  # of version 1.0, "Producing artifacts": of the producer, of provenance, and of the platform's isolation
PAGE = RECIPES.parent / "docs" / "guides" / "releases.md"


def test_the_page_has_each_requirement_of_slsa_and_the_workflow_what_it_says_of_it(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    section = PAGE.read_text(encoding="utf-8").partition("\n## Provenance by GitHub")[2]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| ")]
    said = {row[0]: row for row in rows[2:]}
    assert {name: row[1] for name, row in said.items()} == SLSA
    caller, document = pair(SETTINGS, tmp_path)
    made = [step for name in ("plan", "make", "publish") for step in document["jobs"][name]["steps"]]
    checkouts = [step for step in made if step.get("uses", "").startswith("actions/checkout@")]
    assert len(checkouts) == 3
    assert all(step["with"] == {"persist-credentials": False} for step in checkouts), "no token lies beside a build"
    assert SETTINGS.secrets == ("HF_TOKEN",)
    assert "`HF_TOKEN`" in said["Isolated: no secrets of the platform in reach of a build"][3]
    assert set(caller["on"]) == {"workflow_dispatch"}
    assert caller["on"]["workflow_dispatch"] == {}, "nobody gives a build an input"
    assert set(document["on"]["workflow_call"]) == {"secrets"}
    assert not [job for job in document["jobs"].values() if "services" in job or "container" in job]


def test_a_workflow_that_runs_by_itself_makes_the_lock_anew_and_once(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    caller, document = pair(CiSettings("demo", "recipes/demo.yaml", "rwkvflow==0.1.0", schedule="17 4 * * 1"), tmp_path)
    assert caller["on"]["schedule"] == [{"cron": "17 4 * * 1"}]
    jobs_ = document["jobs"]
    assert [step.get("run", "") for step in jobs_["plan"]["steps"] if "--fresh" in step.get("run", "")]
    assert {"name": "lock", "path": "recipes/demo.lock.yaml"} in [step.get("with") for step in jobs_["plan"]["steps"]]
    for name in ("make", "publish"):
        assert {"name": "lock", "path": "recipes"} in [step.get("with") for step in jobs_[name]["steps"]]
    assert "--fresh" not in github_reusable(SETTINGS)
    for wrong in ("* * *", "0 0 * * 1; rm", "@daily", "$X 0 * * 1"):
        with pytest.raises(UsageError, match="cron"):
            github_workflow(CiSettings("demo", "r.yaml", "rwkvflow", schedule=wrong), "w.yml")


@pytest.mark.parametrize("name", ["", "../x.yml", "x", "a b.yml", "-x.yml", "${{ x }}.yml", "x.yml\n"])
def test_odd_names_of_files_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be called"):
        github_workflow(SETTINGS, name)


@pytest.mark.parametrize(("remote", "package"), [("s3://b/f", "s3fs"), ("gs://b", "gcsfs"), ("az://c", "adlfs")])
def test_jobs_install_what_their_store_needs(remote: str, package: str, tmp_path: Path) -> None:
    """The script of the jobs, run by a shell in which python only says what it is asked for."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PACKAGE": "rwkvflow", "RWKVFLOW_REMOTE": remote}
    done = subprocess.run(["bash", "-eu", "-c", _INSTALL], env=env, capture_output=True, text=True, check=True)
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["rwkvflow", package]
    env["RWKVFLOW_REMOTE"] = ""
    done = subprocess.run(["bash", "-eu", "-c", _INSTALL], env=env, capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 1


def test_a_workflows_package_has_the_extras_of_its_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "name: a\nmodels: [{name: m, source: m.pth}]\nformats: [ggml-f16]\npublish: [{to: 's3://bucket/folder'}]\n"
    plain = text.partition("publish")[0]
    for version, pin in (("1.2.0", "==1.2.0"), ("0+g0123abc", ""), ("0+checkout", "")):
        monkeypatch.setattr("rwkvflow.__version__", version)
        for recipe, extras in ((text, "[s3]"), (plain, "")):
            Path("r.yaml").write_text(recipe)
            done = CliRunner().invoke(cli, ["ci", "github", "r.yaml"])
            assert done.exit_code == 0, done.output
            caller, called = yaml.safe_load_all(done.output)
            assert called["env"]["PACKAGE"] == f"rwkvflow{extras}{pin}"
            assert caller["jobs"]["release"]["uses"] == "./.github/workflows/rwkvflow-a-build.yml"


def test_gitlab_pipelines_are_valid(tmp_path: Path) -> None:
    pytest.importorskip("check_jsonschema")
    many = jobs([Artifact(f"m{number}", "f", "i") for number in range(GITLAB_JOBS + 1)])
    child = gitlab_jobs(many)
    assert sorted(name for name in child if name != "default") == ["make-1", "make-2"]
    only = [name for part in ("make-1", "make-2") for name in child[part]["parallel"]["matrix"][0]["ONLY"]]
    assert only == [job.only for job in many]
    (tmp_path / "parent.yml").write_text(gitlab_workflow(SETTINGS))
    (tmp_path / "child.yml").write_text(dump(child))
    transform = ("--data-transform", "gitlab-ci")
    check("vendor.gitlab-ci", tmp_path / "parent.yml", tmp_path / "child.yml", transform=transform)


def commands(document: Any) -> set[str]:
    """Everything that a shell gets to see."""
    found: set[str] = set()
    if isinstance(document, dict):
        for key, value in document.items():
            if key in ("run", "script", "before_script") and not isinstance(value, dict):
                found |= {value} if isinstance(value, str) else set(value)
            else:
                found |= commands(value)
    elif isinstance(document, list):
        for value in document:
            found |= commands(value)
    return found


@settings(max_examples=40)
@given(NAMES, st.text(st.characters(codec="utf-8"), min_size=1, max_size=30), st.text(max_size=20))
def test_nothing_of_a_recipe_is_part_of_a_command(name: str, path: str, package: str) -> None:
    chosen = CiSettings(name, path, package)
    for workflow in (lambda settings: github_workflow(settings, "w.yml"), github_reusable, gitlab_workflow):
        expected = commands(yaml.safe_load(workflow(SETTINGS)))
        try:
            text = workflow(chosen)
        except UsageError:
            continue
        document = yaml.safe_load(text)
        assert commands(document) == expected
        if env := document.get("env") or document.get("variables"):
            assert env["RECIPE"] == path
            assert env["PACKAGE"] == package
        assert "$" not in path + package


def test_commands_quote_every_variable() -> None:
    found = commands(yaml.safe_load(github_reusable(SETTINGS))) | commands(yaml.safe_load(gitlab_workflow(SETTINGS)))
    for command in found:
        bare = "".join(command.split('"')[::2])  # what stands outside double quotes
        assert "$" not in bare
        assert "${{" not in command


@pytest.mark.parametrize(
    "path", ["/etc/x.yaml", "../x.yaml", "a/../../x", "-x", "", "${{ secrets.X }}", "a`b`", "a\nb"]
)
def test_odd_paths_are_refused(path: str) -> None:
    with pytest.raises(UsageError):
        github_reusable(CiSettings("demo", path, "rwkvflow"))


@pytest.mark.parametrize("secret", ["hf", "A B", "A}}", "", "1A"])
def test_odd_secrets_are_refused(secret: str) -> None:
    with pytest.raises(UsageError):
        github_reusable(CiSettings("demo", "x.yaml", "rwkvflow", secrets=(secret,)))


def test_too_many_jobs_for_github() -> None:
    many = jobs([Artifact(f"m{number}", "f", "i") for number in range(GITHUB_JOBS + 1)])
    with pytest.raises(UsageError, match="--by"):
        github_matrix(many)
    assert len(github_matrix(many[1:])["include"]) == GITHUB_JOBS


def run(*args: str) -> str:
    done = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = str(RECIPES / "demo-torch.yaml")
    ids = run("matrix", demo).split()
    assert "rwkv7-demo/ggml-q5_1@py3.11-torch2.13.0" in ids
    assert [job["only"] for job in json.loads(run("matrix", demo, "--format", "json"))] == ids
    github = json.loads(run("matrix", demo, "--format", "github", "--by", "image"))
    assert [job["only"] for job in github["include"]] == ["*@py3.11", "*@py3.11-torch2.13.0"]
    assert run("matrix", demo, "--only", "rwkv4-demo/*").split() == [name for name in ids if name.startswith("rwkv4")]
    monkeypatch.chdir(RECIPES)
    run("ci", "github", "demo.yaml", "-o", str(tmp_path / "x" / "y.yml"))
    assert yaml.safe_load((tmp_path / "x" / "y-build.yml").read_text())["env"]["RECIPE"] == "demo.yaml"
    called = yaml.safe_load((tmp_path / "x" / "y.yml").read_text())["jobs"]["release"]["uses"]
    assert called == "./.github/workflows/y-build.yml"
    assert yaml.safe_load(run("ci", "gitlab", "demo.yaml"))["variables"]["SANDBOX"] == "host"
