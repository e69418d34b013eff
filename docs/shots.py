"""The workbench's pictures for the README, and with `--runs` the saved runs that ship with it.

Both come from the page's own code on the bundled models: nothing in them is written by hand.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from PIL import Image

from vlmsteer_ui import asking, stories
from vlmsteer_ui.app import serve
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.panel import Panel
from vlmsteer_ui.roboting import robotics
from vlmsteer_ui.runs import SHIPPED, Run, Runs
from vlmsteer_ui.tabs import layers, robot
from vlmsteer_ui.workbench import Workbench

DOCS = Path(__file__).parent
SAVED = (0, 3), (1, 1), (2, 1)  # story and step of each run that ships
DESK, PHONE = (1440, 900), (390, 844)
PICTURES = (  # name, size, dark, tab, what is there when it is complete
    ("light", DESK, False, "Layers", "#lens-grid td"), ("dark", DESK, True, "Layers", "#lens-grid td"),
    ("evidence", DESK, False, "Evidence", "#evidence-map img"), ("phone", PHONE, False, "Layers", "#lens-grid td"),
)  # fmt: skip
COLORS = 256  # of a picture: flat areas, so that few are enough


def main() -> None:
    """Take the pictures, or make the saved runs."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Workbench(["tiny-llava"], Path(folder))
        if "--runs" in sys.argv[1:]:
            save_runs(bench)
        else:
            take(bench)


def save_runs(bench: Workbench) -> None:
    """Tell one step of each story and keep it in place of the run that shipped before."""
    made = []
    for story, step in SAVED:
        told = stories.STORIES[story]
        run = driven(bench, told, told.steps[step]) if told.steps[step].task else asked(bench, told, told.steps[step])
        run.story = told.title
        made.append(run)
    for place in SHIPPED.glob("*/run.json"):
        shutil.rmtree(place.parent)
    for run in made:
        print(Runs(SHIPPED).save(run))


def asked(bench: Workbench, story: stories.Story, step: stories.Step) -> Run:
    """A step's answers, with what its layers say."""
    desk = Desk()
    *_, run = asking.answers(bench, desk, story.asked(step))
    run.found[layers.NAME] = layers.find(bench, desk, run)
    return run


def driven(bench: Workbench, story: stories.Story, step: stories.Step) -> Run:
    """A step's episodes, with the first picture that the policy saw."""
    desk, panel = Desk(), Panel(step.vectors, step.strength)
    session = bench.residents(story.model).session
    seen = robotics("rollouts").Setting(step.task).env(side=336).reset(seed=0)[0]["image"]
    run = story.asked(step).begun(session, panel.recipe(bench.vectors, session))
    run.question, run.image = step.task, Image.fromarray(seen)
    desk.show(run)
    values = [panel.as_dict()[name] for name in ("strength", "first", "last", "apply", "random")]
    for _ in robot.run(
        bench, desk, story.model, step.task, list(step.vectors), step.said, story.seeds, int(step.random), *values
    ):
        pass
    return run


def take(bench: Workbench) -> None:
    """Start the page and photograph it."""
    from playwright.sync_api import sync_playwright

    _, url, _ = serve(bench, block=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, size, dark, tab, ready in PICTURES:
            page = browser.new_page(
                viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
            )
            page.goto(url)
            page.wait_for_selector("#vectors input")
            answer(page)
            page.get_by_role("tab", name=tab, exact=True).click()
            page.wait_for_selector(ready, timeout=120_000)
            page.wait_for_timeout(1500)
            keep(page.screenshot(), DOCS / f"workbench_{name}.png")
            page.close()
        browser.close()
    gr.close_all()


def answer(page: Any) -> None:
    """Ask what is usual, with a vector towards the pixels."""
    page.fill("#question textarea", stories.MOST)
    page.get_by_label("color to pixels", exact=True).check()
    page.click("#run")
    page.wait_for_function("document.querySelector('#steered textarea').value.length > 2", timeout=60_000)
    page.wait_for_selector("#chances .pixel", timeout=60_000)


def keep(picture: bytes, path: Path) -> None:
    """Write a picture with few colors, which halves its size."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
