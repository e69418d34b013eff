"""How directions tell two sides apart, against states that are read one prompt at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from vlmsteer.errors import InputError
from vlmsteer.examples import Example
from vlmsteer.methods import pvp, vista
from vlmsteer.methods.separation import directions, separate
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (120, 60, 20)]
IMAGES = [Image.new("RGB", (24, 24), color) for color in COLORS]
PAIRS = [(image, "What color is this strawberry?", "What color are most strawberries?") for image in IMAGES]


def presence() -> list[Example]:
    return [
        Example(image, "Is there a strawberry?", *words, str(i), "presence")
        for i, image in enumerate(IMAGES)
        for words in (("green", "red"), ("red", "green"))
    ]


def test_of_this_and_most_is_what_single_prompts_give(llava: Any) -> None:
    vectors = pvp.learn(llava, IMAGES, [pair[1] for pair in PAIRS], [pair[2] for pair in PAIRS]).vectors
    found = separate(llava, vectors, PAIRS, batch_size=4)
    assert found.point == "block_out" and found.n == len(PAIRS) and set(found.auroc) == set(vectors.layers)
    for layer, vector in vectors.layers.items():
        along = []
        for question in (1, 2):
            with llava.read(f"text.{layer}.block_out") as states:
                for pair in PAIRS:
                    llava.run([pair[0]], [pair[question]])
            along.append(states[f"text.{layer}.block_out"].float().cpu() @ vector)
        wins = (along[0][:, None] > along[1]).double().mean()
        assert found.auroc[layer] == pytest.approx(float(wins))
        spread = ((along[0].var(unbiased=False) + along[1].var(unbiased=False)) / 2).sqrt()
        expected = float((along[0].mean() - along[1].mean()) / spread)
        assert found.distance[layer] == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_the_opposite_direction_tells_them_apart_the_other_way(llava: Any) -> None:
    vectors = pvp.learn(llava, IMAGES, [pair[1] for pair in PAIRS], [pair[2] for pair in PAIRS]).vectors
    one, other = separate(llava, vectors, PAIRS), separate(llava, -vectors, PAIRS)
    for layer in vectors.layers:
        assert one.auroc[layer] + other.auroc[layer] == pytest.approx(1)
        assert one.distance[layer] == pytest.approx(-other.distance[layer], abs=1e-4)


def test_answers_are_read_where_the_direction_acts(llava: Any) -> None:
    examples = presence()
    width, layer = llava.taps[Site("text", 1, "head")].width, 1
    vectors = Vectors("text", "head", {layer: torch.randn(width, generator=torch.Generator().manual_seed(0))})
    found = separate(llava, vectors, examples)
    along: list[list[float]] = [[], []]
    for one in examples:
        for side, answer in enumerate((one.right, one.wrong)):
            with llava.read(f"text.{layer}.head", "last", "both") as states:
                llava.run([one.image], [one.question], [answer])
            along[side].append(float(states.rows(f"text.{layer}.head")[0][1].flatten().float() @ vectors.layers[layer]))
    first, second = map(torch.tensor, along)
    above = (first[:, None] > second).double() + (first[:, None] == second).double() / 2
    assert found.auroc[layer] == pytest.approx(float(above.mean()), abs=0.011)  # rounding may turn a tie


def test_recipes_without_directions_have_none(llava: Any) -> None:
    assert directions(vista.METHOD.learn(llava, ())) is None  # made anew for each question
    scaled = Vectors("text", "block_out", {0: torch.ones(8)})
    assert directions(Recipe((Edit(scaled, "scale"),))) is None
    seen = Vectors("vision", "block_out", {0: torch.ones(8)})
    assert directions(Recipe((Edit(seen, "add"),))) is None
    two = Vectors("text", "head", {0: torch.zeros(8), 3: torch.ones(8)})
    kept = directions(Recipe((Edit(seen, "add"), Edit(two, "add"))))
    assert kept is not None and list(kept.layers) == [3]


def test_too_few_or_foreign(llava: Any) -> None:
    width = llava.taps[llava.sites[-1]].width
    with pytest.raises(InputError, match="4 or more"):
        separate(llava, Vectors("text", "block_out", {0: torch.ones(width)}), PAIRS[:3])
    with pytest.raises(InputError, match="text tower"):
        separate(llava, Vectors("vision", "block_out", {0: torch.ones(width)}), PAIRS)
