"""CAA against raw transformers models, and its relatives: ActAdd, persona vectors and RepIt's isolation."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from raw_models import FAMILIES, assert_equal, block_outputs, changed, decoder, inputs
from torch import Tensor
from torch.nn.functional import normalize

from vlmsteer.errors import InputError, RecipeError, SiteError
from vlmsteer.examples import Example, split_groups
from vlmsteer.methods import actadd, caa, persona, repit
from vlmsteer.recipe import Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
ASKED = "What is here?"


def captions(pictures: Pictures) -> list[Example]:
    """Eight captions in eight groups."""
    words = ["red", "green", "blue", "yellow", "small", "large"]
    made = []
    for i in range(8):
        one, two, three = words[i % 6], words[(i + 1) % 6], words[(i + 3) % 6]
        right, wrong = f"{one}, {two} and {three}.", f"{one} and {two}, {three} strawberry."
        made.append(Example(pictures[i % 3], ASKED, right, wrong, group=str(i)))
    return made


def presence(pictures: Pictures) -> list[Example]:
    """A question answered by "green" and one by "red" a picture: words that these tokenizers know, for yes and no."""
    pairs = [("green", "red"), ("red", "green")]
    return [
        Example(picture, f"{word} strawberry?", right, wrong, str(i), "presence")
        for i, picture in enumerate(pictures)
        for word, (right, wrong) in zip(("small", "large"), pairs, strict=True)
    ]


def layers_of(learned: Recipe, edit: int = 0) -> Mapping[int, Tensor]:
    """The learned vectors, by layer."""
    vectors = learned.edits[edit].vectors
    assert isinstance(vectors, Vectors)
    return vectors.layers


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["presence", "captions"])
def test_the_papers_rule(kind: str, family: str, sessions: Any, pictures: Pictures) -> None:
    session, layer = sessions[family], 1
    chosen = presence(pictures) if kind == "presence" else captions(pictures)
    learned = caa.learn(session, chosen)

    differences = []
    for one in chosen:
        read = []
        for answer in (one.right, one.wrong):
            states, prompt = block_outputs(session, one.image, one.question, answer)
            read.append(states[layer, prompt if kind == "presence" else -1])
        differences.append(read[0] - read[1])
    vector = torch.stack(differences).mean(0)
    answer = "green and blue."
    given, prompt = inputs(session, pictures[2], ASKED, answer)

    def from_the_end_of_the_question(states: Tensor) -> Tensor:
        behind = torch.arange(states.shape[1]) >= prompt - 1
        return states + behind[:, None] * vector

    with changed({decoder(session.model)[layer]: from_the_end_of_the_question}):
        logits = session.model(**given).logits[0]
    said = given["input_ids"][0, prompt:]
    expected = logits[prompt - 1 : -1].log_softmax(-1).gather(1, said[:, None])[:, 0]

    assert list(layers_of(learned)) == [layer]
    assert_equal(layers_of(learned)[layer], vector)
    assert_equal(session.logits([pictures[2]], [ASKED], learned)[0], logits[prompt - 1])
    assert_equal(session.score([pictures[2]], [ASKED], [answer], learned)[0], expected)
    assert not torch.allclose(session.score([pictures[2]], [ASKED], [answer])[0], expected, atol=1e-2)


def test_strength_zero_changes_no_bit_and_strength_is_linear(llava: Any, pictures: Pictures) -> None:
    learned = caa.learn(llava, presence(pictures), layers=[2])
    asked = (pictures[:1], ["red?"])
    assert torch.equal(llava.logits(*asked, learned.scaled(0.0)), llava.logits(*asked))
    read = []
    for strength in (0.0, 1.0, 3.0):
        with llava.read("text.2.block_out") as states:
            llava.logits(*asked, learned.scaled(strength))
        read.append(states["text.2.block_out"][0])
    torch.testing.assert_close(read[1] - read[0], layers_of(learned)[2], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(read[2] - read[0], 3 * (read[1] - read[0]), atol=1e-4, rtol=1e-4)


def test_stability_compares_groups_not_answers(llava: Any, pictures: Pictures) -> None:
    """One image's two questions have opposite answers: halves by row would point to opposite sides."""
    learned = caa.learn(llava, presence(pictures), layers=[0, 2])
    assert learned.about["right_answers"] == {"green": 3, "red": 3}
    assert set(learned.about["stability"]) <= {"0", "2"}
    assert all(-1 <= value <= 1 for value in learned.about["stability"].values())
    halves = caa.Mean(), caa.Mean()
    rows = torch.tensor([[1.0, 0.0], [-1.0, 0.1]]).repeat(3, 1)
    caa.into_halves(halves, rows, presence(pictures))
    assert halves[0].weight + halves[1].weight == 6
    assert halves[0].weight % 2 == 0


def test_persona_takes_means_over_answers_and_the_layer_that_tells_them_apart(llava: Any, pictures: Pictures) -> None:
    chosen = captions(pictures)
    learned = persona.learn(llava, chosen, held_out=0.4)
    held, rest = split_groups(chosen, 0.4)

    def mean_states(one: Example, answer: str) -> Tensor:
        states, prompt = block_outputs(llava, one.image, one.question, answer)
        return states[:, prompt:].mean(1)

    differences = [mean_states(one, one.right) - mean_states(one, one.wrong) for one in rest]
    vectors = torch.stack(differences).mean(0).numpy()
    along = np.array(
        [
            [(mean_states(one, answer).numpy() * vectors).sum(-1) for answer in (one.right, one.wrong)]
            for one in held
        ]
    ) / np.linalg.norm(vectors, axis=-1)  # fmt: skip
    apart = (along[:, 0].mean(0) - along[:, 1].mean(0)) / np.sqrt((along[:, 0].var(0) + along[:, 1].var(0)) / 2)

    assert learned.about["layer"] == int(apart.argmax())
    np.testing.assert_allclose(list(learned.about["separation"].values()), apart, atol=2e-4)
    assert_equal(layers_of(learned)[int(apart.argmax())], torch.from_numpy(vectors[apart.argmax()]))
    assert learned.edits[0].positions == "last"


def test_the_monitor_is_the_auroc_of_the_prompt_for_the_answer_that_follows(llava: Any, pictures: Pictures) -> None:
    from sklearn.metrics import roc_auc_score

    chosen = [replace(one, question=f"{one.right.split(',')[0]} here?") for one in captions(pictures)]
    learned = persona.learn(llava, chosen, layers=[1], held_out=0.8)
    held, _ = split_groups(chosen, 0.8)
    vector = layers_of(learned)[1]
    truthful, along = [], []
    for one in held:
        means = []
        for answer in (one.right, one.wrong):
            given, prompt = inputs(llava, one.image, one.question, answer)
            with torch.no_grad():
                logits = llava.model(**given).logits[0, prompt - 1 : -1].log_softmax(-1)
            means.append(float(logits.gather(1, given["input_ids"][0, prompt:, None]).mean()))
        truthful.append(means[0] > means[1])
        states, prompt = block_outputs(llava, one.image, one.question, one.right)
        along.append(float(states[1, prompt - 1] @ vector))
    expected = roc_auc_score(truthful, along) if len(set(truthful)) == 2 else None
    assert learned.about["monitor"] == (None if expected is None else pytest.approx(expected, abs=1e-4))


@torch.no_grad()
def test_actadd_adds_the_texts_difference_at_the_front(llava: Any, pictures: Pictures) -> None:
    model, tokenizer = llava.model, llava.tokenizer
    learned = actadd.learn(llava, plus="green strawberry", minus="red", layers=[1], coefficient=2.0)
    texts = [tokenizer(text).input_ids for text in ("green strawberry", "red")]
    space = tokenizer(" ", add_special_tokens=False).input_ids[-1]
    texts[1] += [space] * (len(texts[0]) - len(texts[1]))
    read = []
    for ids in texts:
        tokens = torch.tensor([ids])
        streams = model.model.language_model(input_ids=tokens, output_hidden_states=True).hidden_states
        read.append(streams[1][0])
    difference = read[0] - read[1]

    given, _ = inputs(llava, pictures[0], ASKED)

    def front(states: Tensor) -> Tensor:
        states = states.clone()
        states[:, : len(difference)] += 2.0 * difference
        return states

    with changed({decoder(model)[0]: front}):  # what leaves block 0 enters block 1
        expected = model(**given).logits[0, -1]
    assert_equal(layers_of(learned)[1], difference)
    assert_equal(llava.logits([pictures[0]], [ASKED], learned)[0], expected)
    assert learned.edits[0].phase == "prefill"


def test_actadd_at_the_question(llava: Any, sessions: Any, pictures: Pictures) -> None:
    learned = actadd.learn(llava, plus="green", minus="red", where="question")
    row = llava.encoder.encode([pictures[0]], [ASKED]).rows[0]
    assert learned.edits[0].positions[0] == int(row.question.nonzero()[0])
    with pytest.raises(InputError, match="larger image"):
        actadd.learn(sessions["qwen2_5_vl"], where="question")
    with pytest.raises(InputError, match="same text"):
        actadd.learn(llava, plus="red", minus="red")
    with pytest.raises(RecipeError, match="question"):
        actadd.learn(llava, where="back")


def test_actadd_runs_on_every_family(anyone: Any, pictures: Pictures) -> None:
    learned = actadd.learn(anyone, plus="green", minus="red", layers=[0])
    asked = (pictures[:1], ["What color is the strawberry here?"])
    assert not torch.equal(anyone.logits(*asked, learned), anyone.logits(*asked))


def vectors(*rows: Tensor) -> list[Vectors]:
    return [Vectors("text", "block_out", {0: row}) for row in rows]


def test_isolation_against_the_written_out_algebra() -> None:
    generator, ridge = torch.Generator().manual_seed(3), 1e-2
    target, *others = vectors(*torch.randn(4, 12, generator=generator))
    rows = np.stack([other.layers[0].double().numpy() for other in others])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    metric = rows.T @ rows / len(rows) + ridge * np.eye(12)
    root = np.linalg.cholesky(metric)
    white = np.linalg.inv(root) @ target.layers[0].double().numpy()
    basis, _ = np.linalg.qr(np.linalg.inv(root) @ rows.T)
    for rho in (0.0, 0.4, 1.0):
        cleaned = repit.isolate(target, others, ridge, rho).layers[0]
        expected = root @ (white - (1 - np.sqrt(1 - rho)) * basis @ basis.T @ white)
        np.testing.assert_allclose(cleaned.numpy(), expected, atol=1e-5)
        inside = basis.T @ np.linalg.inv(root) @ cleaned.double().numpy()
        assert np.sum(inside**2) == pytest.approx((1 - rho) * np.sum((basis.T @ white) ** 2), abs=1e-4)


def test_isolation_leaves_what_is_apart_and_takes_what_is_shared() -> None:
    generic, own = torch.zeros(6), torch.zeros(6)
    generic[0], own[1] = 2.0, 3.0
    other, alone, mixed = vectors(generic, own, own + generic)
    torch.testing.assert_close(repit.isolate(alone, [other]).layers[0], own)
    torch.testing.assert_close(repit.isolate(mixed, [other]).layers[0], own, atol=1e-5, rtol=0)
    torch.testing.assert_close(repit.isolate(mixed, [other, other * 2.0]).layers[0], own, atol=1e-5, rtol=0)
    assert torch.equal(repit.isolate(mixed, [other], rho=0.0).layers[0], own + generic)
    assert torch.equal(repit.isolate(mixed, [other * 0.0]).layers[0], own + generic)
    with pytest.raises(InputError, match="rho"):
        repit.isolate(mixed, [other], rho=1.5)


def test_repit_takes_generic_directions_out_of_the_mean_difference(llava: Any, pictures: Pictures) -> None:
    chosen = captions(pictures)
    learned = repit.learn(llava, chosen, layers=[1], rho=1.0)
    _, rest = split_groups(chosen, 0.3)
    raw = layers_of(caa.learn(llava, rest, layers=[1]))[1]
    rng = random.Random(0)
    shorter = caa.learn(llava, [replace(one, wrong=repit.shorter(one, rng)) for one in rest], layers=[1])
    generic = normalize(layers_of(shorter)[1], dim=0)
    found = layers_of(learned)[1]
    assert abs(float(found @ generic)) < 0.05 * abs(float(raw @ generic))
    same = layers_of(repit.learn(llava, chosen, layers=[1], rho=0.0))[1]
    assert_equal(same, raw)


def test_repit_chooses_rho_on_held_out_groups(llava: Any, pictures: Pictures) -> None:
    about = repit.learn(llava, captions(pictures)).about["chosen"]
    told = {kind: np.array(values) for kind, values in about["auroc"].items()}
    gain = told["target"] - np.maximum(abs(told["length"] - 0.5), abs(told["order"] - 0.5))
    assert gain[about["grid"].index(about["rho"])] == pytest.approx(gain.max(), abs=2e-4)


def test_generic_variants_of_a_caption() -> None:
    one = Example(None, ASKED, "There is a red cup, a blue book and a lamp.", "", "0")
    rng = random.Random(1)
    assert repit.shorter(one, rng) == "There is a red cup."
    other = repit.reordered(one, rng)
    assert other != one.right
    assert other.endswith(".")
    assert sorted(other.replace(",", "").strip(".").split()) == sorted(
        one.right.replace(",", "").replace(" and", "").strip(".").split()
    )


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    with pytest.raises(InputError, match="2 or more"):
        caa.learn(llava, [])
    with pytest.raises(SiteError, match="0 to 2"):
        caa.learn(llava, presence(pictures), layers=[7])
    with pytest.raises(RecipeError, match="answer token"):
        caa.learn(llava, presence(pictures), token="fist")
    with pytest.raises(InputError, match="groups"):
        persona.learn(llava, [replace(one, group="same") for one in captions(pictures)])
    with pytest.raises(InputError, match="rho"):
        repit.learn(llava, captions(pictures), rho=2.0)
