"""The five endpoints as a program calls them, and many programs at once."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image, ImageChops

from vlmsteer_ui import figures

PICTURES = Path(figures.__file__).parent / "pictures"
BERRY = handle_file(PICTURES / "blue_strawberry.png")
MOST = "What color are most strawberries?"
TO_PIXELS = {"vectors": ["color to pixels"], "prior": "red", "pixel": "blue"}
OBJECTS = ("strawberries", "lemons", "elephants", "frogs", "carrots", "bananas", "pigs", "crows", "tires", "plums")


@pytest.fixture(scope="module")
def client(address: str) -> Client:
    return Client(address, verbose=False)


def test_a_program_sees_five_endpoints_with_names_for_their_values(client: Client) -> None:
    told: Any = client.view_api(return_format="dict")
    assert set(told["named_endpoints"]) == {"/run", "/lens", "/evidence", "/counterfact", "/bench"}
    assert told["unnamed_endpoints"] == {}
    names = [one["parameter_name"] for one in told["named_endpoints"]["/run"]["parameters"]]
    assert names[:5] == ["image", "question", "model", "prior", "pixel"] and names[-1] == "max_new_tokens"


def test_run_gives_both_answers(client: Client) -> None:
    run = client.predict(image=BERRY, question=MOST, **TO_PIXELS, api_name="/run")
    assert (run["baseline"], run["steered"]) == ("red", "blue")
    before, after = run["chances"]["pixel"]
    assert after > 0.5 > before and run["recipe"]["hash"]


def test_strength_zero_is_the_baseline(client: Client) -> None:
    run = client.predict(image=BERRY, question=MOST, **TO_PIXELS, strength=0, api_name="/run")
    assert run["steered"] == run["baseline"] and all(len(set(two)) == 1 for two in run["chances"].values())


def test_lens_gives_grid_and_curves(client: Client) -> None:
    found = client.predict(image=BERRY, question=MOST, **TO_PIXELS, api_name="/lens")
    assert set(found["curves"]) == {"baseline", "steered"}
    assert len(found["curves"]["baseline"]["prior"]) == len(found["grids"]["baseline"]["words"]) == 8


@pytest.mark.parametrize("method", ["activation", "attention", "occlusion"])
def test_evidence_gives_maps_and_a_picture(client: Client, method: str) -> None:
    found, picture = client.predict(image=BERRY, question="What color is this?", method=method, api_name="/evidence")
    assert len(found["maps"]) == len(found["tokens"]) and len(found["maps"][0]) == len(found["boxes"])
    assert Image.open(picture).format == "PNG" and Image.open(picture).size == (336, 336)


def test_counterfact_changes_what_the_mask_covers_alone(client: Client) -> None:
    found, picture, mask = client.predict(
        image=BERRY, object="strawberry", to="green", box=[80, 70, 260, 280], api_name="/counterfact"
    )
    assert {check["name"]: check["ok"] for check in found["checks"]}["outside"]
    before, after = Image.open(PICTURES / "blue_strawberry.png").convert("RGB"), Image.open(picture).convert("RGB")
    covered = Image.open(mask).convert("L").point([0, *[255] * 255])
    assert ImageChops.difference(before, after).getbbox() is not None
    kept = Image.composite(Image.new("RGB", before.size), ImageChops.difference(before, after), covered)
    assert kept.getbbox() is None


def test_bench_gives_tables(client: Client) -> None:
    found = client.predict(benchmark="pope", n=12, vectors=["fewer made-up objects"], api_name="/bench")
    assert found["over"] and found["tables"] and len(found["rows"]) == 12 and found["curves"]


@pytest.mark.parametrize(
    ("name", "values", "says"),
    [
        ("/run", {"question": " "}, "Write a question"), ("/run", {"model": "../x"}, "no model"),
        ("/run", {"vectors": ["nothing"]}, "no vector"), ("/run", {"vectors": 3}, "by their names"),
        ("/run", {"strength": 1e9}, "strength lies"), ("/run", {"first": 5, "last": 2}, "no range"),
        ("/run", {"apply": ["everywhere"]}, "recipe applies"), ("/run", {"max_new_tokens": 100_000}, "tokens"),
        ("/run", {"model": "tiny-openvla"}, "actions"), ("/evidence", {"method": "guess"}, "guess"),
        ("/evidence", {"word": "zebra"}, "no word"), ("/lens", {"model": "gpt"}, "no model"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_said(client: Client, name: str, values: dict[str, Any], says: str) -> None:
    with pytest.raises(AppError, match=says):
        client.predict(image=BERRY, api_name=name, **{"question": "What is this?", **values})


def test_eight_programs_with_eight_recipes_get_their_own_answers(address: str) -> None:
    many(address, 5)


@pytest.mark.slow
def test_eight_programs_ask_fifty_questions_each(address: str) -> None:
    many(address, 50)


def many(address: str, count: int) -> None:
    """Eight sessions at once answer as each does alone, and leave nothing behind."""
    recipes = [
        {"vectors": list(vectors), "strength": strength}
        for vectors, strength in itertools.product([("color to pixels",), ("color to prior",)], (0.25, 0.5, 1.0, 2.0))
    ]
    pictures = [handle_file(PICTURES / name) for name in ("blue_strawberry.png", "lone_elephant.png")]

    def answers(recipe: dict[str, Any]) -> list[Any]:
        client = Client(address, verbose=False)
        found = []
        for number in range(count):
            question = f"What color are most {OBJECTS[number % 10]}?" if number % 20 < 10 else "Describe this image."
            run = client.predict(
                image=pictures[number // 2 % 2], question=question, prior="red", pixel="blue", api_name="/run", **recipe
            )
            found.append((run["baseline"], run["steered"], run["chances"]))
        client.close()
        return found

    alone = [answers(recipe) for recipe in recipes]
    with ThreadPoolExecutor(len(recipes)) as pool:
        together = list(pool.map(answers, recipes))
    assert together == alone
    assert len({str(one) for one in alone}) == len(recipes)
    assert answers(recipes[0]) == alone[0]
