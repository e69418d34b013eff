"""The page in Debian's Chromium: every tab and story by real clicks, visible text, no console error, no other host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from vlmsteer_ui import stories
from vlmsteer_ui.runs import SHIPPED

SLOW = 60_000  # ms that a busy machine may take
MOST = "What color are most strawberries?"
MARKUP = "<img src=x onerror='window.broken=1'><script>window.broken=1</script>{{value}}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium")
    if path is None:
        if os.environ.get("VLMSTEER_BROWSER") == "required":
            pytest.fail("There is no chromium here: ./install-system-packages brings it.")
        pytest.skip("no chromium here; ./install-system-packages brings it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page of a new visitor; whatever goes wrong in it fails the test."""
    visitor = browser.new_page(viewport={"width": 1440, "height": 900})
    visitor.set_default_timeout(SLOW)
    wrong: list[str] = []
    visitor.on("console", lambda told: wrong.append(told.text) if told.type == "error" else None)
    # A request that is under way when the page is left ends so.
    visitor.on("pageerror", lambda error: None if "AbortError" in str(error) else wrong.append(str(error)))
    visitor.on("request", lambda asked: None if local(asked.url, address) else wrong.append(f"asked {asked.url}"))
    visitor.goto(address)
    visitor.wait_for_selector("#vectors input")
    yield visitor
    visitor.close()
    assert wrong == []


def local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", "blob:"))


def steer(page: Any) -> None:
    """Ask what is usual, towards the pixels."""
    page.fill("#question textarea", MOST)
    page.get_by_label("color to pixels", exact=True).check()
    page.click("#run")
    says(page, "baseline", "red")
    says(page, "steered", "blue")


def says(page: Any, box: str, text: str) -> None:
    page.wait_for_function(
        "([box, text]) => document.querySelector(`#${box} textarea`)?.value.includes(text)", arg=[box, text]
    )


def tab(page: Any, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def test_both_answers_come_by_a_click_and_by_the_keyboard(page: Any) -> None:
    steer(page)
    page.wait_for_selector("#chances .pixel")
    assert "p(blue)" in page.inner_text("#chances")
    page.fill("#question textarea", "What color is this strawberry?")
    page.press("#question textarea", "Enter")
    says(page, "baseline", "blue")


def test_layers_and_evidence_show_what_was_asked(page: Any) -> None:
    steer(page)
    page.wait_for_selector("#lens-grid td button")
    assert "layer" in page.inner_text("#lens-grid")
    page.wait_for_selector("#lens-curves svg")
    tab(page, "Evidence")
    page.wait_for_selector("#evidence-strip button")
    page.locator("#evidence-strip button").first.click()
    page.wait_for_selector("#evidence-map img")


def test_a_box_makes_a_counterfactual(page: Any) -> None:
    tab(page, "Counterfactual")
    page.wait_for_selector("#edit-canvas .ground img")
    ground = page.locator("#edit-canvas .ground")
    ground.scroll_into_view_if_needed()
    around = ground.bounding_box()
    corners = [(around["x"] + share * around["width"], around["y"] + share * around["height"]) for share in (0.1, 0.9)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    page.mouse.move(*corners[1], steps=4)
    page.mouse.up()
    page.wait_for_selector("#edit-canvas img.mask")
    page.click("#edit-make")
    page.wait_for_selector("#edit-made img")
    assert "outside" in page.inner_text("#edit-facts").lower()


def test_vectors_are_listed_with_what_made_them(page: Any) -> None:
    tab(page, "Vectors")
    page.wait_for_selector("#vector-table tr")
    told = page.inner_text("#vector-table")
    assert "color to pixels" in told and "pvp" in told and "tiny-openvla" in told


def test_a_benchmark_runs_and_shows_its_table(page: Any) -> None:
    tab(page, "Benchmarks")
    page.locator("#bench-n input[type=number]").fill("12")
    page.locator("#bench-n input[type=number]").press("Enter")
    page.click("#bench-run")
    page.wait_for_selector("#bench-tables table")
    assert page.locator("#bench-rows [data-item]").count() == 12


@pytest.mark.parametrize("number", [0, 1])
def test_a_story_is_told_step_by_step(page: Any, number: int) -> None:
    story = stories.STORIES[number]
    choose(page, story)
    tell(page, 1)
    says(page, "baseline", ("blue", "flamingo")[number])
    tell(page, 2 + (number == 0))
    says(page, "steered", ("blue", "elephant.")[number])
    says(page, "random-answer", ("red", "flamingo")[number])


def tell(page: Any, step: int) -> None:
    """A step of the story, once the page is at rest."""
    page.wait_for_function("document.querySelector('#status').innerText === 'Ready.'")
    page.locator(f"#story-steps li:nth-child({step}) button").click()
    page.wait_for_selector(f"#story-steps li:nth-child({step}).now")


def test_the_robot_slows_down(page: Any) -> None:
    story = stories.STORIES[2]
    choose(page, story)
    tell(page, 1)
    page.wait_for_selector("#robot-table table")
    assert "said: slow" in page.inner_text("#robot-table")
    page.wait_for_selector("#robot-curves svg")


def choose(page: Any, story: stories.Story) -> None:
    page.click("#story input")
    page.get_by_role("option", name=story.title).click()
    page.wait_for_function("title => document.querySelector('.story h2')?.innerText === title", arg=story.title)


def test_the_record_is_in_step_both_ways_and_its_link_opens_it(page: Any, address: str) -> None:
    steer(page)
    tab(page, "Run record")
    page.wait_for_function("document.querySelector('#record-spec').innerText.includes('color to pixels')")
    assert "Recipe.load" in page.inner_text("#record-python")
    page.click("#record-save")
    page.wait_for_selector("#record-link a")
    page.wait_for_function("location.search.startsWith('?run=')")
    link = page.url
    page.click("#record-spec .cm-content")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text('{"model": "tiny-llava", "question": "What is this?"}')
    says(page, "question", "What is this?")
    page.keyboard.type("x")
    page.wait_for_function("document.querySelector('#record-said').innerText.startsWith('Not taken')")
    says(page, "question", "What is this?")
    page.goto(link)
    says(page, "steered", "blue")
    says(page, "question", MOST)


def test_shipped_runs_open_and_stand_side_by_side(page: Any, address: str) -> None:
    ids = sorted(path.name for path in SHIPPED.iterdir() if (path / "run.json").is_file())
    page.goto(f"{address}?run={ids[-1]}")
    says(page, "steered", "red")
    tab(page, "Run record")
    page.get_by_text("Compare two saved runs").click()
    for box, id in (("left", ids[0]), ("right", ids[-1])):
        page.click(f"#record-{box} input")
        page.locator(f"#record-{box}").get_by_role("option", name=id).click()
    page.wait_for_selector(".compared .differs")
    assert "elephant" in page.inner_text("#record-compared")


def test_markup_in_a_question_stays_text(page: Any) -> None:
    page.fill("#question textarea", MARKUP)
    page.fill("#prior textarea, #prior input", "<b>x</b>")
    page.click("#run")
    page.wait_for_selector("#lens-grid td button")
    for name in ("Evidence", "Run record"):
        tab(page, name)
        page.wait_for_timeout(300)
    assert page.evaluate("window.broken === undefined")
    assert page.locator("img[src='x']").count() == 0


def test_nothing_is_cut_off_on_a_phone(page: Any) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 800})
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
