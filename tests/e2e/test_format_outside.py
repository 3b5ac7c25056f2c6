"""A format from an installed package goes through a whole run on the host, and the package is pinned."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.cli import ROOT, Project, project
from tests.e2e.conftest import CACHE
from tests.helpers import outside

HOST = ("--sandbox", "host")


def with_blob(made: Project) -> Project:
    text = (made.folder / "recipe.yaml").read_text(encoding="utf-8")
    made.write("recipe.yaml", re.sub(r"^formats: .*$", "formats: [blob]", text, flags=re.M))
    return made


def path_of(site: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join((str(ROOT), str(site)))}


def test_a_format_from_outside_is_made_proved_and_published(tmp_path: Path) -> None:
    made = with_blob(project(tmp_path / "p", CACHE / "store"))
    site = outside.install(tmp_path / "site")
    env = path_of(site)
    done = made("run", "recipe.yaml", *HOST, "--json", env=env)
    assert done.code == 0, done.err + done.out[-2000:]
    assert "smoke/tiny4/blob@py3.11" in "".join(done.steps("done") + done.steps("cached"))
    files = made.files()
    assert "tiny4/tiny4-F16.blob" in files
    card = (made.folder / "out" / "README.md").read_text(encoding="utf-8")
    assert "Blobs (`.blob`)" in card
    (line,) = [line for line in card.splitlines() if "numpy.fromfile" in line]
    ours = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    argv = ["bash", "-c", line]
    shown = subprocess.run(argv, cwd=made.folder / "out", env=ours, capture_output=True, text=True, check=True)
    assert int(shown.stdout) * 2 == (made.folder / "out" / "tiny4" / "tiny4-F16.blob").stat().st_size
    lock = (made.folder / "recipe.lock.yaml").read_text(encoding="utf-8")
    assert re.search(r"formats:\n\s+rwkvflow-blob:\n\s+version: .?1\.2", lock)

    listed = (made.folder / "out" / "sbom.cdx.json").read_text(encoding="utf-8")
    assert '"formats/rwkvflow-blob@1.2"' in listed

    # Nothing is left to do; with other code of the package, its artifacts are made and run again.
    again = made("run", "recipe.yaml", *HOST, "--json", env=env)
    assert again.steps("done") == []
    with (site / "rwkvflow_blob" / "run.py").open("a", encoding="utf-8") as file:
        file.write("\n# another line\n")
    changed = made("plan", "recipe.yaml", *HOST, env=env)
    assert changed.code == 0
    assert "convert/tiny4/blob" in changed.out

    # Another version is not what the lock says, and a machine without the package cannot take the lock.
    shutil.rmtree(site / "rwkvflow_blob-1.2.dist-info")
    outside.install(site, version="1.3")
    other = made("run", "recipe.yaml", *HOST, "--locked", env=env)
    assert other.code != 0
    assert "formats.rwkvflow-blob: version was 1.2 in the lock, 1.3 is installed" in other.err
    without = made("run", "recipe.yaml", *HOST, "--locked")
    assert without.code != 0
    words = " ".join(without.err.split())
    assert "'blob' is a format of the package rwkvflow-blob, which is not installed here" in words
    assert "the lock has rwkvflow-blob 1.2" in words


@pytest.mark.parametrize("what", ["taken", "broken"])
def test_a_package_that_does_not_fit_keeps_nothing_else_from_working(tmp_path: Path, what: str) -> None:
    layout = outside.LAYOUT.replace('name="blob"', 'name="ggml-f16"') if what == "taken" else "import nowhere_at_all\n"
    made = with_blob(project(tmp_path / "p", tmp_path / "store"))
    env = path_of(outside.install(tmp_path / "site", layout=layout))
    listed = made("formats", env=env)
    assert listed.code == 0
    assert "ggml-f16 " in listed.out
    refused = made("plan", "recipe.yaml", *HOST, env=env)
    assert refused.code != 0
    words = " ".join((refused.err + refused.out).split())
    assert "rwkvflow-blob, which adds formats, cannot be loaded" in words
    assert ("two formats are named ggml-f16" if what == "taken" else "nowhere_at_all") in words
