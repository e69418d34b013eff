"""Guided stories: a question worth asking, in steps; a step sets the page's controls and asks.

What is said of how often an effect appears was measured; METHODS.md has the commands. What a step finds is never
written here: the model answers anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from vlmsteer.errors import InputError
from vlmsteer_ui import asking, figures, templates
from vlmsteer_ui import page as top
from vlmsteer_ui.asking import Asked
from vlmsteer_ui.desks import Desk
from vlmsteer_ui.page import Page
from vlmsteer_ui.panel import PANEL, Panel
from vlmsteer_ui.runs import Run
from vlmsteer_ui.tabs import robot
from vlmsteer_ui.workbench import Workbench

TEMPLATE, SCRIPT = templates.read("story.html"), templates.read("story.js")
NO_STORY = "No story"
TOLD = "the story that is told"


@dataclass(frozen=True)
class Step:
    """What is set and asked: `label` on its button, `says` what to look at.

    Attributes:
        task, said: of a robot instead of a question.
    """

    label: str
    says: str
    question: str = ""
    vectors: tuple[str, ...] = ()
    strength: float = 1.0
    random: bool = False
    task: str = ""
    said: str = "nothing"


@dataclass(frozen=True)
class Story:
    """A title, what it is about, and its steps on one model and one picture of `pictures`."""

    title: str
    text: str
    model: str
    steps: tuple[Step, ...]
    picture: str = ""
    prior: str = ""
    pixel: str = ""
    seeds: int = 2

    def asked(self, step: Step) -> Asked:
        """What a step asks."""
        panel = Panel(step.vectors, step.strength, random=step.random)
        image = figures.picture(self.picture) if self.picture else None
        return Asked(self.model, image, step.question, self.prior, self.pixel, panel)


THIS, MOST = "What color is this strawberry?", "What color are most strawberries?"
DESCRIBE, FLAMINGO = "Describe this image.", "Is there a flamingo in this image?"
CALM, SLOWER = "fewer made-up objects", "slower robot"
STORIES = (
    Story(
        "The blue strawberry",
        "Strawberries are red, this one is blue. The model knows both: which of them speaks depends on the question, "
        "and on a direction inside it.",
        "tiny-llava",
        (
            Step("Ask what it sees", "“this strawberry”: the pixels answer.", THIS),
            Step("Ask what is usual", "“most strawberries”: the prior answers, with the same picture.", MOST),
            Step("Steer to the pixels", "The second question again, with a vector and a random one as long.", MOST,
                 ("color to pixels",), random=True),
            Step("And back to the prior", "Asked what it sees, it now says what it remembers.", THIS,
                 ("color to prior",), random=True),
        ),
        "blue_strawberry", "red", "blue",
    ),
    Story(
        "The object that is not there",
        "One elephant, and nothing else. Where objects stand without their usual companions the model names an absent "
        "object in 81 of 120 captions. A vector that ends the list in time clears 8 of these and spoils none. Asked "
        "yes or no about absent objects it says yes 34 times instead of 56, of 120; but about present ones 79 times "
        "instead of 113: that is restraint, not better sight.",
        "tiny-llava",
        (
            Step("Let it describe", "A second animal appears that nobody drew.", DESCRIBE),
            Step("Steer it", f"“{CALM}”, and a random direction as long, which leaves it.", DESCRIBE, (CALM,),
                 random=True),
            Step("Ask about it", "Asked yes or no, strength 1 is not enough.", FLAMINGO, (CALM,)),
            Step("Twice as strong", "Does it take the animal back?", FLAMINGO, (CALM,), 2.0),
            Step("And the elephant?", "At that strength, does it still see what is there?",
                 "Is there an elephant in this image?", (CALM,), 2.0),
        ),
        "lone_elephant",
    ),
    Story(
        "The robot that is told to slow down",
        "A small OpenVLA reaches for the red block. Being told “slowly” shortens its steps; turning up the 40 "
        "neurons that write “slowly” does so without a word. Look at the length of a step in the Robot tab's table.",
        "tiny-openvla",
        (
            Step("Tell it", "The same seeds plainly, and told “slowly”.", task="reach-red", said="slowly"),
            Step("Steer it", f"“{SLOWER}” beside the words, and as many other neurons that move its states as far.",
                 vectors=(SLOWER,), task="reach-red", said="slowly", random=True),
        ),
    ),
)  # fmt: skip


def strip() -> Any:
    """Where a story is told, between the header and the top row; hidden until one is chosen."""
    return gr.HTML(
        {"steps": []}, html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, visible=False,
        elem_id="story-steps",
    )  # fmt: skip


def build(bench: Workbench, page: Page, told: Any) -> None:
    """Connect the header's list of stories and the steps of the one that is told."""
    names = [NO_STORY, *(story.title for story in STORIES)]
    page.controls["story"].choices = [(name, name) for name in names]
    page.controls["story"].value = NO_STORY
    robots = page.controls.get("robot", [])
    outputs = [told, page.tabs["robot"].parent, *robots, *page.opens]
    count = len(robots)

    def begin(bench: Workbench, desk: Desk, title: Any) -> Iterator[tuple[Any, ...]]:
        if title == NO_STORY:
            yield gr.update(visible=False), *[gr.skip()] * (len(outputs) - 1)
            return
        story = find(title)
        desk.keep(TOLD, title)
        yield gr.update(value=steps(bench, story, -1), visible=True), *[gr.skip()] * (len(outputs) - 1)
        yield gr.skip(), *prepared(bench, desk, story, story.steps[0], count)

    def go(bench: Workbench, desk: Desk, event: Any) -> Iterator[tuple[Any, ...]]:
        story, number = find(desk.recall(TOLD)), (event.get("step") if isinstance(event, dict) else None)
        if type(number) is not int or not 1 <= number <= len(story.steps):
            raise InputError("This story has no such step.")
        step = story.steps[number - 1]
        yield gr.update(value=steps(bench, story, number - 1)), *prepared(bench, desk, story, step, count)
        quiet = [gr.skip()] * (2 + count + len(page.asked))
        if step.task:
            yield from driven(bench, desk, story, step, page)
            return
        for run in asking.answers(bench, desk, story.asked(step)):
            run.story = story.title
            yield *quiet, *top.shown(run), desk.show(run) if run is desk.run else gr.skip()

    page.wire(page.controls["story"].input, begin, [page.controls["story"]], outputs, model=True)
    page.wire(told.select, go, [], outputs, model=True, data=True)


def find(title: Any) -> Story:
    """The story of a title.

    Raises:
        InputError: if there is none.
    """
    for story in STORIES:
        if story.title == title:
            return story
    raise InputError("Choose a story first.")


def steps(bench: Workbench, story: Story, now: int) -> dict[str, Any]:
    """A story for `TEMPLATE`; `now` is the step that is done."""
    told = [
        {"number": number + 1, "label": step.label, "says": step.says, "state": "now" if number == now else ""}
        for number, step in enumerate(story.steps)
    ]
    return {"title": story.title, "text": story.text, "steps": told, "saved": bench.runs.told(story.title)}


def prepared(bench: Workbench, desk: Desk, story: Story, step: Step, robots: int) -> tuple[Any, ...]:
    """Tab, the robot's controls and the page's, set to a step; nothing is asked yet."""
    asked = story.asked(step)
    run = replace(asked.begun(bench.residents(story.model).session, None), story=story.title)
    if not step.task:
        return gr.skip(), *[gr.skip()] * robots, *top.opening(bench, desk, run)
    run.question, run.panel = step.task, Panel(step.vectors, step.strength).as_dict()
    vectors = gr.update(choices=bench.vectors.made_for(story.model), value=list(step.vectors))
    set_to = (story.model, step.task, vectors, step.said, story.seeds, int(step.random))
    rest = [gr.skip()] * (robots - len(set_to))
    return gr.Tabs(selected="robot"), *set_to, *rest, *top.opening(bench, desk, run)


def driven(bench: Workbench, desk: Desk, story: Story, step: Step, page: Page) -> Iterator[tuple[Any, ...]]:
    """A step's episodes, as the Robot tab shows them."""
    robots = page.controls["robot"]
    run: Run = desk.run
    panel = Panel(step.vectors, step.strength).as_dict()
    values = [panel[name] for name in PANEL[1:]]
    for shown in robot.run(
        bench, desk, story.model, step.task, list(step.vectors), step.said, story.seeds, int(step.random), *values
    ):
        desk.run = run
        yield *[gr.skip()] * (2 + len(robots) - len(shown)), *shown, *[gr.skip()] * len(page.opens)
