"""A method learned and set up for one model: layers and strength are chosen on scenes that nothing is reported on.

First many settings are tried on captions alone; the few best are then measured on more scenes and with yes/no
questions, and the one whose hallucination falls most within the allowed losses is taken. Where none helps, the paper's
own setting is kept, so that its effect is reported and not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmsteer.bench.compare import Trial, Tuned, choose, trials
from vlmsteer.bench.drawn_examples import select_examples
from vlmsteer.bench.own_captions import cut_captions, own_captions
from vlmsteer.bench.pairs import Split
from vlmsteer.methods.method import Method
from vlmsteer.recipe import Recipe
from vlmsteer.session import Session

SCENES, AGAIN, QUESTIONS = 120, 300, 200  # validation scenes; others for the finalists, and their yes/no questions
FINALISTS = 4
SLACK = 0.01  # how far beyond the allowed losses a finalist may be: what so few scenes cannot tell
OWN = ("own", "cut")  # kinds of examples that hold what the model itself said
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Fitted:
    """A method's recipe for a model, and how it was chosen.

    Attributes:
        layers: the text layers that are edited, None if all those of the method.
        helps: whether any setting lowered hallucination within the allowed losses; if not, the recipe is the paper's.
        trials: what each finalist changed on validation scenes.
    """

    recipe: Recipe
    strength: float
    layers: list[int] | None
    helps: bool
    trials: list[Trial]

    def as_dict(self) -> dict[str, Any]:
        """The choice as JSON values."""
        return {
            "strength": self.strength, "layers": self.layers, "helps": self.helps, "about": dict(self.recipe.about),
            "tried": [
                {"strength": trial.strength, "layers": trial.layers,
                 "change": {name: rate.as_dict() for name, rate in trial.change.items()}}
                for trial in self.trials
            ],
        }  # fmt: skip


def learned(session: Session, method: Method, data: str, n: int, seed: int = 0, /, **options: Any) -> Recipe:
    """The method's own recipe from `n` examples of the learning split; an option `needs` asks for another kind."""
    needs = options.pop("needs", method.needs)
    return method.learn(session, answered(session, needs, material(needs, data, n, seed)), **options)


def material(needs: str, data: str, n: int, seed: int = 0, split: Split = "learn") -> Sequence[Any]:
    """At most `n` examples of a split, of the kind that a method needs (`vlmsteer.methods.method.NEEDS`).

    Raises:
        InputError: if the data cannot be read or has none of the kind.
    """
    if needs == "nothing":
        return ()
    if needs == "pairs":
        from vlmsteer.bench.pairs import select
        from vlmsteer.demo import question

        pairs = select(data, "color", split, n, seed)
        return [(pair.image("counterfactual"), question(pair, "this"), question(pair, "most")) for pair in pairs]
    return select_examples(data, "captions" if needs in OWN else needs, split, n, seed)


def answered(session: Session, needs: str, examples: Sequence[Any]) -> Sequence[Any]:
    """What `material` gave; of the kinds "own" and "cut", the examples that the model gets wrong, with its captions."""
    if needs not in OWN:
        return examples
    own = own_captions(session, examples)
    return cut_captions(own) if needs == "cut" else own


def windows(layers: int) -> list[list[int] | None]:
    """All layers, and the first, middle and last half of them."""
    if layers < 4:
        return [None]
    half = layers // 2
    return [None, *([*range(first, first + half)] for first in (0, half // 2, layers - half))]


def fit(
    session: Session,
    method: Method,
    data: str = "drawn",
    n: int = 400,
    seed: int = 0,
    questions: int = QUESTIONS,
    progress: Progress = lambda text: None,
    **options: Any,
) -> Fitted:
    """Learn a method and choose its layers, its strength and which of its variants for this model.

    Args:
        data: "drawn", "lures", or a file of examples.
        n: examples to learn from.
        questions: yes/no questions that finalists are tried on; 0 where the data has none.
        options: the method's own.
    """
    found: list[tuple[Trial, int]] = []
    recipes: list[Recipe] = []
    scenes = select_examples(data, "captions", "validate", SCENES + AGAIN, seed)
    cut = min(SCENES, (len(scenes) + 1) // 2)  # of a small set both rounds get a half
    variants: list[dict[str, Any]] = [{}, *map(dict, method.variants)]
    for number, variant in enumerate(variants):
        progress(f"{method.title}: learning")
        recipe = learned(session, method, data, n, seed, **{**variant, **options})
        recipes.append(recipe)
        edited = {layer for edit in recipe.edits if edit.vectors.tower == "text" for layer in edit.vectors.layers}
        spans = [
            span for span in windows(session.layers()) if span is None or 0 < len(edited & set(span)) < len(edited)
        ]
        candidates = [(strength, span) for span in spans for strength in method.strengths]
        progress(f"{method.title}: trying {len(candidates)} settings")
        found += [(trial, number) for trial in trials(session, recipe, candidates, scenes[:cut], [])]
    best = sorted(found, key=lambda one: _rank(one[0]))[:FINALISTS]
    progress(f"{method.title}: trying the best {len(best)} again")
    presence = select_examples(data, "presence", "validate", questions, seed) if questions else []
    again = []
    for number, recipe in enumerate(recipes):
        settings = [(trial.strength, trial.layers) for trial, one in best if one == number]
        if settings:
            again += [(trial, number) for trial in trials(session, recipe, settings, scenes[cut:], presence)]
    chosen: Tuned = choose([trial for trial, _ in again])
    number = next(number for trial, number in again if trial is chosen.best) if chosen.strength else 0
    strength, layers = (chosen.best.strength, chosen.best.layers) if chosen.strength else (1.0, None)
    final = recipes[number].scaled(strength)
    final = final if layers is None else final.narrowed(layers)
    choice = {"strength": strength, "layers": layers, "variant": variants[number], "helps": bool(chosen.strength)}
    about = {**final.about, "chosen": choice}
    return Fitted(replace(final, about=about), strength, layers, bool(chosen.strength), [trial for trial, _ in again])


def _rank(trial: Trial) -> tuple[bool, float]:
    """Settings that cost too much come last: strong ones cut captions short, and would crowd out those that help."""
    cost = trial.score - trial.change["chair_i"].rate
    return not cost <= SLACK, trial.score
