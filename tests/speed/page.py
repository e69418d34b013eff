"""The workbench on tiny-llava, as a visitor waits for it: first load, both answers after a click, one after a slider.

Aims on two cores: under 5 s, 1.5 s and 0.7 s. Chromium is Debian's, moved by Playwright; each number is the median.

    python tests/speed/page.py [an address of a running page]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

CHROMIUM, PORT, REPEATS, SETTLED = "/usr/bin/chromium", 7899, 5, 4000  # ms
QUESTIONS = [f"What color are most {things}?" for things in ("strawberries", "lemons", "elephants", "frogs", "carrots")]
AIMS = {"page load": 5.0, "click to both answers": 1.5, "slider to steered answer": 0.7}
# Times in the page itself: Playwright's own looking takes as long as an answer.
WATCH = """() => {
  const changed = (id) => () => { window.seen[id] = performance.now(); };
  window.seen = {};
  for (const id of ['baseline', 'steered']) {
    const box = document.querySelector(`#${id} textarea`);
    let before = box.value;
    setInterval(() => { if (box.value !== before) { before = box.value; changed(id)(); } }, 5);
  }
  new MutationObserver(changed('chances')).observe(document.querySelector('#chances .html-container'),
    {subtree: true, childList: true, characterData: true});
  document.addEventListener('pointerdown', () => { window.seen = {start: performance.now()}; }, true);
  document.addEventListener('pointerup', () => { window.seen = {start: performance.now()}; }, true);
}"""


def main() -> None:
    if len(sys.argv) > 1:
        measure(sys.argv[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).parent / "vlmsteer"), "ui", "--out", folder, "--port", str(PORT)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder)
        try:
            for line in server.stdout or ():
                if "workbench is at" in line:
                    break
            measure(f"http://127.0.0.1:{PORT}/")
        finally:
            server.terminate()
            server.wait()


def measure(address: str) -> None:
    """Print the three medians."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        loads, clicks, slides = [], [], []
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for _ in range(REPEATS):
            start = time.perf_counter()
            page.goto(address)
            page.wait_for_selector("#vectors input:checked")
            loads.append(time.perf_counter() - start)
        page.evaluate(WATCH)
        for question in QUESTIONS:
            page.fill("#question textarea", question)
            page.click("#run")
            clicks.append(waited(page))
        slider = page.locator("#strength input[type=range]")
        for i in range(REPEATS):
            slides.append(slid(page, slider.bounding_box(), 0.2 + 0.1 * i))
        browser.close()
    for (name, aim), values in zip(AIMS.items(), (loads, clicks, slides), strict=True):
        print(f"{name:26} {statistics.median(values):5.2f} s (aim {aim:g} s; {min(values):.2f} to {max(values):.2f})")


def slid(page: Page, slider: Any, share: float) -> float:
    """Click on a place of the strength slider."""
    page.mouse.move(slider["x"] + slider["width"] * share, slider["y"] + slider["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    return waited(page)


def waited(page: Page) -> float:
    """Seconds from the pointer to the last change of answers and probabilities."""
    page.wait_for_timeout(SETTLED)
    seen = page.evaluate("window.seen")
    return (max(seen[name] for name in seen) - seen["start"]) / 1000


if __name__ == "__main__":
    main()
