"""Clusters of neurons by k-means over their value vectors; the one in which given words' embeddings fall is taken.

Two value vectors are alike if they push the same tokens up and down, so distances are those between logits, centered
over the vocabulary and of length 1. With U the centered unembedding |U a - U b| is the distance of a and b in the
metric U^T U, so the logits themselves are never held: a matrix of the model's width, cut to its strongest directions,
takes their place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import normalize

from vlmsteer.errors import InputError
from vlmsteer.methods.method import checked_layers
from vlmsteer.methods.value_vectors import CHUNK, Neuron, described, logits, shown, value_vectors, word_tokens
from vlmsteer.session import Session, beside


def cluster(
    session: Session,
    words: Sequence[str],
    size: int | None = None,
    *,
    count: int = 100,
    dimensions: int = 256,
    k: int = 10,
    norm: bool = False,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> tuple[list[Neuron], dict[str, Any]]:
    """The neurons of the cluster that the words fall in, nearest to the words first.

    Args:
        words: where most of them fall, is taken; of two such places the one they are nearer to.
        size: the most neurons that are kept.
        count: clusters.
        dimensions: directions of the logits that are kept, the strongest; all where the model is no wider.
        k: tokens shown of each neuron.
        norm: as in `value_vectors.logits`.

    Returns:
        The neurons, and the cluster as JSON values: how many neurons it has, its own words, which given words are in.

    Raises:
        InputError: if a word is not one token, or the numbers do not fit the neurons.
    """
    chosen, spelled = checked_layers(session, layers), word_tokens(session, words)
    basis = logit_metric(session, dimensions)
    rows = torch.cat([_placed(session, value_vectors(session, layer), basis, norm) for layer in chosen])
    if not 1 < count <= len(rows) or (size is not None and size < 1):
        raise InputError(
            f"{len(rows)} neurons make 2 to {len(rows)} clusters, not {count}, of which 1 or more are kept."
        )
    found = KMeans(count, n_init=1, random_state=seed).fit(rows.numpy())  # pyright: ignore[reportArgumentType]
    embeddings = _unembedding(session)
    centered = embeddings - embeddings.mean(0)
    points = torch.cat([_placed(session, centered[ids], basis, norm).mean(0, True) for ids in spelled.values()])
    distances = torch.as_tensor(found.transform(points.numpy()))
    places = distances.argmin(1).tolist()
    near = distances.mean(0)
    taken = max(Counter(places).items(), key=lambda pair: (pair[1], -float(near[pair[0]])))[0]
    (members,) = (torch.as_tensor(found.labels_) == taken).nonzero(as_tuple=True)
    aim = normalize(points[torch.tensor(places) == taken].mean(0), dim=0)
    scores = rows[members] @ aim
    order = scores.argsort(descending=True, stable=True)[:size]
    width = len(rows) // len(chosen)
    flat = members[order].tolist()
    neurons = described(
        session, [(chosen[index // width], index % width) for index in flat], scores[order].tolist(), k, norm
    )
    vectors = [value_vectors(session, chosen[index // width])[index % width].float() for index in members.tolist()]
    own = logits(session, normalize(torch.stack(vectors), dim=-1).mean(0, True).to(session.model.dtype), norm)
    about = {
        "neurons_in_cluster": len(members), "clusters": count,
        "named": [shown(session, token) for token in own[0].topk(k).indices.tolist()],
        "words_inside": [word for word, place in zip(spelled, places, strict=True) if place == taken],
    }  # fmt: skip
    return neurons, about


def logit_metric(session: Session, dimensions: int = 256) -> Tensor:
    """(width, at most `dimensions`) float32: |(a - b) @ it| is how far apart the centered logits of a and b are."""
    head = _unembedding(session).double()
    mean = head.mean(0)
    squares = head.T @ head - len(head) * torch.outer(mean, mean)
    strengths, directions = torch.linalg.eigh(squares)
    kept = slice(-min(dimensions, len(strengths)), None)
    return (directions[:, kept] * strengths[kept].clamp_min(0).sqrt()).float()


def _unembedding(session: Session) -> Tensor:
    """(vocabulary, width) float32 on the CPU.

    Raises:
        InputError: if it is not there as numbers.
    """
    weight = getattr(session.family.ending(session.model)[1], "weight", None)
    if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
        raise InputError("Clusters need the unembedding's weights; load the model without quantization or offload.")
    return weight.detach().float().cpu()


@torch.no_grad()
def _placed(session: Session, vectors: Tensor, basis: Tensor, norm: bool) -> Tensor:
    """(n, dimensions): vectors (n, width) as unit points of the logit metric."""
    final, _ = session.family.ending(session.model)
    parts = []
    for part in vectors.split(CHUNK):
        if norm:
            with session.instrument.alone():
                part = final(beside(final, part.to(session.model.dtype)))
        parts.append(normalize(part.float().cpu() @ basis, dim=-1))
    return torch.cat(parts)
