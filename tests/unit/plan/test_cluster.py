"""Files that start workers on a cluster: data, whatever a recipe is called."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.base.errors import UsageError
from rwkvflow.cli import cli
from rwkvflow.plan.cluster import MOST_WORKERS, ClusterSettings, kubernetes, needs, slurm
from rwkvflow.plan.step import StepLimits

ROOT = Path(__file__).resolve().parents[3]
GIB = 1 << 30


def test_a_worker_needs_what_the_largest_step_may_use() -> None:
    limits = [StepLimits(memory=2 * GIB), StepLimits(cores=1.5), StepLimits(memory=GIB, cores=0)]
    assert needs(limits) == (2 * GIB, 2)
    assert needs([StepLimits()]) == (None, None)


def test_an_array_for_slurm() -> None:
    text = slurm(ClusterSettings("RWKV 7!", "my recipes/r.yaml", 24, memory=3 * GIB + 1, cores=4))
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert "#SBATCH --array=0-23" in lines
    assert "#SBATCH --job-name=rwkvflow-rwkv-7" in lines
    assert "#SBATCH --mem=3073M" in lines, "in one unit, and never less than a step may use"
    assert "RECIPE='my recipes/r.yaml'" in lines
    assert lines[-1] == 'exec rwkvflow work "$RECIPE" --locked --sandbox host'


def test_the_workers_have_the_workflow_whose_limits_were_asked_for(tmp_path: Path) -> None:
    workflow = tmp_path / "my limits.yaml"
    workflow.write_text("stages:\n" + "".join(
        f"  {stage}: {{memory: 1GiB, cores: 2}}\n" for stage in ("engine", "convert", "reference", "smoke")
    ))  # fmt: skip
    texts = {}
    for style in ("slurm", "kubernetes"):
        arguments = ["matrix", str(ROOT / "recipes/demo.yaml"), "--format", style, "--image", "x", "--workers", "2"]
        done = CliRunner().invoke(cli, [*arguments, "--workflow", str(workflow)])
        assert done.exit_code == 0, done.output
        texts[style] = done.output
    assert "#SBATCH --mem=1024M" in texts["slurm"]
    assert f"WORKFLOW='{workflow}'" in texts["slurm"]
    assert texts["slurm"].splitlines()[-1].endswith('--workflow "$WORKFLOW"')
    assert f"--workflow '\"'\"'{workflow}'" in texts["slurm"].replace("'\\''", "'\"'\"'"), "and so has who publishes"
    [container] = yaml.safe_load(texts["kubernetes"])["spec"]["template"]["spec"]["containers"]
    assert container["command"][-2:] == ["--workflow", "/recipe/my limits.yaml"]
    assert "--from-file=my limits.yaml" in texts["kubernetes"]


@settings(max_examples=25, deadline=None)
@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs")).filter(str.isprintable), min_size=1, max_size=30))
def test_no_name_is_part_of_a_command(name: str) -> None:
    text = slurm(ClusterSettings(name, name, 2))
    assert subprocess.run(["bash", "-n"], input=text.encode(), check=False, capture_output=True).returncode == 0
    shown = text.replace('exec rwkvflow work "$RECIPE"', 'printf %s "$RECIPE" #')
    done = subprocess.run(["bash"], input=shown.encode(), env={"RWKVFLOW_REMOTE": "x", "LC_ALL": "C.UTF-8"},
                          capture_output=True, check=False)  # fmt: skip
    assert done.stdout.decode() == name
    job = yaml.safe_load(kubernetes(ClusterSettings(name, name, 2, image="x")))
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][2] == f"/recipe/{name.rpartition('/')[2]}"


def test_a_job_for_kubernetes() -> None:
    text = kubernetes(ClusterSettings("rwkv7", "recipes/r.yaml", 3, image="registry/rwkvflow:1", memory=GIB, cores=2))
    job = yaml.safe_load(text)
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["podReplacementPolicy"] == "Failed", "no two of one index at a time"
    assert spec["backoffLimitPerIndex"] == 3
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "as backoffLimitPerIndex demands"
    [rule] = spec["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailIndex", [2, 3, 5, 6])
    [container] = spec["template"]["spec"]["containers"]
    assert container["resources"] == {"requests": {"memory": "1024Mi", "cpu": "2"}, "limits": {"memory": "1024Mi"}}
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert "--from-file=r.yaml --from-file=r.lock.yaml" in text


@pytest.mark.soak
@pytest.mark.parametrize("version", ["1.31", "1.33", "1.36"])
def test_the_job_is_what_kubernetes_publishes_a_schema_for(version: str) -> None:
    """Strictly: a key that the schema does not know is an error."""
    validate: Any = pytest.importorskip("kubernetes_validate")
    for settings_ in (
        ClusterSettings("rwkv7", "recipes/r.yaml", 3, image="registry/rwkvflow:1", memory=GIB, cores=2),
        ClusterSettings("RWKV 7!", "r.yaml", 1, sandbox="docker", image="x"),
    ):
        job = yaml.safe_load(kubernetes(settings_))
        assert validate.validate(job, version, strict=True) == version
        for place in (
            job,
            job["spec"],
            job["spec"]["template"]["spec"]["containers"][0],
            job["spec"]["podFailurePolicy"],
        ):
            place["unknown"] = 1
            with pytest.raises(validate.ValidationError, match="unknown"):
                validate.validate(job, version, strict=True)
            del place["unknown"]
        job["spec"]["backoffLimitPerIndex"] = "three"
        with pytest.raises(validate.ValidationError):
            validate.validate(job, version, strict=True)


@pytest.mark.parametrize("workers", [0, -1, MOST_WORKERS + 1])
def test_too_many_workers_are_refused_before_a_cluster_does(workers: int) -> None:
    for write in (slurm, kubernetes):
        with pytest.raises(UsageError, match="--workers"):
            write(ClusterSettings("x", "x", workers, image="x"))


def test_the_command_writes_both(tmp_path: Path) -> None:
    recipe = str(ROOT / "recipes/demo.yaml")
    done = CliRunner().invoke(cli, ["matrix", recipe, "--format", "slurm", "--workers", "4"])
    assert done.exit_code == 0, done.output
    assert "--array=0-3" in done.output
    assert "--mem=65536M" in done.output, "what the shipped workflow lets a step use"
    if shellcheck := shutil.which("shellcheck", path=str(ROOT / ".venv/bin")):
        subprocess.run([shellcheck, "-"], input=done.output.encode(), check=True)
    done = CliRunner().invoke(cli, ["matrix", recipe, "--format", "kubernetes", "--image", "x"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(done.output)["spec"]["completions"] == 16
