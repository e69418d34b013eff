"""TruthPrInt (Duan, Kong et al., ICCV 2025, arXiv 2503.10602), a reconstruction: the authors' code is not available.

A detector learns, from the state before an object's name begins, whether that object is there. While an answer is
written, it is asked before every such name; where it finds an untrue one coming, the answer goes back to the least sure
token of the sentence and takes another way (`decoding/rollback.py`). Which words are objects' names is learned too:
those that a hallucinated caption has and its right one lacks, anywhere among the examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmsteer.decoding.rollback import PICKS, SCOPES, WHERE, linear
from vlmsteer.errors import InputError, RecipeError, did_you_mean
from vlmsteer.examples import Example, digest
from vlmsteer.methods.method import Method, checked_layers, enough
from vlmsteer.perceptron import Perceptron, fit_perceptron
from vlmsteer.probes import evaluate, logistic, mass_mean, split
from vlmsteer.reading import batches
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.session import Session
from vlmsteer.sites import Site

NAME, VERSION = "truthprint", 1
PROBES = ("logistic", "mass_mean", "mlp")
SOURCES = ("own", "given", "both")
FALSE_ALARMS, PICK, SCOPE = 0.2, "lowest", "clause"
LAYERS = 8  # so many are compared by default
COMMON = 0.5  # words of more than this share of right captions are no objects' names
FUNCTION = {
    "a", "an", "the", "this", "that", "and", "or", "of", "in", "on", "at", "by", "with", "to", "from", "is", "are",
    "there", "it", "its", "some",
}  # fmt: skip


class Words(NamedTuple):
    """Words of captions, and the states that predict their first tokens.

    Attributes:
        states: (words, layers, width) float32.
        true: (words,) whether the object is there.
        groups: (words,) of the examples.
        starts: token ids that may begin an object's name.
        layers: which were read.
        lowest: the lowest confidence of the model's own captions, the mean of those that are true throughout and of the
            others; empty if none were read.
    """

    states: Tensor
    true: Tensor
    groups: list[str]
    starts: Tensor
    layers: list[int]
    lowest: dict[str, float]


def learn(
    session: Session,
    examples: Sequence[Example],
    *,
    probe: str = "mlp",
    source: str = "own",
    layers: Sequence[int] | None = None,
    components: int = 0,
    false_alarms: float = FALSE_ALARMS,
    where: str = "starts",
    pick: str = PICK,
    scope: str = SCOPE,
    candidates: int = 3,
    plausible: float = 0.5,
    max_rollbacks: int = 8,
    test: float = 0.25,
    limit: int = 8000,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    name: str = NAME,
) -> Recipe:
    """A detector and the rule that goes back where it fires.

    Args:
        probe: "logistic", "mass_mean", or "mlp" (two hidden layers of 256).
        source: captions that the detector learns from: the model's "own" (as in the paper, their objects looked up in
            the right captions), the "given" right and wrong ones, or "both".
        layers: to choose from, by AUROC on groups that the probe has not seen; up to 8 over the depth by default.
        components: how many principal directions the detector sees of the states; 0 is all of them.
        false_alarms: the share of names of present objects that the threshold lets it fire at.
        where: ask the detector at "any" token, or only at "starts" of objects' names.
        pick: go back to the "lowest" or the "highest" confidence.
        scope: within the "sentence", or the "clause".
        candidates, plausible, max_rollbacks: see `decoding.rollback.Detector`.
        test: the share of groups that the threshold and the reported numbers are from.
        limit: how many words are kept, at most.

    Raises:
        InputError: if the captions do not have both present and absent objects in several groups.
    """
    for given, known, what in (
        (probe, PROBES, "probe"),
        (where, WHERE, "where"),
        (pick, PICKS, "pick"),
        (scope, SCOPES, "scope"),
    ):
        if given not in known:
            raise RecipeError(f"There is no {what} {given!r}{did_you_mean(given, known)}.")
    if not 0 <= false_alarms < 1:
        raise InputError(f"A share of false alarms lies between 0 and 1, not {false_alarms!r}.")
    read = read_words(session, examples, layers, source, limit, max_new_tokens, batch_size, seed)
    fit, held = split(read.groups, test, seed)
    groups = [read.groups[row] for row in fit.tolist()]
    index, by_layer = choose_layer(read.states[fit], read.true[fit], groups, components, seed)
    found = fitted(read.states[fit, index], read.true[fit], groups, probe, components, seed)
    scores, true = found.score(read.states[held, index]), read.true[held]
    measured = evaluate(-scores, ~true)  # what is detected is the untrue
    threshold = float(scores[true].double().quantile(false_alarms))
    about = {
        "method": name, "version": VERSION, "reconstruction": True, "examples": len(examples),
        "data": digest(examples),
        "options": {
            "probe": probe, "source": source, "components": components, "false_alarms": false_alarms, "test": test,
            "seed": seed,
        },
        **{key: round(float(measured[key]), 4) for key in ("auroc", "ap", "tpr_at_1_fpr")},
        "tpr_at_threshold": round(float((scores[~true] < threshold).double().mean()), 4),
        "words": {"true": int(read.true.sum()), "untrue": int((~read.true).sum()), "held_out": len(held)},
        "layer": read.layers[index],
        "auroc_by_layer": {str(layer): round(area, 4) for layer, area in zip(read.layers, by_layer, strict=True)},
        "lowest_confidence": read.lowest,
    }  # fmt: skip
    settings: dict[str, Any] = {
        "layer": read.layers[index], "threshold": threshold, "where": where, "pick": pick, "scope": scope,
        "candidates": candidates, "plausible": plausible, "max_rollbacks": max_rollbacks,
    }  # fmt: skip
    rule = Rule("rollback", settings, tensors={**found.tensors(), "starts": read.starts})
    return Recipe((), session.fingerprint, about, (rule,))


def choose_layer(
    states: Tensor, true: Tensor, groups: Sequence[str], components: int = 0, seed: int = 0
) -> tuple[int, list[float]]:
    """The number of the layer whose logistic probe tells best on groups it has not seen, and every layer's AUROC."""
    rest, held = split(groups, 0.3, seed + 1)
    areas = []
    for layer in range(states.shape[1]):
        found = fitted(
            states[rest, layer], true[rest], [groups[int(row)] for row in rest], "logistic", components, seed
        )
        areas.append(float(evaluate(-found.score(states[held, layer]), ~true[held])["auroc"]))
    return max(range(len(areas)), key=areas.__getitem__), areas


def fitted(
    x: Tensor, true: Tensor, groups: Sequence[str], probe: str, components: int = 0, seed: int = 0
) -> Perceptron:
    """A probe of (words, width) states as a perceptron; larger scores mean "true"."""
    mean, basis = x.mean(0), None
    if components:
        count = min(components, *x.shape)
        basis = torch.linalg.svd((x - mean).double(), full_matrices=False).Vh[:count].T.float()
        x = (x - mean) @ basis
    if probe == "mlp":
        found = fit_perceptron(
            x, true, groups, hidden=(256, 256), normalize=False, rate=1e-3, epochs=20, standardize=True, seed=seed
        )
    else:
        one = mass_mean(x, true) if probe == "mass_mean" else logistic(x, true, c=0.1)
        found = Perceptron.of(linear(one.weight, one.bias))
    if basis is None:
        return found
    first = basis @ found.weights[0]  # so that it reads states as they are
    return Perceptron((first, *found.weights[1:]), (found.biases[0] - mean @ first, *found.biases[1:]))


def read_words(
    session: Session,
    examples: Sequence[Example],
    layers: Sequence[int] | None = None,
    source: str = "own",
    limit: int = 8000,
    max_new_tokens: int = 64,
    batch_size: int = 16,
    seed: int = 0,
) -> Words:
    """The states before the names of objects in captions; memory is bounded by `limit` words.

    Raises:
        InputError: if the captions name no object, or none that is absent.
    """
    enough(examples, "TruthPrInt", 4)
    if source not in SOURCES:
        raise RecipeError(f"There is no source of captions {source!r}{did_you_mean(source, SOURCES)}.")
    depth = session.layers()
    chosen = checked_layers(session, layers or sorted({(i + 1) * depth // (LAYERS + 1) for i in range(LAYERS)}))
    named = names(examples)
    told: list[tuple[Example, str]] = []
    lowest: dict[str, float] = {}
    if source in ("own", "both"):
        images, questions = [one.image for one in examples], [one.question for one in examples]
        answers = session.ask_many(images, questions, None, max_new_tokens, batch_size)
        own = [(one, answer) for one, answer in zip(examples, answers, strict=True) if answer]
        told += own
        lowest = _lowest(session, own, named, batch_size)
    if source in ("given", "both"):
        told += [(one, answer) for one in examples for answer in (one.right, one.wrong)]
    sites = [Site("text", layer, "block_out") for layer in chosen]
    kept: list[Tensor] = []
    true: list[bool] = []
    groups: list[str] = []
    starts: set[int] = set()
    order = torch.randperm(len(told), generator=torch.Generator().manual_seed(seed)).tolist()
    told = [told[i] for i in order]
    images, questions = [one.image for one, _ in told], [one.question for one, _ in told]
    for rows, states in batches(
        session, sites, images, questions, [answer for _, answer in told], "last", batch_size=batch_size
    ):
        for i, (one, answer) in enumerate(told[rows]):
            tokens, offsets = session.encoder.answer_tokens(answer, one.image is not None)
            for place, there in labeled(one.right, answer, named):
                first = next((k for k, (_, stop) in enumerate(offsets) if stop > place), None)
                if first is None or len(kept) >= limit:
                    continue
                starts.add(int(tokens[first]))
                kept.append(torch.stack([states.rows(site)[i][first].float().cpu() for site in sites]))
                true.append(there)
                groups.append(one.group)
    if not any(true) or all(true):
        raise InputError(
            f"The captions name {len(true)} objects, {sum(true)} of them present; a detector needs present and absent "
            "ones. Give more examples, or source=both."
        )
    return Words(torch.stack(kept), torch.tensor(true), groups, torch.tensor(sorted(starts)), chosen, lowest)


def names(examples: Sequence[Example]) -> set[str]:
    """Words that a wrong caption has and its right one lacks, without those that join others or are in most."""
    common: dict[str, int] = {}
    found: set[str] = set()
    for one in examples:
        right = {word for _, word in _words(one.right)}
        found |= {word for _, word in _words(one.wrong)} - right
        for word in right:
            common[word] = common.get(word, 0) + 1
    return {word for word in found - FUNCTION if common.get(word, 0) <= COMMON * len(examples)}


def labeled(right: str, answer: str, named: set[str]) -> Iterator[tuple[int, bool]]:
    """Where names in an answer begin, and whether what they name is in the right caption.

    Names that follow each other are one phrase ("orange traffic cone"), which is true if its last word is.
    """
    there = {word for _, word in _words(right)}
    phrase: list[int] = []
    listed = _words(answer)
    for i, (place, word) in enumerate(listed):
        if word not in named:
            continue
        phrase.append(place)
        following = listed[i + 1] if i + 1 < len(listed) else None
        if following and following[1] in named and not answer[place + len(word) : following[0]].strip():
            continue
        yield from ((begin, word in there) for begin in phrase)
        phrase = []


def _words(text: str) -> list[tuple[int, str]]:
    return [(found.start(), found[0].lower()) for found in re.finditer(r"[^\W\d_]+", text)]


def _lowest(
    session: Session, told: Sequence[tuple[Example, str]], named: set[str], batch_size: int
) -> dict[str, float]:
    """The least probability of a token in the model's own greedy captions, by whether all they name is there."""
    images, questions = [one.image for one, _ in told], [one.question for one, _ in told]
    scores = session.score(images, questions, [answer for _, answer in told], batch_size=batch_size)
    found: dict[str, list[float]] = {"true": [], "untrue": []}
    for (one, answer), score in zip(told, scores, strict=True):
        right = all(there for _, there in labeled(one.right, answer, named))
        found["true" if right else "untrue"].append(float(score.min().exp()))
    return {key: round(sum(values) / len(values), 4) for key, values in found.items() if values}


METHOD = Method(
    name=NAME,
    title="TruthPrInt, going back before an untrue word",
    paper="Duan, Kong et al., ICCV 2025, arXiv 2503.10602",
    needs="captions",
    learn=learn,
    strengths=(0.25, 0.5, 1.0, 2.0),
    notes="A reconstruction. The threshold lets the detector fire at a fifth of the present objects (1 or 2 % in the "
    "paper), and it goes back within the clause. The strength multiplies how often an answer may go back.",
    reconstruction=True,
)
