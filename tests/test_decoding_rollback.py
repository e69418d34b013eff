"""Going back: to the right place, on the real cache, with an end in sight, whatever the detector says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe

from vlmsteer import decoding
from vlmsteer.decoding import watch
from vlmsteer.decoding.rollback import Detector, Place, linear
from vlmsteer.errors import RecipeError
from vlmsteer.recipe import Recipe, Rule
from vlmsteer.sites import Site

FAMILIES = ["llava", "instructblip", "qwen2_5_vl"]
LIMIT = 10


def back(
    session: Any, bias: float = 0.0, weight: torch.Tensor | None = None, strength: float = 1.0, **more: Any
) -> Recipe:
    """A detector that says `bias` of every state, and so fires everywhere or nowhere, or weighs the states."""
    width = session.taps[Site("text", 1, "block_out")].width
    settings = {
        "layer": 1, "threshold": 0.0, "where": "any", "pick": "lowest", "scope": "sentence",
        "candidates": 3, "max_rollbacks": 4, **more,
    }  # fmt: skip
    tensors = linear(torch.zeros(width) if weight is None else weight, torch.tensor(bias))
    return Recipe((), rules=(Rule("rollback", settings, strength, tensors | {"starts": torch.tensor([5, 6])}),))


def written(session: Any, image: Any, question: str, one: Recipe, limit: int = LIMIT) -> list[list[int]]:
    return [tokens.tolist() for tokens in decoding.stream(session, image, question, one, limit)]


def distributions(session: Any, image: Any, question: str, tokens: list[int]) -> torch.Tensor:
    """(tokens, vocabulary) probabilities of each token's place, every one read afresh, without going back."""
    found = []
    with session.opened([image], [question]) as stream:
        for token in tokens:
            found.append(stream.logits[0].softmax(-1))
            stream.push(torch.tensor([token]))
    return torch.stack(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_detector_that_never_fires_gives_the_plain_answer(sessions: Any, pictures: Any, family: str) -> None:
    session = sessions[family]
    plain = session.ask_many(pictures, QUESTIONS, None, LIMIT)
    assert session.ask_many(pictures, QUESTIONS, back(session, 1.0), LIMIT) == plain
    assert session.ask_many(pictures, QUESTIONS, back(session, -1.0, strength=0.0), LIMIT) == plain
    assert session.ask_many(pictures, QUESTIONS, back(session, -1.0, max_rollbacks=0), LIMIT) == plain


@pytest.mark.parametrize("family", FAMILIES)
def test_after_going_back_the_cache_is_that_of_the_tokens_that_were_kept(
    sessions: Any, pictures: Any, family: str
) -> None:
    session, image, question = sessions[family], pictures[1], QUESTIONS[0]
    site = Site("text", 1, "block_out")
    with watch.opened(session, image, question, None, [], [site]) as watched:
        for token in (7, 8, 9, 10):
            watched.push(token)
        watched.back(3)
        watched.push(11)
        went_back, state = watched.logits.clone(), watched.state(site)
    with watch.opened(session, image, question, None, [], [site]) as watched:
        for token in (7, 11):
            watched.push(token)
        torch.testing.assert_close(went_back, watched.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, watched.state(site), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pick", ["lowest", "highest"])
def test_it_goes_back_to_the_least_or_most_sure_place_and_takes_the_next_candidate_there(
    llava: Any, pictures: Any, pick: str
) -> None:
    image, question = pictures[0], QUESTIONS[0]
    plain = written(llava, image, question, back(llava, 1.0))[-1]
    shares = distributions(llava, image, question, plain)
    sure = shares.amax(-1)
    with watch.opened(llava, image, question, None, [], [Site("text", 1, "block_out")]) as watched:
        states = []
        for token in plain:
            states.append(watched.state(Site("text", 1, "block_out")))
            watched.push(token)
    for place in range(1, len(plain)):  # fire at one place of the plain answer only
        centered = torch.stack(states) - torch.stack(states).mean(0)
        direction = torch.linalg.pinv(centered) @ torch.nn.functional.one_hot(torch.tensor(place), len(plain)).float()
        scores = torch.stack(states) @ direction
        others = torch.cat([scores[:place], scores[place + 1 :]])
        assert scores[place] > others.max()
        threshold = float((scores[place] + others.max()) / 2)
        one = back(llava, 0.0, -direction, threshold=-threshold, pick=pick, max_rollbacks=1)
        target = int((sure if pick == "lowest" else -sure)[: place + 1].argmin())
        steps = written(llava, image, question, one)
        second = int(shares[target].argsort(descending=True)[1])
        assert steps[place - 1] == plain[:place]
        assert steps[place] == [*plain[:target], second]
        rest = distributions(llava, image, question, steps[-1]).argmax(-1).tolist()
        assert steps[-1][target + 1 :] == rest[target + 1 :]  # greedy again after it, on what was really kept


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pick", ["lowest", "highest"])
def test_a_detector_that_always_fires_goes_back_so_often_and_then_answers(
    sessions: Any, pictures: Any, family: str, pick: str
) -> None:
    session = sessions[family]
    for times in (1, 3, 50):
        steps = written(session, pictures[0], QUESTIONS[0], back(session, -1.0, pick=pick, max_rollbacks=times))
        last = steps[-1]
        assert len(last) == LIMIT or last[-1] in session.ends.tolist()
        assert len(steps) <= LIMIT + times * LIMIT
    assert session.ask(pictures[0], QUESTIONS[0], back(session, -1.0), LIMIT) != session.ask(
        pictures[0], QUESTIONS[0], None, LIMIT
    )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scope", ["sentence", "clause"])
def test_a_batch_takes_back_what_each_of_its_answers_would_alone(
    sessions: Any, pictures: Any, family: str, scope: str
) -> None:
    session = sessions[family]
    images, asked = [*pictures, *pictures], [*QUESTIONS, *reversed(QUESTIONS)]
    width = session.taps[Site("text", 1, "block_out")].width
    weight = torch.randn(width, generator=torch.Generator().manual_seed(0))
    edits = recipe(session, "text.0.block_out", size=0.5)
    for one in (back(session, -1.0, scope=scope), edits + back(session, 0.0, weight, max_rollbacks=8, scope=scope)):
        alone = [
            session.ask_many([image], [question], one, 16)[0] for image, question in zip(images, asked, strict=True)
        ]
        assert session.ask_many(images, asked, one, 16) == alone
        steps = [written(session, image, question, one, 16)[-1] for image, question in zip(images, asked, strict=True)]
        assert [session.encoder.decode(torch.tensor(tokens)) for tokens in steps] == alone
        assert alone != session.ask_many(images, asked, None, 16)


def test_no_candidate_of_a_place_is_tried_twice() -> None:
    place = Place([4, 2, 9], 0.5, 0.0)
    tried = []
    for _ in range(3):
        tried.append(place.best())
        place.tried.add(tried[-1])
    assert tried == [4, 2, 9]


def test_a_place_without_another_candidate_is_not_gone_back_to(llava: Any) -> None:
    detector = Detector(back(llava).rules[0])
    places = [Place([4], 0.1, 0.0), Place([4, 5], 0.6, 0.0), Place([4, 5], 0.3, 0.0, {5})]
    assert detector.target(places, [4, 4, 4], 0) == 1
    assert detector.target(places, [4, 4, 4], 2) is None


def test_asked_at_starts_only_it_fires_before_these_tokens_only(llava: Any) -> None:
    place = Place([4, 5], 0.5, -1.0)
    anywhere, starts = (Detector(back(llava, where=where).rules[0]) for where in ("any", "starts"))
    assert anywhere.fires(place, 4)
    assert anywhere.fires(place, 5)
    assert not starts.fires(place, 4)
    assert starts.fires(place, 5)


def test_strength_multiplies_how_often_it_goes_back(llava: Any) -> None:
    assert Detector(back(llava, strength=0.5).rules[0]).rollbacks == 2
    assert Detector(back(llava, strength=3.0).rules[0]).rollbacks == 12


def test_it_goes_with_edits_and_a_contrast(llava: Any, pictures: Any) -> None:
    edits = recipe(llava, "text.1.block_out", size=0.5)
    contrast = Recipe((), rules=(Rule("contrast", {"against": "noise", "amount": 1.0, "plausible": 0.1}),))
    never, always = back(llava, 100.0), back(llava, -100.0)
    image, question = pictures[1], QUESTIONS[1]
    assert llava.ask(image, question, edits + never, LIMIT) == llava.ask(image, question, edits, LIMIT)
    both = llava.ask(image, question, edits + contrast, LIMIT)
    assert llava.ask(image, question, edits + contrast + never, LIMIT) == both
    assert llava.ask(image, question, edits + contrast + always, LIMIT) != both


def test_a_stream_closed_in_the_middle_leaves_nothing(llava: Any, pictures: Any) -> None:
    before, plain = hooks(llava.model), llava.logits(pictures, QUESTIONS)
    stream = llava.stream(pictures[0], QUESTIONS[0], back(llava, -1.0), LIMIT)
    next(stream)
    assert not llava.instrument.busy
    next(stream)
    stream.close()
    assert hooks(llava.model) == before
    assert torch.equal(llava.logits(pictures, QUESTIONS), plain)


def test_what_cannot_work_is_refused_in_a_sentence(llava: Any, pictures: Any) -> None:
    image, question = pictures[0], QUESTIONS[0]
    with pytest.raises(RecipeError, match="one of them"):
        llava.ask(image, question, back(llava) + back(llava))
    with pytest.raises(RecipeError, match="generation options"):
        llava.ask(image, question, back(llava), num_beams=2)
    with pytest.raises(RecipeError, match="text layers"):
        llava.ask(image, question, back(llava, layer=99))
    with pytest.raises(RecipeError, match="did you mean"):
        llava.ask(image, question, back(llava, pick="lowst"))


def test_the_rule_is_saved_with_its_detector(llava: Any, pictures: Any, tmp_path: Any) -> None:
    one = back(llava, -1.0)
    one.save(tmp_path / "one.safetensors")
    again = Recipe.load(tmp_path / "one.safetensors")
    assert llava.ask(pictures[0], QUESTIONS[0], again, LIMIT) == llava.ask(pictures[0], QUESTIONS[0], one, LIMIT)
