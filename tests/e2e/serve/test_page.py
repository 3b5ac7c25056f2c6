"""The page in a real browser: by keyboard alone, on a phone, in the dark, without a request to elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import CHROMIUM, Browser

from .conftest import ROOT, Running, Start

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
PICTURES = os.environ.get("RWKVFLOW_PICTURES")  # a folder for screenshots, to look at
AXE = "4.14.1"
FOCUS = "(document.activeElement.id || document.activeElement.tagName)"

Open = Callable[..., Browser]


@pytest.fixture
def browse(server: Running, tmp_path: Path) -> Iterator[Open]:
    opened: list[tuple[Browser, str]] = []

    def start(url: str = server.url, **options: Any) -> Browser:
        browser = Browser(tmp_path / f"profile{len(opened)}", **options).__enter__()
        opened.append((browser, url))
        browser.open(url)
        browser.wait("document.getElementById('model').options.length > 1")
        return browser

    yield start
    for browser, url in opened:
        browser.__exit__(None, None, None)
        assert browser.errors == []
        assert all(each.startswith((url, "data:", "about:")) for each in browser.requests)


def picture(browser: Browser, name: str) -> None:
    if PICTURES:
        browser.picture(Path(PICTURES) / f"{name}.png")


def focus(browser: Browser, target: str) -> None:
    """By the Tab key."""
    for _ in range(60):
        if browser.run(FOCUS) == target:
            return
        browser.press("Tab")
    raise AssertionError(f"Tab never comes to {target}")


def set_value(browser: Browser, name: str, value: str) -> None:
    browser.run(f"(() => {{ const e = document.getElementById({name!r}); e.value = {value!r}; "
                "e.dispatchEvent(new Event('input', {bubbles: true})); })()")  # fmt: skip


def answered(browser: Browser, count: int) -> None:
    browser.wait(
        f"document.querySelectorAll('.turn.assistant').length === {count} && !document.querySelector('.working')"
    )


def test_a_conversation_by_keyboard(browse: Open) -> None:
    browser = browse()
    set_value(browser, "seed", "5")
    set_value(browser, "max_tokens", "40")
    focus(browser, "text")
    browser.type("Once there was a fox.")
    browser.press("Enter")
    answered(browser, 1)
    first = browser.run("document.querySelector('.turn.assistant .body').textContent")
    assert first.strip()
    assert browser.run(FOCUS) == "text"
    assert "tokens" in browser.run("document.getElementById('status').textContent")
    # The call that is shown is the call that was made.
    assert '"seed": 5' in browser.run("document.getElementById('call').textContent")
    picture(browser, "chat")
    # Retry and edit, found by Tab, pressed by Enter.
    for _ in range(80):
        if "Retry" in str(browser.run("document.activeElement.textContent")):
            break
        browser.press("Tab", shift=True)
    browser.press("Enter")
    answered(browser, 1)
    assert browser.run("document.querySelector('.turn.assistant .body').textContent") == first
    browser.run("document.querySelector('.turn.user button').focus()")
    browser.press("Enter")
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "Edit your message"
    browser.type(" And then")
    browser.press("Enter")
    answered(browser, 1)
    assert browser.run("document.querySelector('.turn.user .body').textContent") == "Once there was a fox. And then"
    # Escape stops an answer.
    set_value(browser, "max_tokens", "16000")
    browser.run("document.getElementById('text').focus()")
    browser.type("Go on.")
    browser.press("Enter")
    browser.wait("(document.querySelectorAll('.turn.assistant .body')[1] || {}).textContent")
    browser.press("Escape")
    answered(browser, 2)
    assert browser.run("document.getElementById('status').textContent") in ("Stopped.",) or "tokens" in browser.run(
        "document.getElementById('status').textContent"
    )


def test_each_token_tells_its_alternatives(browse: Open) -> None:
    browser = browse()
    browser.run("document.getElementById('tokens').click()")
    set_value(browser, "max_tokens", "12")
    browser.run("document.getElementById('text').focus()")
    browser.type("Once")
    browser.press("Enter")
    answered(browser, 1)
    assert 1 <= browser.run("document.querySelectorAll('.token').length") <= 12
    browser.run("document.querySelector('.token').focus()")
    browser.press("Enter")
    assert browser.run("document.querySelectorAll('#about tr').length") == 5
    picture(browser, "tokens")
    browser.press("Escape")
    assert browser.run("document.getElementById('about').hidden")


def test_two_models_side_by_side(browse: Open) -> None:
    browser = browse()
    focus(browser, "tab-chat")
    browser.press("ArrowRight")
    assert browser.run("!document.getElementById('panel-compare').hidden && document.activeElement.id") == "tab-compare"
    set_value(browser, "seed", "3")
    set_value(browser, "max_tokens", "120")
    focus(browser, "compare")
    browser.press("Enter")
    browser.wait("document.getElementById('compare-status').textContent.includes('seed 3')")
    texts = [
        browser.run(f"[...document.querySelectorAll('#out-{side} .token')].map(e => e.textContent)") for side in "ab"
    ]
    parts = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), None)
    assert parts is not None  # Q8_0 and Q4_0 of one model part somewhere
    marked = browser.run(
        "[...document.querySelectorAll('#out-a .token')].findIndex(e => e.classList.contains('first'))"
    )
    assert marked == parts
    assert f"part at token {parts + 1}" in browser.run("document.getElementById('compare-status').textContent")
    picture(browser, "compare")


def test_a_release_shows_its_plot_and_which_file_to_take(
    browse: Open, start: Start, models: dict[str, Path], tmp_path: Path
) -> None:
    release = tmp_path / "demo"
    release.mkdir()
    artifacts = []
    for number, path in enumerate(list(models.values())[:2]):
        (release / path.name).write_bytes(path.read_bytes())
        kind = f"ggml-{path.stem.rpartition('-')[2]}"
        artifacts.append({"path": path.name, "format": kind, "sha256": "a", "kl_divergence": 0.01 * (1 + number)})
    (release / "quality.json").write_text(json.dumps({"artifacts": artifacts}))
    (release / "quality.svg").write_text((ROOT / "docs" / "images" / "quality.svg").read_text(encoding="utf-8"))
    browser = browse(start(release=release).url)
    browser.run("document.getElementById('tab-models').click()")
    browser.wait("document.getElementById('plot').naturalWidth > 100")
    advice = "document.getElementById('advice').textContent"
    best, small = (path.stem for path in list(models.values())[:2])
    assert browser.run(advice) == f"{best}: the closest to the original that fits."
    assert browser.run("document.querySelector('tr.best th').textContent") == best
    headings = "[...document.querySelectorAll('#columns th')].map(e => e.textContent)"
    assert browser.run(headings) == ["Model", "Size", "KL divergence", "Format"]  # no verdict, no perplexity is known
    picture(browser, "release")
    set_value(browser, "memory", "0.001")
    assert browser.run(advice) == f"{small}: the closest to the original that fits."
    set_value(browser, "memory", "0.0001")
    assert browser.run(advice) == "None fits."


@pytest.mark.parametrize(("width", "dark"), [(360, False), (360, True), (1200, True)])
def test_it_fits_a_phone_and_the_dark(width: int, dark: bool, browse: Open) -> None:
    browser = browse(width=width, dark=dark)
    set_value(browser, "max_tokens", "30")
    browser.run("document.getElementById('text').focus()")
    browser.type("averyverylongwordwithoutanyplacetobreakit" * 4)
    browser.press("Enter")
    answered(browser, 1)
    for tab in ("compare", "models", "chat"):
        browser.run(f"document.getElementById('tab-{tab}').click()")
        picture(browser, f"{tab}-{width}{'-dark' if dark else ''}")
        assert browser.run("document.documentElement.scrollWidth") <= width
        for control in ("button", "select", "textarea"):
            wide = f"e => e.getBoundingClientRect().right > {width} + 1"
            outside = f"[...document.querySelectorAll('{control}')].filter({wide})"
            assert browser.run(f"{outside}.map(e => e.id)") == []
    light = (
        sum(map(float, browser.run("getComputedStyle(document.body).backgroundColor").strip("rgb()").split(",")[:3]))
        / 3
    )
    assert light < 40 if dark else light > 230


@pytest.fixture(scope="session")
def axe(request: pytest.FixtureRequest) -> str:
    """axe-core's script, from npm, kept between runs."""
    assert request.config.cache is not None
    folder = Path(request.config.cache.mkdir("axe"))
    kept = folder / f"axe-{AXE}.js"
    if not kept.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm, which brings axe-core")
        done = subprocess.run(
            [npm, "pack", f"axe-core@{AXE}"], cwd=folder, capture_output=True, timeout=120, check=False
        )
        if done.returncode:
            pytest.skip("npm cannot bring axe-core")
        with tarfile.open(folder / f"axe-core-{AXE}.tgz") as archive:
            member = archive.extractfile("package/axe.min.js")
            assert member is not None
            kept.write_bytes(member.read())
    return kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(dark: bool, browse: Open, axe: str) -> None:
    browser = browse(dark=dark)
    browser.run("document.getElementById('tokens').click()")
    set_value(browser, "max_tokens", "12")
    browser.run("document.getElementById('text').focus()")
    browser.type("Once")
    browser.press("Enter")
    answered(browser, 1)
    browser.run(axe + ";0")
    for tab in ("chat", "compare", "models"):
        browser.run(f"document.getElementById('tab-{tab}').click()")
        found = browser.run(
            "axe.run().then(r => r.violations.map(v => [v.id, v.nodes.map(n => n.html.slice(0, 120))]))"
        )
        assert found == [], tab
