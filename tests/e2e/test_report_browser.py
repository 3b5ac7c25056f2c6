"""The report in a real browser: fits a phone and a desk, is dark in the dark, and has no trouble loading."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rwkvflow.display.report import report_html
from rwkvflow.display.report_data import gather
from tests.helpers.runs import Past

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

HARNESS = """<!doctype html><body style="margin:0"><iframe id="f" src="page.html"
 style="border:0;width:%dpx;height:800px">
</iframe><pre id="out"></pre><script>
addEventListener("load", () => {
  const d = document.getElementById("f").contentDocument, w = document.getElementById("f").contentWindow;
  for (const e of d.querySelectorAll("details")) e.open = true;
  const wide = [...d.querySelectorAll("main *")].filter(e => e.getBoundingClientRect().right > %d + 1)
    .map(e => e.tagName + "." + e.className);
  const small = [...d.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height);
  document.getElementById("out").textContent = JSON.stringify({
    scroll: d.documentElement.scrollWidth, wide, dark: w.matchMedia("(prefers-color-scheme: dark)").matches,
    back: w.getComputedStyle(d.body).backgroundColor, ink: w.getComputedStyle(d.body).color,
    label: Math.min(...small), rows: d.querySelectorAll("details").length, title: d.title,
    requests: w.performance.getEntriesByType("resource").length,
    columns: w.getComputedStyle(d.querySelector("thead")).display});
});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    past = Past(folder, text="words and averyveryverylongwordwithoutanyplacetobreak" * 4)
    target = folder / "page.html"
    target.write_text(report_html(gather(past.path, past.store, folder)), encoding="utf-8")
    return target


def look(page: Path, tmp_path: Path, width: int, *, dark: bool = False) -> dict[str, Any]:
    assert CHROMIUM is not None
    harness = page.with_name(f"harness{width}.html")
    harness.write_text(HARNESS % (width, width))
    argv = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    argv += ["--allow-file-access-from-files", f"--window-size={max(width, 600)},900", "--virtual-time-budget=4000"]
    argv += ["--force-dark-mode"] if dark else []
    argv += ["--dump-dom", f"file://{harness}"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.partition('<pre id="out">')[2].partition("</pre>")[0]
    seen: dict[str, Any] = json.loads(found.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&"))
    return seen


def brightness(color: str) -> float:
    return sum(float(part) for part in color.removeprefix("rgb(").rstrip(")").split(",")) / 3


@pytest.mark.parametrize("width", [320, 360, 1200])
def test_fits(page: Path, tmp_path: Path, width: int) -> None:
    seen = look(page, tmp_path, width)
    assert seen["scroll"] <= width
    assert seen["wide"] == []
    assert seen["title"] == "demo: failed"
    assert seen["requests"] == 0
    assert seen["rows"] >= 20
    assert seen["label"] >= 9, "labels of the plot can be read"
    assert (seen["columns"] == "none") == (width < 640), "on a phone a table is a list"


def test_light_and_dark(page: Path, tmp_path: Path) -> None:
    light, dark = look(page, tmp_path, 360), look(page, tmp_path, 360, dark=True)
    assert (light["dark"], dark["dark"]) == (False, True)
    assert brightness(light["back"]) > 230
    assert brightness(light["ink"]) < 60
    assert brightness(dark["back"]) < 40
    assert brightness(dark["ink"]) > 200
