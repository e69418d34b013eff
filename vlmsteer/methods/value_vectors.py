"""Value vectors (Geva et al., EMNLP 2021; in robot policies Häon et al., CoRL 2025, arXiv 2509.00328).

An MLP adds up the columns of its down projection, each times one neuron's activation. Such a column is a point of the
residual stream, so the unembedding says which tokens it pushes up; neurons that push up the words of one idea are a
cluster, and an edit at `neuron` turns them. The paper picks clusters by hand; here words do, and each has controls:
as many other neurons of the same layers, which move the stream as far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmsteer.errors import InputError, SiteError, did_you_mean
from vlmsteer.lens.beliefs import first_tokens
from vlmsteer.methods.method import checked_layers
from vlmsteer.openvla.actions import bins
from vlmsteer.operations import NEUTRAL
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.session import Session, beside
from vlmsteer.sites import Site
from vlmsteer.vectors import Vectors

VERSION = 1
CHUNK = 1024  # value vectors projected at once: 131 MB of logits at 32,000 tokens
WAYS = ("score", "top")


class Neuron(NamedTuple):
    """One neuron: its place, how near it is to what was looked for, and the tokens it pushes up most."""

    layer: int
    number: int
    score: float
    tokens: list[str]


def value_vectors(session: Session, layer: int) -> Tensor:
    """(neurons, width): the columns of a text layer's down projection, a view of the model's weights.

    Raises:
        SiteError: if there is no such layer, or its weights are not there as numbers (quantized, or left on the disk).
    """
    (layer,) = checked_layers(session, [layer])
    tap = session.taps[Site("text", layer, "neuron")]
    weight = getattr(tap.module, "weight", None)
    known = weight if isinstance(weight, Tensor) and not weight.is_meta and weight.is_floating_point() else None
    if known is None or known.shape[-1] != tap.width:
        raise SiteError(
            "Value vectors are the down projection's weights; load the model without quantization or offload."
        )
    return known.detach().T


@torch.no_grad()
def logits(session: Session, vectors: Tensor, norm: bool = False) -> Tensor:
    """(n, vocabulary) float32: what vectors (n, width) would say by themselves.

    Args:
        norm: put the model's final norm before the unembedding, so that a vector's length does not count; the paper
            does not.
    """
    if norm:
        return session.unembed(vectors).float()
    _, head = session.family.ending(session.model)
    with session.instrument.alone():
        return head(beside(head, vectors)).float()


def top_tokens(
    session: Session, layers: Sequence[int] | None = None, k: int = 10, norm: bool = False
) -> tuple[Tensor, Tensor]:
    """The k tokens that each neuron pushes up most: ids and logits, (layers, neurons, k), on the CPU."""
    best = [logit.topk(k) for _, logit in _projected(session, checked_layers(session, layers), norm)]
    count = len(checked_layers(session, layers))
    ids, values = (torch.cat([one[part].cpu() for one in best]) for part in (1, 0))
    return ids.int().view(count, -1, k), values.view(count, -1, k)


def word_scores(
    session: Session, words: Sequence[str], layers: Sequence[int] | None = None, norm: bool = False
) -> Tensor:
    """(layers, neurons): the mean over words of each neuron's logit for the word, z-scored over all these neurons.

    Of a word's spellings the one that a neuron pushes up most counts.

    Raises:
        InputError: if a word is not one token of this model.
    """
    chosen, spelled = checked_layers(session, layers), word_tokens(session, words)
    ids = torch.tensor([token for tokens in spelled.values() for token in tokens])
    found = torch.cat([logit[:, ids.to(logit.device)].cpu() for _, logit in _projected(session, chosen, norm)])
    scaled = (found - found.mean(0)) / found.std(0).clamp_min(1e-12)
    by_word = [part.max(1).values for part in scaled.split([len(tokens) for tokens in spelled.values()], 1)]
    return torch.stack(by_word).mean(0).view(len(chosen), -1)


def word_tokens(session: Session, words: Sequence[str]) -> dict[str, list[int]]:
    """For each word the ids of the tokens that are the whole word, in any of its spellings.

    Raises:
        InputError: if there are no words, or one is not one token.
    """
    if not words:
        raise InputError("Give one or more words, such as slow,slowly.")
    found = {}
    for word in dict.fromkeys(words):
        begins = first_tokens(session, [word])[word]
        whole = [token for token in begins if session.tokenizer.decode([token]).strip().lower() == word.lower()]
        if not whole:
            pieces = session.tokenizer.tokenize(f" {word}")
            raise InputError(
                f"{word!r} is not one token of this model, which writes it {' '.join(pieces)}; give another word."
            )
        found[word] = whole
    return found


def nearest(
    session: Session,
    words: Sequence[str],
    size: int = 10,
    *,
    against: Sequence[str] = (),
    by: str = "score",
    k: int = 10,
    norm: bool = False,
    layers: Sequence[int] | None = None,
) -> list[Neuron]:
    """The neurons nearest to some words, nearest first.

    Args:
        size: how many; with "top" at most so many.
        against: words whose score is taken away.
        by: "score": by `word_scores` alone; "top": only neurons with one of the words among their k tokens, those with
            more of the words first, as in the paper's lists.
        k: how many tokens of a neuron are looked at.

    Raises:
        InputError: if a word is not one token, no neuron holds one, or a number is not possible.
    """
    if by not in WAYS:
        raise InputError(f"Neurons are chosen by score or top, not {by!r}{did_you_mean(by, WAYS)}.")
    chosen = checked_layers(session, layers)
    scores = word_scores(session, words, chosen, norm)
    if against:
        scores = scores - word_scores(session, against, chosen, norm)
    if not 0 < size <= scores.numel() or k < 1:
        raise InputError(f"A cluster has 1 to {scores.numel()} neurons with 1 or more tokens each, not {size}, {k}.")
    order = scores
    if by == "top":
        tops, _ = top_tokens(session, chosen, k, norm)
        spelled = word_tokens(session, words).values()
        held = torch.stack([torch.isin(tops, torch.tensor(tokens).int()).any(-1) for tokens in spelled]).sum(0)
        order = torch.where(held > 0, held * (scores.max() - scores.min() + 1) + scores, -torch.inf)
        size = min(size, int((held > 0).sum()))
        if not size:
            raise InputError(f"No neuron has one of these words among its {k} tokens; choose by score, or raise k.")
    best = order.flatten().topk(size).indices.tolist()
    places = [(chosen[index // scores.shape[1]], index % scores.shape[1]) for index in best]
    return described(session, places, scores.flatten()[best].tolist(), k, norm)


def described(
    session: Session, places: Sequence[tuple[int, int]], scores: Sequence[float], k: int = 10, norm: bool = False
) -> list[Neuron]:
    """Neurons (layer, number) with their scores, and the tokens that each pushes up."""
    vectors = torch.stack([value_vectors(session, layer)[number] for layer, number in places])
    tokens = logits(session, vectors, norm).topk(k).indices.tolist()
    return [
        Neuron(layer, number, score, [shown(session, token) for token in row])
        for (layer, number), score, row in zip(places, scores, tokens, strict=True)
    ]


def shown(session: Session, token: int) -> str:
    """A token as people read it: its text, or the number between -1 and 1 that an action token stands for."""
    config = session.model.config
    if hasattr(config, "n_action_bins") and bins(config).has(token):
        return f"[action {float(bins(config).decode(token)):+.3f}]"
    return session.tokenizer.decode([token]).strip()


def recipe(
    session: Session,
    neurons: Sequence[Neuron],
    operation: str = "clamp",
    value: float = 4.0,
    about: Mapping[str, Any] | None = None,
) -> Recipe:
    """Turn some neurons, at every position of prompt and answer.

    Args:
        operation: "clamp" sets them to `value` (the paper's; its example runs use 4); "scale" multiplies them by it;
            "add" adds it.
        about: how the neurons were found.

    Raises:
        InputError: if there are no neurons, or no such operation.
    """
    if operation not in NEUTRAL or not neurons:
        raise InputError(
            f"Neurons are turned by {', '.join(NEUTRAL)}; {operation!r} was given for {len(neurons)} of them."
        )
    layers: dict[int, Tensor] = {}
    for layer, number, *_ in neurons:
        width = session.taps[Site("text", layer, "neuron")].width
        layers.setdefault(layer, torch.full((width,), NEUTRAL[operation]))[number] = value - (operation == "scale")
    listed = {str(layer): sorted(one.number for one in neurons if one.layer == layer) for layer in sorted(layers)}
    about = {
        "method": "value_vectors", "version": VERSION, **(about or {}), "operation": operation, "value": float(value),
        "neurons": listed,
    }  # fmt: skip
    edit = Edit(Vectors("text", "neuron", layers, session.fingerprint, about), operation, 1.0, "all")
    return Recipe((edit,), session.fingerprint, about)


def random_set(session: Session, recipe: Recipe, seed: int) -> Recipe:
    """The control of a recipe: other neurons, as many in the same layers, that move the stream as far.

    In each layer the values are given to other neurons by chance and multiplied by one number, so that the sum of
    value vectors times values is as long as the recipe's. Edits at other points get random directions of their lengths.

    Raises:
        InputError: if a layer has too few other neurons.
    """
    generator = torch.Generator().manual_seed(seed)
    return replace(recipe, edits=tuple(_other(session, edit, generator, seed) for edit in recipe.edits))


def _other(session: Session, edit: Edit, generator: torch.Generator, seed: int) -> Edit:
    if edit.operation not in NEUTRAL or (edit.vectors.tower, edit.vectors.point) != ("text", "neuron"):
        return edit.random_like(seed)
    layers = {}
    for layer, vector in sorted(edit.fixed.layers.items()):
        turned = ~vector.isnan() if edit.operation == "clamp" else vector != 0
        values, others = vector[turned], (~turned).nonzero().flatten()
        if len(others) < len(values):
            raise InputError(f"Layer {layer} has {len(others)} other neurons, too few for a control of {len(values)}.")
        drawn = others[torch.randperm(len(others), generator=generator)[: len(values)]]
        columns = value_vectors(session, layer)
        wanted, given = (
            (values.to(columns.device) @ columns[rows.to(columns.device)].float()).norm().item()
            for rows in (turned.nonzero().flatten(), drawn)
        )
        layers[layer] = torch.full_like(vector, NEUTRAL[edit.operation])
        layers[layer][drawn] = values * (wanted / given if given else 1.0)
    about = {**edit.fixed.about, "control": f"other neurons, seed {seed}"}
    return replace(edit, vectors=replace(edit.fixed, layers=layers, about=about))


def _projected(session: Session, layers: Sequence[int], norm: bool) -> Iterator[tuple[int, Tensor]]:
    """Each layer's logits, some neurons (n, vocabulary) at a time."""
    for layer in layers:
        for part in value_vectors(session, layer).split(CHUNK):
            yield layer, logits(session, part, norm)
