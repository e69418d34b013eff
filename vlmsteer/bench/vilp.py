"""ViLP: one question, three pictures; the first shows what everyone would answer blindly, the other two do not.

(Probing Visual Language Priors in VLMs, Luo et al., 2025, arXiv 2501.00569.) Score is the accuracy on the second
and third picture, Prior on the first. Answers are single words, compared through a fixed table of numbers, synonyms
and plurals, in which a man is a person and a square a cube.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlmsteer.bench.benchmark import Answer, Benchmark, Item, Scorer, Sums, Tally, share
from vlmsteer.bench.files import Files, Published, field
from vlmsteer.bench.rows import read_split
from vlmsteer.errors import InputError, did_you_mean

PROMPTS = {"one_word": "Please answer with one word: {question}"}
_NUMBERS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
# canonical: the words that mean it, by ";" (some are of two words). Each table is applied once, in this order, so
# that "donuts" ends as "torus", "striped" as "stripe", and "co2" as "carbon dioxide" but not as "carbondioxide".
_SYNONYMS = {
    "AC": "aircondition;airconditioner;air-conditioner", "USA": "America", "airplane": "aeroplane;plane",
    "bag": "backpack", "bee": "beesap", "bicycle": "bike", "bigben": "clocktower", "bus": "schoolbus", "bush": "bushe",
    "car": "automobile", "carbon dioxide": "co2", "carbondioxide": "co₂;carbon dioxide", "cat": "kitten",
    "checkerboard": "checkered", "chicken": "rooster;roosters", "computer": "pc", "crocodile": "alligator",
    "crow": "raven", "cube": "cubic;cubical;cubes;cuboids;cuboid;square;squares", "cup": "teacup", "curved": "zigzag",
    "cushion": "pillow", "diamond": "faceted;jewelry;jewelries", "dinosaur": "t-rex;trex", "dog": "dalmatian",
    "dolphin": "porpoise", "eraser": "brush", "eye": "eyesight", "faucet": "tap", "flower": "bud;blossoms",
    "fridge": "refrigerator;refrigerators", "glass": "crystal", "glasses": "goggles;night-vision;binoculars",
    "guitar": "ukulele", "hexagon": "hexagonal;hexagons", "hippo": "hippopotamus", "kangaroo": "wallaby",
    "kettle": "teapot", "lolipop": "candy", "los angeles": "la", "metal": "steel", "motorcycle": "motorbike",
    "new york city": "nyc;new york", "nitrogen": "n2", "octagon": "octagonal", "octopus": "squid",
    "oven": "stove;fireplace", "oxygen": "o2", "person": "man;woman;people;men;women", "phone": "cellphone;telephone",
    "pickle": "cucumber", "pipe": "pipeline", "pitaya": "dragonfruit", "rainbow": "multicolored", "rhino": "rhinoceros",
    "round": "circular;circle;circles;spherical;spheres;sphere;roundpherical;roundph", "sea": "underwater;ocean",
    "seismometer": "seismograph", "ship": "boat;boats;sailboat;airship", "shoe": "slippers;slipper", "snake": "serpent",
    "space": "galaxy", "spots": "polka-dots;dots", "straw": "hay;thatch", "stripes": "striped", "television": "tv",
    "torus": "donut;donuts", "triangle": "triangular;triangles", "turtle": "tortoise", "united states": "usa",
    "vine": "vineyard", "violin": "cello", "water": "h2o", "wood": "logs",
}  # fmt: skip
_REGULAR = (  # plurals that only lose their s
    "bees ants wasps kangaroos koalas wombats trees books goats squirrels rabbits pandas giraffes lions tigers cows "
    "horses cats dogs whales sharks dolphins flowers diamonds bricks winds wheels chickens beaks needles spinners "
    "clouds earthquakes seals pencils petals forks seahorses keys carrots crayons skyscrapers birds bicycles lemons "
    "pipes spinnerets bubbles camels stripes lungs gills feathers scales lolipops drums ropes shoes elephants "
    "porcupines clocks antelopes eyes chameleons rockets turbines pumpkins shrubs fields"
)
_IRREGULAR = {
    "bush": "bushes", "butterfly": "butterflies", "cactus": "cacti", "child": "children", "fire": "flame",
    "firefly": "fireflies", "foot": "feet", "fungus": "fungi", "goose": "geese", "knife": "knives", "leaf": "leaves",
    "lolipop": "lollipops;lollipop", "medium": "media", "mouse": "mice", "octopus": "octopi", "ostrich": "ostriches",
    "stimulus": "stimuli", "tooth": "teeth", "watch": "watches", "wolf": "wolves",
}  # fmt: skip


def _turned(table: Mapping[str, str]) -> dict[str, str]:
    return {word: canonical for canonical, words in table.items() for word in words.split(";")}


NUMBERS = {word: str(n) for n, word in enumerate(_NUMBERS.split())}
SYNONYMS = _turned(_SYNONYMS)
SINGULARS = {word: word[:-1] for word in _REGULAR.split()} | _turned(_IRREGULAR)


def normalize(text: str) -> str:
    """An answer as it is compared: lower case, no final period, a number as digits, one word for synonyms and plurals.

    ViLP-team/ViLP@93e3d79 eval_utils.py normalize_output.
    """
    word = str(text).lower().strip().removesuffix(".")
    for table in (NUMBERS, SYNONYMS, SINGULARS):
        word = table.get(word, word)
    return word


def matches(answer: str, truth: str) -> bool:
    """Whether an answer is right: equal after `normalize`, and not "none".

    ViLP-team/ViLP@93e3d79 eval_utils.py compare_single_output.
    """
    given = normalize(answer)
    return given == normalize(truth) and given != "none"


def load(files: Files, *, prompt: str = "one_word", fact: bool = True) -> list[Item]:
    """Three items a question, from `ViLP` (or `train`) .parquet, or .json, .jsonl, .csv whose images are file names.

    Args:
        files: the folder; images that are file names lie in it or in `images/`.
        prompt: of `PROMPTS`.
        fact: with the sentence before the question that states the usual answer (ViLP-F), or without it (ViLP-P).

    Raises:
        InputError: for a malformed row, a question that stands twice, or one without a fact to leave out.
    """
    if prompt not in PROMPTS:
        raise InputError(f"ViLP has no prompt {prompt!r}{did_you_mean(prompt, PROMPTS)}.")
    items: list[Item] = []
    seen: dict[tuple[str, ...], str] = {}
    for number, (where, row) in enumerate(read_split(files, "ViLP", "vilp", "train")):
        question = field(row, "question", where)
        images = [field(row, f"image{n}", where) for n in (1, 2, 3)]
        truths = [str(field(row, f"answer{n}", where, (str, int))) for n in (1, 2, 3)]
        earlier = seen.setdefault((question, *images), where)
        if earlier != where:
            raise InputError(f"{where} is {earlier[0].lower()}{earlier[1:]} again; remove one of them.")
        asked = question if fact else _without_fact(question, where)
        name = str(row.get("question_id") or f"{number:03d}")
        for n, (image, truth) in enumerate(zip(images, truths, strict=True), 1):
            gold: dict[str, Any] = {"image": n, "truth": truth, "prior": truths[0]}
            text = PROMPTS[prompt].format(question=asked)
            items.append(Item(f"{name}/{n}", files.image(image, "images"), text, name, gold))
    return items


def _without_fact(question: str, where: str) -> str:
    parts = question.split(".")
    if len(parts) < 2:
        raise InputError(f"{where} has the question {question!r}, without a fact and a period before it; load with it.")
    return parts[1].strip()


def tally(items: Sequence[Item], answers: Sequence[Answer], read: Callable[[str], str]) -> Tally:
    """Counts by question; one of which a picture's answer is missing is left out."""
    questions: dict[str, dict[int, tuple[Item, str]]] = {}
    for item, answer in zip(items, answers, strict=True):
        questions.setdefault(item.group, {})[item.gold["image"]] = (item, read(answer.text))
    groups: list[str] = []
    counts: dict[str, list[float]] = {
        name: [] for name in ("questions", "right1", "right2", "right3", "prior", "words")
    }
    for group, parts in questions.items():
        if set(parts) != {1, 2, 3}:
            continue
        right = {n: matches(said, item.gold["truth"]) for n, (item, said) in parts.items()}
        blind = [matches(parts[n][1], parts[n][0].gold["prior"]) and not right[n] for n in (2, 3)]
        groups.append(group)
        counts["questions"].append(1.0)
        for n in (1, 2, 3):
            counts[f"right{n}"].append(float(right[n]))
        counts["prior"].append(float(sum(blind)))
        counts["words"].append(float(sum(len(said.split()) for _, said in parts.values())))
    return Tally(groups, counts)


def _metrics(sums: Sums) -> dict[str, np.ndarray]:
    n = sums["questions"]
    return {
        "Score": (share(sums["right2"], n) + share(sums["right3"], n)) / 2,
        "Prior": share(sums["right1"], n),
        "prior_ratio": share(sums["prior"], 2 * n),
        "words": share(sums["words"], 3 * n),
    }


WANTED = {"Score": 1, "Prior": 1, "prior_ratio": -1, "words": 0}
BENCHMARK = Benchmark(
    name="vilp",
    title="ViLP",
    source="Luo et al. 2025, arXiv 2501.00569; ViLP-team/ViLP",
    load=load,
    scorers=(
        Scorer(
            "reference",
            "ViLP-team/ViLP@93e3d79 eval_utils.py",
            lambda items, answers: tally(items, answers, str),
            _metrics,
            WANTED,
            numbers=frozenset({"words"}),
        ),
        Scorer(
            "scripts",
            "ViLP-team/ViLP test_llava.py and test_gpt.py, which remove every period first",
            lambda items, answers: tally(items, answers, lambda text: text.lower().strip().replace(".", "")),
            _metrics,
            WANTED,
            numbers=frozenset({"words"}),
        ),
    ),
    max_new_tokens=16,
    hub=Published("ViLP/ViLP", ("*.parquet",)),
    notes="prior_ratio is ours: how often the second and third picture get the first one's answer.",
)
