"""VTI: the paper's rule over raw transformers models, closed forms of its edit, and what its masks hide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from raw_models import FAMILIES, assert_equal, block_outputs, changed, decoder, eyes, inputs, look, outputs
from torch import Tensor
from torch.nn.functional import normalize

from vlmsteer.errors import InputError, RecipeError
from vlmsteer.examples import Example
from vlmsteer.methods import vti
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
ASKED = "What is here?"
CAPTIONS = [
    ("red strawberry.", "red strawberry and a large green one."),
    ("green and small.", "yellow, small and blue."),
    ("large and blue.", "large, red and yellow."),
]
TRIALS, RATIO, SEED = 3, 0.75, 5
TEXT, VISION = 0.8, 0.9


def examples(pictures: Pictures) -> list[Example]:
    return [
        Example(picture, ASKED, right, wrong, group=str(i))
        for i, (picture, (right, wrong)) in enumerate(zip(pictures, CAPTIONS, strict=True))
    ]


def layers_of(learned: Recipe, edit: int = 0) -> Mapping[int, Tensor]:
    """The learned vectors, by layer."""
    vectors = learned.edits[edit].vectors
    assert isinstance(vectors, Vectors)
    return vectors.layers


def hidden(pixels: Tensor, generator: torch.Generator, side: int) -> Tensor:
    """The paper's mask, patch by patch: `pixels` is (1, 3, height, width), or Qwen's (patches, 3 * 2 * side * side)."""
    masked = pixels.clone()
    if pixels.dim() == 2:
        values = pixels.view(len(pixels), 3, -1)
        means = [float(values[:, channel].double().mean()) for channel in range(3)]
        for patch in torch.randperm(len(pixels), generator=generator)[: int(RATIO * len(pixels))].tolist():
            for channel in range(3):
                masked.view(len(pixels), 3, -1)[patch, channel] = means[channel]
        return masked
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    for patch in torch.randperm(rows * columns, generator=generator)[: int(RATIO * rows * columns)].tolist():
        top, left = patch // columns * side, patch % columns * side
        for channel in range(3):
            masked[0, channel, top : top + side, left : left + side] = pixels[0, channel].mean()
    return masked


def visual_rule(session: Any, pictures: Pictures) -> Tensor:
    """(layers, tokens, width) masked minus clean, or (layers, 1, width) where the number of patches varies."""
    model, generator, differences = session.model, torch.Generator().manual_seed(SEED), []
    for picture in pictures:
        given, _ = inputs(session, picture, ASKED)
        pixels, seen = given["pixel_values"], []
        copies = [hidden(pixels, generator, model.config.vision_config.patch_size) for _ in range(TRIALS)]
        for version in [pixels, *copies]:
            with torch.no_grad(), outputs(eyes(model)) as kept:
                look(model, given, version)
            seen.append(torch.stack([states.view(-1, states.shape[-1]) for states in kept]))
        difference = torch.stack(seen[1:]).mean(0) - seen[0]
        differences.append(difference.mean(1, keepdim=True) if pixels.dim() == 2 else difference)
    return torch.stack(differences).mean(0)


def text_rule(session: Any, chosen: list[Example]) -> Tensor:
    """(examples, layers, width) differences of the captions' last tokens."""
    found = []
    for one in chosen:
        right, wrong = (block_outputs(session, one.image, one.question, said)[0] for said in (one.right, one.wrong))
        found.append(right[:, -1] - wrong[:, -1])
    return torch.stack(found)


def turned(vector: Tensor, strength: float) -> Any:
    """x -> |x| normalize(x / |x| + strength v / |v|)."""
    return lambda x: (
        normalize(normalize(x, dim=-1) + strength * normalize(vector, dim=-1), dim=-1) * x.norm(dim=-1, keepdim=True)
    )


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_papers_rule(family: str, sessions: Any, pictures: Pictures) -> None:
    session, chosen = sessions[family], examples(pictures)
    model = session.model
    learned = vti.learn(session, chosen, text=TEXT, image=VISION, trials=TRIALS, mask_ratio=RATIO, seed=SEED)

    visual = visual_rule(session, pictures)
    see: dict[Any, Any] = {block.mlp: turned(visual[layer], 0.1 * VISION) for layer, block in enumerate(eyes(model))}
    with changed(see):
        textual = text_rule(session, chosen).mean(0)
    say: dict[Any, Any] = {block.mlp: turned(textual[layer], 0.1 * TEXT) for layer, block in enumerate(decoder(model))}
    given, _ = inputs(session, pictures[1], "Which color?")
    plain = model(**given).logits[0, -1]
    with changed(see | say):
        expected = model(**given).logits[0, -1]

    for number, raw in enumerate((visual, textual)):
        vectors = layers_of(learned, number)
        assert len(vectors) == len(raw)
        for layer, vector in vectors.items():
            assert_equal(vector, raw[layer].squeeze(0))
    assert_equal(session.logits([pictures[1]], ["Which color?"], learned)[0], expected)
    assert not torch.allclose(expected, plain, atol=1e-2)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["pc1", "mean+pc1"])
def test_principal_directions_are_the_papers(mode: str, llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    learned = vti.learn(llava, chosen, image=0.0, mode=mode, authors_sign=True)

    differences = text_rule(llava, chosen)
    flat = differences.flatten(1).double().numpy()
    left, _, right = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    first = right[0] * np.sign(left[np.abs(left[:, 0]).argmax(), 0])
    expected = first + (flat.mean(0) if "mean" in mode else 0)
    found = torch.cat([layers_of(learned)[layer] for layer in range(llava.layers())])
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_principal_direction_is_found_in_every_group_on_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    along = normalize(torch.randn(4, 12, generator=generator), dim=-1)  # (groups, layers * width)
    offset = 3.0 * along
    size = torch.randn(40, 4, 1, generator=generator)
    rows = (offset + size * along + 0.01 * torch.randn(40, 4, 12, generator=generator)).view(40, 4, 3, 4)

    def stream() -> Any:
        return iter(rows.split(7))

    found, measured = vti.principal(stream, "pc1")
    torch.testing.assert_close(found.flatten(1), along, atol=0.02, rtol=0)
    torch.testing.assert_close(vti.principal(stream, "mean")[0], rows.mean(0))
    assert float(str(measured["stability"])) > 0.9
    assert abs(float(found.flatten(1).norm(dim=1).mean()) - 1) < 1e-5


def test_a_mask_hides_its_share_of_patches_and_nothing_else(anyone: Any, pictures: Pictures) -> None:
    pixels = anyone.encoder.encode([pictures[1]], ["?"]).images[0]["pixel_values"]
    masked = vti.hide(anyone, pixels, 0.5, torch.Generator().manual_seed(1))
    assert masked.shape == pixels.shape
    if pixels.dim() == 2:
        touched = (masked != pixels).any(1)
        assert int(touched.sum()) == len(pixels) // 2
        return
    side = anyone.model.config.vision_config.patch_size
    for before, after in zip(pixels.flatten(0, -4), masked.flatten(0, -4), strict=True):
        cells = (before != after).unfold(1, side, side).unfold(2, side, side)  # (channels, rows, columns, side, side)
        touched = cells.flatten(3).any(3).any(0)
        assert int(touched.sum()) == touched.numel() // 2
        hidden_values = after.unfold(1, side, side).unfold(2, side, side)[:, touched].flatten(1)
        torch.testing.assert_close(hidden_values, before.mean((1, 2))[:, None].expand_as(hidden_values))
    torch.testing.assert_close(vti.hide(anyone, pixels, 0.0, torch.Generator()), pixels)


@pytest.fixture(scope="module")
def learned(sessions: Any, pictures: Pictures) -> Recipe:
    return vti.learn(sessions["llava"], examples(pictures), trials=2, mask_ratio=0.5)


@torch.no_grad()
@pytest.mark.parametrize(("tower", "layer"), [("vision", 0), ("vision", 1), ("text", 0), ("text", 2)])
def test_lengths_are_kept_and_an_infinite_strength_is_parallel(
    tower: str, layer: int, learned: Recipe, llava: Any, pictures: Pictures
) -> None:
    (number,) = (i for i, edit in enumerate(learned.edits) if edit.vectors.tower == tower)
    edit, vector = learned.edits[number], layers_of(learned, number)[layer]
    alone = Recipe((Edit(Vectors(tower, "mlp_out", {layer: vector}), edit.operation, edit.strength, "all"),))
    site, read = f"{tower}.{layer}.mlp_out", []
    for strength in (0.0, 1.0, 1e7):
        with llava.read(site, positions="all") as states:
            llava.logits(pictures[:1], ["red?"], alone.scaled(strength))
        read.append(states.rows(site)[0])
    plain, steered, far = read
    torch.testing.assert_close(steered.norm(dim=-1), plain.norm(dim=-1), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(steered, plain, atol=1e-3)
    torch.testing.assert_close(torch.cosine_similarity(far, vector.expand_as(far), dim=-1), torch.ones(len(far)))


def test_strength_zero_changes_no_bit(learned: Recipe, llava: Any, pictures: Pictures) -> None:
    asked = (pictures, ["red?"] * 3)
    assert torch.equal(llava.logits(*asked, learned.scaled(0.0)), llava.logits(*asked))


def test_the_towers_can_be_left_out(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    only_text = vti.learn(llava, chosen, image=0.0, layers=[1])
    assert [(edit.vectors.tower, list(edit.vectors.layers)) for edit in only_text.edits] == [("text", [1])]
    only_image = vti.learn(llava, chosen, text=0.0, trials=1, per_token=False)
    assert [edit.vectors.tower for edit in only_image.edits] == ["vision"]
    assert all(vector.dim() == 1 for vector in layers_of(only_image).values())
    before = vti.learn(llava, chosen, trials=2, text_after_visual=False)
    assert torch.equal(layers_of(before, 1)[1], layers_of(only_text)[1])


def test_it_runs_on_every_family(anyone: Any, pictures: Pictures) -> None:
    found = vti.learn(anyone, examples(pictures), trials=2, mask_ratio=0.5)
    answers = anyone.ask_many(pictures, ["red?"] * 3, found, max_new_tokens=3)
    assert len(answers) == 3
    assert found.model == anyone.fingerprint
    assert not torch.equal(anyone.logits(pictures[:1], ["red?"], found), anyone.logits(pictures[:1], ["red?"]))


def test_what_cannot_be_learned_is_refused(llava: Any, pictures: Pictures) -> None:
    chosen = examples(pictures)
    with pytest.raises(InputError, match="2 or more"):
        vti.learn(llava, chosen[:1])
    with pytest.raises(RecipeError, match="pc1"):
        vti.learn(llava, chosen, mode="pc")
    with pytest.raises(InputError, match="other than 0"):
        vti.learn(llava, chosen, text=0.0, image=0.0)
