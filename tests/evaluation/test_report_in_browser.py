"""The report in a real browser, on a desk and on a phone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.helpers import HOSTILE, write_run

from ups.evaluation.report import write_report

QUIET = "--disable-background-networking --disable-component-update --disable-sync"
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: install one (apt-get install chromium) to test the report in it")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=f"--no-sandbox --disable-gpu --disable-quic --no-first-run {QUIET}".split(),
        )
        yield found
        found.close()


@pytest.mark.parametrize(
    "tasks", [("advection1d",), ("reaction_diffusion2d",), ("advection1d", "reaction_diffusion2d")]
)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_report_in_a_browser(tmp_path: Path, browser: Any, tasks: tuple[str, ...], width: int, scheme: str) -> None:
    """No error, nothing asked of the network, nothing wider than the screen; and the player plays."""
    from playwright.sync_api import expect

    report = write_report(write_run(tmp_path, tasks, drawn=True))
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.wait_for_selector("#player[data-ready=true]", timeout=20_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.images.length > 0 && [...document.images].every((one) => one.naturalWidth > 0)")
    cells = "[...document.querySelectorAll('table.readings th, table.readings td')]"
    assert page.evaluate(f"{cells}.length > 0 && {cells}.every((one) => one.scrollWidth <= one.clientWidth + 1)")
    if width == 390:
        lefts = "[...document.querySelectorAll('#player canvas')].map((one) => one.getBoundingClientRect().left)"
        assert len(set(page.evaluate(lefts))) == 1  # one below the other
    picture = "[...document.querySelectorAll('#player canvas')].map((canvas) => canvas.toDataURL()).join()"
    at_the_end = page.evaluate(picture)
    page.focus("#player-frame")
    page.keyboard.press("Home")
    assert page.inner_text("#player-time") == "t = 0.00"
    at_the_start = page.evaluate(picture)
    assert at_the_start != at_the_end
    page.focus("#player-play")
    page.keyboard.press("Space")
    expect(page.locator("#player-time")).not_to_have_text("t = 0.00")
    page.keyboard.press("Space")
    assert page.get_attribute("#player-play", "aria-pressed") == "false"
    assert page.evaluate(picture) != at_the_start
    page.keyboard.press("Shift+Tab")
    page.select_option("#player-trajectory", index=0)
    page.select_option("#player-emulator", label="persistence")
    expect(page.locator("#player-panels figcaption").filter(has_text="persistence").first).to_be_visible()
    assert said == []
    assert [url for url in asked if not re.match(r"(file|data|blob):", url)] == []
    page.close()


WORDS_BROKEN = """
[...document.querySelectorAll('table.scores th, table.scores td')].flatMap((cell) => {
  const broken = [], walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    for (const word of walker.currentNode.data.matchAll(/[^\\s-]+/g)) {
      const range = document.createRange();
      range.setStart(walker.currentNode, word.index);
      range.setEnd(walker.currentNode, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
      if (lines.size > 1) broken.push(word[0]);
    }
  }
  return broken;
})
"""


def test_scores_of_every_baseline_are_read_on_a_phone(tmp_path: Path, browser: Any) -> None:
    """No word is broken and no number overlaps another; what is wider than the screen is scrolled to in its place."""
    run = write_run(tmp_path)
    full = run / "evaluation" / "full.json"
    content = json.loads(full.read_text())
    del content["baselines"][HOSTILE]
    content["baselines"] |= dict.fromkeys(("linear", "fno", "unet"), content["baselines"]["persistence"])
    for parts in (content["details"][task]["emulators"] for task in content["tasks"]):
        del parts[HOSTILE]
        parts |= dict.fromkeys(("linear", "fno", "unet"), parts["persistence"])
    full.write_text(json.dumps(content))
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(write_report(run).as_uri())
    assert page.locator("table.scores thead th").count() == 6
    assert page.evaluate(WORDS_BROKEN) == []
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    end = "(table) => { table.parentElement.scrollLeft = 1e4; return table.getBoundingClientRect().right; }"
    assert page.eval_on_selector("table.scores", end) <= 390
    cells = "[...document.querySelectorAll('table.scores td')]"
    assert page.evaluate(f"{cells}.every((one) => one.scrollWidth <= one.clientWidth + 1)")
    page.close()
