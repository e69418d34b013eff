"""Evidence maps: the arithmetic by hand, attention against transformers' own, every family, and nothing left behind."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from engine_recipes import QUESTIONS, hooks, recipe
from PIL import Image
from scipy.optimize import minimize_scalar

import vlmsteer
from vlmsteer.errors import InputError, ModelError, RecipeError, SiteError
from vlmsteer.lens import overlay
from vlmsteer.lens.activation_maps import activation_maps, grids_of, rank_gaussian, scale, without
from vlmsteer.lens.answered import answered
from vlmsteer.lens.attention import attention, mean, rows
from vlmsteer.lens.evidence import METHODS, Evidence, evidence
from vlmsteer.lens.occlusion import hide, occlusion, windows

Pictures = list[Image.Image]
ANSWER = "red green"


def test_interference_is_the_weighted_mean_of_earlier_maps_at_its_best_scale() -> None:
    earlier = np.array([[2.0, 1.0, 0.0], [0.0, 0.0, 6.0]])
    # The first earlier word alone explains (4, 2, 0), at twice its map.
    np.testing.assert_allclose(without(np.array([4.0, 2.0, 0.0]), earlier, np.array([3.0, 0.0])), 0, atol=1e-6)
    image, weights = np.array([5.0, 1.0, 2.0]), np.array([1.0, 3.0])
    interference = (earlier[0] + 3 * earlier[1]) / 4  # (0.5, 0.25, 4.5)
    best = minimize_scalar(lambda s: ((image - s * interference) ** 2).sum()).x
    expected = np.maximum(image - best * interference, 0)
    np.testing.assert_allclose(without(image, earlier, weights), expected, atol=1e-6)
    assert expected[2] == 0 < expected[1]
    assert without(image, earlier, np.zeros(2)) is image  # words that say nothing explain nothing
    assert without(image, earlier[:0], weights[:0]) is image


def test_the_rank_filter_is_a_median_where_values_agree_and_a_mean_where_they_do_not() -> None:
    assert (rank_gaussian(np.full((4, 5), 0.3)) == pytest.approx(0.3)) and not rank_gaussian(np.zeros((2, 2))).any()
    grid = np.random.default_rng(0).random((4, 6))
    padded, own = np.pad(grid, 1, mode="reflect"), rank_gaussian(grid)
    for row in range(4):
        for column in range(6):
            window = np.sort(padded[row : row + 3, column : column + 3].ravel())
            kernel = np.exp(-(np.arange(-4, 5) ** 2) / (2 * (window.std() / window.mean()) ** 2))
            assert own[row, column] == pytest.approx((window * kernel).sum() / kernel.sum())
    spike = np.ones((5, 5))
    spike[2, 2] = 1.5  # an outlier of one cell goes
    assert rank_gaussian(spike).max() < 1.01
    assert rank_gaussian(np.array([[1.0, 2.0, 4.0]])).shape == (1, 3)


def test_maps_are_scaled_together_with_the_text() -> None:
    assert scale(np.array([1.0, 3.0]), np.array([5.0])).tolist() == [0, 0.5]
    assert scale(np.array([2.0, 2.0]), np.array([2.0])).tolist() == [0, 0]


def test_a_map_by_hand(llava: Any, pictures: Pictures) -> None:
    """The whole rule once more, on logits of the model called directly."""
    read = answered(llava, pictures[0], "red?", ANSWER)
    layout = llava.encoder.encode([pictures[0]], ["red?"], [ANSWER]).whole(llava.device)
    with torch.no_grad():
        logits = llava.model(**layout.inputs, position_ids=layout.positions).logits[0]
    ids = layout.inputs["input_ids"][0]
    asked = [i for i, inside in enumerate(read.asked) if inside]
    last = len(read.prompt) - 1
    image = (ids == llava.encoder.image_token).nonzero().flatten().tolist()
    words = [int(logits[asked[0]].argmax()), *ids[asked[1:]].tolist(), *ids[last + 1 :].tolist()]
    places = [*asked, *range(last, len(ids) - 1)]
    for row, word in enumerate(range(len(asked), len(words))):
        seen = logits[:, words[word]].clamp(min=0).numpy()
        earlier = [i for i in range(word) if words[i] != words[word]]
        their = np.stack([logits[image, words[i]].clamp(min=0).numpy() for i in earlier])
        alone = without(seen[image], their, seen[[places[i] for i in earlier]])
        expected = rank_gaussian(scale(alone, seen[places[:word]]).reshape(2, 2)).ravel()
        np.testing.assert_allclose(activation_maps(read)[row], expected, atol=1e-4)


def test_grids_are_found_in_boxes(llava_next: Any, sessions: dict[str, Any], pictures: Pictures) -> None:
    shapes = [grid.shape for grid in grids_of(llava_next.boxes(pictures[1]).numpy())]
    assert shapes == [(2, 2), (2, 4)]
    boxes = sessions["qwen2_5_vl"].boxes(pictures[1]).numpy()
    (grid,) = grids_of(boxes)
    assert grid.shape[1] > grid.shape[0] and grid.ravel().tolist() == list(range(len(boxes)))
    for name in ("openvla", "llava_onevision"):
        numbers = [int(i) for grid in grids_of(sessions[name].boxes(pictures[1]).numpy()) for i in grid.ravel()]
        assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("name", ["llava", "llava_next", "qwen2_5_vl", "openvla"])
@pytest.mark.parametrize("kind", ["eager", "sdpa"])
def test_attention_is_transformers_own(folders: Any, pictures: Pictures, name: str, kind: str) -> None:
    session = vlmsteer.load(folders[name])
    session.model.set_attn_implementation("eager")
    read = answered(session, pictures[1], QUESTIONS[0], ANSWER)
    layout = session.encoder.encode([pictures[1]], [QUESTIONS[0]], [ANSWER]).whole(session.device)
    inputs = {**layout.inputs, "output_attentions": True}
    with torch.no_grad():
        theirs = session.family.call(session.model, inputs, layout.positions, None, False).attentions
    session.model.set_attn_implementation(kind)
    own = rows(read)
    assert own.shape == (len(read.tokens), session.layers(), 4, read.columns)
    torch.testing.assert_close(own.sum(-1), torch.ones(own.shape[:-1]))
    expected = torch.stack([layer[0, :, read.predicting].transpose(0, 1) for layer in theirs], 1)
    torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)
    found = attention(read)
    assert torch.equal(found.weights, own[..., read.shown])
    torch.testing.assert_close(found.share, expected[..., read.shown].sum(-1).mean(-1), atol=1e-5, rtol=1e-4)
    assert torch.equal(mean(found.weights, [1]), found.weights[:, 1].mean(1))
    with pytest.raises(SiteError, match="layers 0 to 2"):
        mean(found.weights, [3])


def test_attention_that_shows_no_weights_is_refused(llava_folder: Any, pictures: Pictures) -> None:
    session = vlmsteer.load(llava_folder)
    session.model.config.text_config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="sdpa"):
        rows(answered(session, pictures[0], "red?", ANSWER))


@pytest.mark.parametrize("method", METHODS)
def test_every_family(everyone: Any, pictures: Pictures, method: str) -> None:
    """Each token has a value in each cell that shows something; what a family lacks is said in a sentence."""
    if everyone.family.silent:
        with pytest.raises(ModelError):
            evidence(everyone, pictures[1], "red?", method=method)
        return
    if everyone.family.boxes is None and method != "occlusion":
        with pytest.raises(SiteError, match="no cells of a grid"):
            evidence(everyone, pictures[1], "red?", method=method)
        return
    found = evidence(everyone, pictures[1], "red?", ANSWER, method=method)
    assert len(found.tokens) == len(found.places) == len(found.maps)
    assert "".join(found.tokens).replace(" ", "") == ANSWER.replace(" ", "")
    shown = ~np.isnan(found.boxes).any(1)
    assert found.maps.shape[1] == len(found.boxes) and np.isfinite(found.maps[:, shown]).all()
    assert len({tuple(values) for values in found.maps[:, shown]}) > 1
    if method == "attention":
        assert found.share is not None and found.share.shape == (len(found.tokens), everyone.layers())
        sums = np.nansum(found.maps, 1)
        np.testing.assert_allclose(sums, found.share.mean(1), rtol=1e-4)
    painted = found.paint(pictures[1], 0)
    assert painted.size == pictures[1].size and painted.tobytes() != pictures[1].tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_steered_evidence_is_for_the_steered_answer(llava: Any, pictures: Pictures, method: str) -> None:
    steer = recipe(llava, "text.0-2.block_out", positions="all", size=3.0)
    plain, steered = (evidence(llava, pictures[1], "red?", recipe=one, method=method) for one in (None, steer))
    assert plain.answer == llava.ask(pictures[1], "red?")
    assert steered.answer == llava.ask(pictures[1], "red?", steer) != plain.answer
    same = evidence(llava, pictures[1], "red?", plain.answer, steer, method)
    assert not np.allclose(same.maps, plain.maps, equal_nan=True)
    zero = evidence(llava, pictures[1], "red?", plain.answer, steer.scaled(0.0), method)
    np.testing.assert_array_equal(zero.maps, plain.maps)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_left_behind(llava: Any, pictures: Pictures, method: str) -> None:
    before, plain = hooks(llava.model), llava.logits(pictures, QUESTIONS)
    kinds = [part._attn_implementation for part in (llava.model.config.text_config, llava.model.config.vision_config)]
    other = recipe(llava, "text.1.block_out")
    other = type(other)(other.edits, model={**llava.fingerprint, "id": "another"})
    with pytest.raises(RecipeError):
        evidence(llava, pictures[0], "red?", ANSWER, other, method)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = llava.model.model.language_model.layers[1].register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        evidence(llava, pictures[0], "red?", ANSWER, recipe(llava, "text.0.block_out"), method)
    handle.remove()
    assert torch._C._len_torch_function_stack() == 0 and not llava.instrument.busy
    assert hooks(llava.model) == before
    config = llava.model.config
    assert kinds == [part._attn_implementation for part in (config.text_config, config.vision_config)]
    assert torch.equal(llava.logits(pictures, QUESTIONS), plain)


def test_threads_do_not_see_each_other(llava: Any, pictures: Pictures) -> None:
    """One reads attention while another asks something else of the same model."""
    read = answered(llava, pictures[1], "red?", ANSWER)
    alone, plain = rows(read), llava.logits(pictures, QUESTIONS)
    seen: list[bool] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set() or not seen:
            seen.append(torch.equal(llava.logits(pictures, QUESTIONS), plain))

    other = threading.Thread(target=ask)
    other.start()
    try:
        together = [rows(read) for _ in range(5)]
    finally:
        done.set()
        other.join()
    assert all(seen) and all(torch.equal(one, alone) for one in together)


def test_occlusion_is_a_difference_of_scores(llava: Any, pictures: Pictures) -> None:
    read = answered(llava, pictures[1], "red?", ANSWER)
    drops, places = occlusion(read, window=0.5, stride=0.5, fill="gray", batch_size=3)
    assert places.tolist() == [[0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]
    hidden = read.image.copy()
    hidden.paste((128, 128, 128), (30, 0, 60, 14))
    scores = llava.score([read.image, hidden], ["red?"] * 2, [ANSWER] * 2)
    torch.testing.assert_close(drops[:, 1], scores[0] - scores[1], atol=1e-4, rtol=1e-4)


def test_windows_reach_the_end_and_fill_what_they_cover() -> None:
    places = windows(0.4, 0.25)
    assert len(places) == 16 and float(places.max()) == pytest.approx(1)
    assert len(windows(1, 1)) == 1
    for window, stride in [(0, 0.1), (1.5, 0.5), (0.2, 0.3), (0.2, 0.001), (float("nan"), 0.1)]:
        with pytest.raises(InputError, match="share"):
            windows(window, stride)
    image = Image.new("RGB", (3, 2), (10, 20, 30))
    tiny = torch.tensor([0.0, 0.0, 0.1, 0.1])
    assert hide(image, tiny, "gray").getpixel((0, 0)) == (128, 128, 128)
    assert hide(image, tiny, "mean").tobytes() == hide(image, tiny, "blur").tobytes() == image.tobytes()
    assert image.getpixel((0, 0)) == (10, 20, 30)


def test_pixels_have_the_mean_of_the_cells_that_show_them() -> None:
    nan = np.nan
    boxes = np.array([[0, 0, 0.5, 1], [0, 0, 1, 0.5], [nan] * 4])
    pixels = overlay.raster(boxes, np.array([1.0, 3.0, 9.0]), (4, 4))
    assert pixels[0].tolist() == [2, 2, 3, 3] and pixels[3, :2].tolist() == [1, 1] and np.isnan(pixels[3, 2:]).all()
    assert overlay.peak(boxes, np.array([1.0, 3.0, 9.0])) == (0.75, 0.25)
    assert overlay.peak(boxes, np.array([-1.0, 0.0, 9.0])) is None
    image = Image.new("RGB", (4, 4), (100, 150, 200))
    painted = overlay.paint(image, boxes, np.array([1.0, 3.0, 9.0]))
    assert painted.getpixel((3, 3)) == (100, 150, 200) != painted.getpixel((3, 0))
    assert overlay.paint(image, boxes, np.array([1.0, 3.0, 9.0]), alpha=0).tobytes() == image.tobytes()
    faint = overlay.paint(image, boxes, np.array([1.0, 3.0, 9.0]), most=30.0)
    assert np.asarray(faint)[0, 3].sum() < np.asarray(painted)[0, 3].sum()
    for look in ({"colormap": "magna"}, {"alpha": 2}, {"most": 0}):
        with pytest.raises(InputError):
            overlay.paint(image, boxes, np.zeros(3), **look)  # pyright: ignore[reportArgumentType]


def test_words_are_found_in_the_answer() -> None:
    places = ((0, 1), (2, 7), (7, 13), (13, 14))
    found = Evidence("x", "A straw berry.", ("A", "straw", "berry", "."), places, np.zeros((1, 4)), np.eye(4)[:, :1])
    assert found.at("STRAW") == [1] and found.at("straw berry") == [1, 2] and found.at(3) == [3]
    assert found.at() == [0, 1, 2, 3] and found.map("a").tolist() == [1]
    for token in ("berr", "", 4, -1):
        with pytest.raises(InputError):
            found.at(token)


def test_what_cannot_be_looked_for(llava: Any, pictures: Pictures) -> None:
    with pytest.raises(InputError, match="did you mean 'attention'"):
        evidence(llava, pictures[0], "red?", method="atention")
    with pytest.raises(InputError, match="empty"):
        evidence(llava, pictures[0], "red?", " ")
    with pytest.raises(InputError):
        evidence(llava, "nowhere.png", "red?")
    with pytest.raises(InputError, match="filled"):
        evidence(llava, pictures[0], "red?", ANSWER, method="occlusion", fill="white")
