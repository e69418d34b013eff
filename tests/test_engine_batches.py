"""A row of a batch answers as it would alone, whatever its neighbors are, have, or lack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, recipe
from PIL import Image

from vlmsteer.errors import InputError, SiteError

Pictures = list[Image.Image]


def close(seen: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(seen, expected, atol=2e-5, rtol=1e-5)


def one_by_one(session: Any, images: list, questions: list[str], recipes: list) -> torch.Tensor:
    rows = zip(images, questions, recipes, strict=True)
    return torch.cat([session.logits([image], [question], steer) for image, question, steer in rows])


@pytest.mark.parametrize("positions", ["last", "image", "question", "generated", "all", (0, 3, -1)])
def test_mixed_lengths(positions: Any, session: Any, pictures: Pictures) -> None:
    steer = recipe(session, "text.*.block_out", positions=positions, size=1.5)
    alone = one_by_one(session, pictures, QUESTIONS, [steer] * 3)
    close(session.logits(pictures, QUESTIONS, steer), alone)
    answers = [session.ask(image, text, steer, 5) for image, text in zip(pictures, QUESTIONS, strict=True)]
    assert session.ask_many(pictures, QUESTIONS, steer, 5) == answers
    plain = one_by_one(session, pictures, QUESTIONS, [None] * 3)
    close(session.logits(pictures, QUESTIONS), plain)
    if positions == "generated":
        assert torch.equal(alone, plain)
        assert answers != session.ask_many(pictures, QUESTIONS, None, 5)
    else:
        assert not torch.allclose(alone, plain, atol=1e-2)


@pytest.mark.parametrize("positions", ["last", "question", "generated", "all", (1, -2)])
def test_rows_with_and_without_an_image(positions: Any, session: Any, pictures: Pictures) -> None:
    images = [None, pictures[1], None, pictures[2]]
    questions = [QUESTIONS[2], QUESTIONS[1], "red?", QUESTIONS[0]]
    steer = recipe(session, "text.*.block_out", positions=positions, size=1.5)
    alone = one_by_one(session, images, questions, [steer] * 4)
    close(session.logits(images, questions, steer), alone)
    answers = [session.ask(image, text, steer, 4) for image, text in zip(images, questions, strict=True)]
    assert session.ask_many(images, questions, steer, 4) == answers


@pytest.mark.parametrize(
    ("pattern", "positions"),
    [("text.*.block_out", one) for one in ("image", "question", "all")]
    + [("text.1.mlp_out", "all"), ("vision.*.block_out", "all"), ("projector.*.block_out", "all")],
)
def test_questions_share_an_image_that_a_recipe_changes(
    pattern: str, positions: str, session: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answers as it would alone; where the family's image comes first, it is read once for all its questions."""
    if not any(str(site).startswith(pattern.split(".")[0]) for site in session.sites):
        pytest.skip(f"{session.family.name} has no {pattern.split('.')[0]}")
    steer = recipe(session, pattern, positions=positions, size=1.5)
    images = [pictures[0], pictures[1], pictures[0], pictures[0], pictures[1]]
    questions = [*QUESTIONS, "And this?", "red?"]
    alone = [session.ask(image, text, steer, 6) for image, text in zip(images, questions, strict=True)]
    plain = session.ask_many(images, questions, None, 6)
    read: list[int] = []
    look = session.prefill

    def counted(layout: Any, *more: Any) -> Any:
        read.append(len(layout.positions))
        return look(layout, *more)

    monkeypatch.setattr(session, "prefill", counted)
    session.prefixes.clear()
    for times in (1, 2):  # the second time nothing of the images is read
        read.clear()
        with session.opened(images, questions, steer) as stream:
            close(stream.logits, one_by_one(session, images, questions, [steer] * 5))
        assert read == ([2, 5] if session.family.image_first and times == 1 else [5])
    assert session.ask_many(images, questions, steer, 6) == alone
    assert alone != plain


def test_a_repeated_image_is_processed_once(anyone: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every row gets what the plain processor gives for it."""
    encoder, images = anyone.encoder, [pictures[1], pictures[0], pictures[1], pictures[1]]
    questions = [*QUESTIONS, "And this?"]
    given: list[int] = []
    kind = type(encoder.processor.image_processor)
    look = kind.__call__

    def counted(self: Any, shown: Any, *more: Any, **options: Any) -> Any:
        given.append(len(shown))
        return look(self, shown, *more, **options)

    monkeypatch.setattr(kind, "__call__", counted)
    once = encoder.encode(images, questions)
    assert given == [2]
    monkeypatch.setattr(encoder, "_once", encoder.processor)
    plain = encoder.encode(images, questions)
    for ours, theirs in zip(once.rows, plain.rows, strict=True):
        assert torch.equal(ours.ids, theirs.ids) and torch.equal(ours.positions, theirs.positions)
    for ours, theirs in zip(once.images, plain.images, strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def different(session: Any) -> list[Any]:
    return [
        None,
        recipe(session, "text.0-1.block_out", strength=2.0, positions="image", seed=1),
        recipe(session, "text.1-2.block_out", "scale", strength=-0.5, positions="question", seed=2),
        both(
            recipe(session, "text.1.block_out", "replace", seed=3),
            recipe(session, "text.2.head", positions="all", seed=4),
        ),
        recipe(session, "text.1.neuron", "affine", strength=0.3, positions=(0, -1), seed=5),
    ]


def test_every_row_its_own_recipe(session: Any, pictures: Pictures) -> None:
    images, questions = [*pictures, *pictures[:2]], [*QUESTIONS, "a", "What is it, here?"]
    steers = different(session)
    alone = one_by_one(session, images, questions, steers)
    together = session.logits(images, questions, steers)
    close(together, alone)
    assert torch.equal(together[0], session.logits(images, questions)[0])
    answers = [session.ask(*row, 4) for row in zip(images, questions, steers, strict=True)]
    assert session.ask_many(images, questions, steers, 4) == answers
    assert session.ask_many(images, questions, steers, 4, batch_size=2) == answers


@pytest.mark.parametrize("site", ["vision.0.block_out", "vision.1.head", "projector.0.neuron", "projector.0.block_out"])
@pytest.mark.parametrize("positions", ["image", "all", (1,)])
def test_rows_differ_in_the_vision_tower(site: str, positions: Any, session: Any, pictures: Pictures) -> None:
    """Under NeXT the three images are cut into different numbers of tiles."""
    scale = recipe(session, site, "scale", positions=positions, seed=2)
    steers = [recipe(session, site, positions=positions, seed=1, size=3.0), None, scale]
    alone = one_by_one(session, pictures, QUESTIONS, steers)
    together = session.logits(pictures, QUESTIONS, steers)
    close(together, alone)
    plain = session.logits(pictures, QUESTIONS)
    assert torch.equal(together[1], plain[1])
    assert not torch.allclose(together[0], plain[0], atol=1e-3)


def test_vision_edits_beside_text_only_rows(session: Any, pictures: Pictures) -> None:
    images, questions = [None, pictures[1], None, pictures[0]], [*QUESTIONS, "red?"]
    steers = [None, recipe(session, "vision.0.block_out", positions="all", size=3.0), None, None]
    alone = one_by_one(session, images, questions, steers)
    close(session.logits(images, questions, steers), alone)


def test_one_image_in_several_rows_with_different_vision_edits(session: Any, pictures: Pictures) -> None:
    steers = [recipe(session, "vision.0.block_out", positions="all", seed=i, size=3.0) for i in range(3)]
    images = [pictures[1]] * 3
    alone = one_by_one(session, images, QUESTIONS, steers)
    close(session.logits(images, QUESTIONS, steers), alone)


def test_a_neighbor_without_the_recipe_may_lack_its_tokens(session: Any, pictures: Pictures) -> None:
    """Only the rows that an edit is meant for need tokens at its positions."""
    steers = [recipe(session, "text.1.block_out", positions="image", size=2.0), None]
    alone = one_by_one(session, [pictures[0], None], QUESTIONS[:2], steers)
    close(session.logits([pictures[0], None], QUESTIONS[:2], steers), alone)
    far = recipe(session, "text.1.block_out", positions=(20,), size=2.0)
    steers = [None, far]
    alone = one_by_one(session, [None, pictures[1]], ["red?", QUESTIONS[2]], steers)
    together = session.logits([None, pictures[1]], ["red?", QUESTIONS[2]], steers)
    close(together, alone)


def test_a_row_that_lacks_the_tokens_is_named(session: Any, pictures: Pictures) -> None:
    steer = recipe(session, "text.1.block_out", positions="image")
    with pytest.raises(SiteError, match="Row 1 of the batch has no token at positions 'image'"):
        session.logits([pictures[0], None], QUESTIONS[:2], steer)
    with pytest.raises(SiteError, match="Row 1"):
        session.logits([None, None], QUESTIONS[:2], [None, steer])
    with pytest.raises(SiteError, match=r"Row 0 of the batch has \d+ prompt tokens; there is no token 40"):
        session.ask(None, "red?", recipe(session, "text.1.block_out", positions=(40,)))
    with pytest.raises(SiteError, match="Row 0"), session.read("text.0.block_out", "image"):
        session.ask(None, "red?")


def test_counts_must_agree(llava: Any, pictures: Pictures) -> None:
    steer = recipe(llava, "text.1.block_out")
    for call in (
        lambda: llava.ask_many(pictures, QUESTIONS[:2]),
        lambda: llava.ask_many(pictures, QUESTIONS, [steer, None]),
        lambda: llava.logits(pictures, QUESTIONS[:2]),
        lambda: llava.logits([], []),
        lambda: llava.ask_grid(pictures, QUESTIONS[:2], [steer]),
        lambda: llava.ask_grid(pictures, QUESTIONS, []),
        lambda: llava.ask(pictures[0], QUESTIONS[0], max_new_tokens=0),
    ):
        with pytest.raises(InputError):
            call()
    assert llava.ask_many([], []) == []
    with pytest.raises(SiteError, match="3 rows, but the batch has 2"):
        llava.logits(pictures[:2], QUESTIONS[:2], [steer, None, None])
