"""TruthPrInt and ComnHallu: what is a word, what is read before it, and a detector that finds what is planted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_recipes import hooks
from PIL import Image

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import comnhallu, fasb, truthprint
from vlmsteer.perceptron import Perceptron
from vlmsteer.recipe import Recipe
from vlmsteer.sites import Site

COLORS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    """Plain pictures in one color each, and captions that name it beside one more color, right and wrong in turn."""
    made = []
    for i in range(24):
        color, other = COLORS[i % 4], COLORS[(i + 1 + i // 4 % 3) % 4]
        image = Image.new("RGB", (28, 28), color)
        made.append(Example(image, "What color is it?", f"here {color}", f"here {color} and {other}", f"picture {i}"))
    return made


def test_names_are_the_words_that_wrong_captions_add(examples: list[Example]) -> None:
    assert truthprint.names(examples) == set(COLORS)
    more = [Example(None, "?", "a cat on a mat", "an old dog and the cat on a mat", "1")]
    assert truthprint.names(more) == {"old", "dog"}


def test_a_phrase_is_there_if_its_last_word_is() -> None:
    named = {"orange", "traffic", "cone", "hat", "black"}
    text = "An orange traffic cone, a black hat and a cone."
    found = [(text[place:].split()[0], there) for place, there in truthprint.labeled("a black cone", text, named)]
    assert found == [
        ("orange", True),
        ("traffic", True),
        ("cone,", True),
        ("black", False),
        ("hat", False),
        ("cone.", True),
    ]
    assert list(truthprint.labeled("a cone", "nothing here", named)) == []


@pytest.mark.parametrize("family", ["llava", "instructblip", "qwen2_5_vl"])
def test_the_states_are_those_that_predict_each_words_first_token(
    sessions: Any, examples: list[Example], family: str
) -> None:
    session, few = sessions[family], examples[:4]
    words = truthprint.read_words(session, few, [1, 2], "given", batch_size=3)
    assert len(words.true) == 3 * len(few)
    assert int((~words.true).sum()) == len(few)
    expected = []
    for one in few:
        for answer in (one.right, one.wrong):
            tokens, offsets = session.encoder.answer_tokens(answer)
            for place, _ in truthprint.labeled(one.right, answer, set(COLORS)):
                first = next(k for k, (_, stop) in enumerate(offsets) if stop > place)
                with (
                    session.read("text.2.block_out", "last", "both") as states,
                    session.opened([one.image], [one.question]) as stream,
                ):
                    for token in tokens[:first]:
                        stream.push(token[None])
                expected.append((one.group, states.rows("text.2.block_out")[0][-1]))
                assert int(tokens[first]) in words.starts.tolist()
    ours = sorted(zip(words.groups, words.states[:, 1], strict=True), key=lambda pair: (pair[0], float(pair[1].sum())))
    theirs = sorted(expected, key=lambda pair: (pair[0], float(pair[1].sum())))
    for (group, state), (other, by_hand) in zip(ours, theirs, strict=True):
        assert group == other
        torch.testing.assert_close(state, by_hand, rtol=1e-3, atol=1e-3)


def test_no_more_words_are_kept_than_the_limit(llava: Any, examples: list[Example]) -> None:
    assert len(truthprint.read_words(llava, examples, [1], "given", limit=7).states) == 7


@pytest.mark.parametrize("probe", ["logistic", "mass_mean", "mlp"])
@pytest.mark.parametrize("components", [0, 8])
def test_a_planted_direction_is_found_on_groups_that_were_not_seen(probe: str, components: int) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.arange(400) % 2 == 0
    states = torch.randn(400, 20, generator=generator) + 5.0
    states[:, 3] += torch.where(true, 3.0, -3.0)
    groups = [str(i // 4) for i in range(400)]
    found = truthprint.fitted(states[:300], true[:300], groups[:300], probe, components)
    assert found.weights[0].shape[0] == 20
    scores = found.score(states[300:])
    assert float(((scores > 0) == true[300:]).float().mean()) > 0.95


def test_the_subspace_is_folded_into_the_detector() -> None:
    generator = torch.Generator().manual_seed(1)
    states, true = torch.randn(60, 6, generator=generator) + 2.0, torch.arange(60) % 2 == 0
    states[:, 0] += torch.where(true, 4.0, -4.0)
    found = truthprint.fitted(states, true, [str(i) for i in range(60)], "mass_mean", 1)
    mean = states.mean(0)
    first = torch.linalg.svd(states - mean, full_matrices=False).Vh[0]
    along = (states - mean) @ first
    expected = along * (along[true].mean() - along[~true].mean())
    expected -= (along[true].mean() ** 2 - along[~true].mean() ** 2) / 2
    torch.testing.assert_close(found.score(states), expected, rtol=1e-3, atol=1e-3)


def test_learning_gives_a_rule_that_runs_and_says_how_good_its_detector_is(
    llava: Any, examples: list[Example], tmp_path: Any
) -> None:
    before = hooks(llava.model)
    learned = truthprint.learn(llava, examples, probe="logistic", source="given", false_alarms=0.2, batch_size=8)
    assert hooks(llava.model) == before
    about = learned.about
    assert about["reconstruction"]
    assert 0 <= about["tpr_at_1_fpr"] <= 1
    assert 0 <= about["auroc"] <= 1
    assert about["words"]["true"] + about["words"]["untrue"] == 3 * len(examples)
    (rule,) = learned.rules
    assert rule.settings["layer"] == about["layer"]
    learned.save(tmp_path / "one.safetensors")
    again = Recipe.load(tmp_path / "one.safetensors")
    assert again.hash == learned.hash
    assert Perceptron.of(again.rules[0].tensors).weights[0].shape == (48, 1)
    image, question = examples[0].image, examples[0].question
    assert llava.ask(image, question, again, 8) == llava.ask(image, question, learned, 8)


def test_what_cannot_be_learned_is_refused(llava: Any, examples: list[Example]) -> None:
    with pytest.raises(InputError, match="4 or more"):
        truthprint.learn(llava, examples[:2])
    with pytest.raises(RecipeError, match="did you mean 'mlp'"):
        truthprint.learn(llava, examples, probe="mpl")
    with pytest.raises(InputError, match="present and absent"):
        truthprint.learn(llava, [Example(None, "red?", "red", "red red", str(i)) for i in range(4)], source="given")


def test_transfer_to_the_same_model_is_what_the_model_does_at_home(llava: Any, examples: list[Example]) -> None:
    report = comnhallu.transfer(llava, llava, examples, components=3)
    assert report["unaligned"] == report["in_domain"] == report["source"]
    assert report["cosines"] == pytest.approx([1.0] * 3, abs=1e-4)
    assert report["aligned"] is not None
    assert report["paired"] is not None
    for name in ("in_domain", "unaligned", "aligned", "paired"):
        low, high = report["intervals"][name]
        assert 0 <= low <= report[name] <= high <= 1
    low, high = report["intervals"]["aligned gain"]
    assert low <= report["aligned"] - report["unaligned"] <= high


def test_transfer_between_families_reports_only_what_can_be_had(sessions: Any, examples: list[Example]) -> None:
    report = comnhallu.transfer(sessions["llava"], sessions["qwen2_5_vl"], examples, components=3)
    assert 0 <= report["in_domain"] <= 1
    assert 0 <= report["paired"] <= 1
    widths = {sessions[name].taps[Site("text", 1, "block_out")].width for name in ("llava", "qwen2_5_vl")}
    assert (report["unaligned"] is None) == (report["aligned"] is None) == (len(widths) > 1)


def test_fasb_learns_probes_and_a_push_in_standard_deviations(llava: Any, examples: list[Example]) -> None:
    learned = fasb.learn(llava, examples, heads=3, back=2)
    (rule,) = learned.rules
    assert rule.tensors["push"].shape == rule.tensors["weight"].shape == (3, 12)
    accuracies = [head["accuracy"] for head in learned.about["heads"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert llava.ask(examples[0].image, examples[0].question, learned, 6)
    with pytest.raises(InputError, match="heads"):
        fasb.learn(llava, examples, heads=1000)
