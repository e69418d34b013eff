"""The model against timm and against itself: what the towers see, and that it is seen with every cache."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor
from transformers import DynamicCache

from vlmsteer.errors import InputError
from vlmsteer.openvla.actions import act

DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"


@pytest.fixture(scope="session")
def policy(sessions: Any) -> Any:
    return sessions["openvla"]


def inputs(policy: Any, picture: Image.Image, instruction: str = "lift the red block") -> dict[str, Tensor]:
    return dict(policy.encoder.encode([picture], [instruction]).whole(policy.device).inputs)


def forward(policy: Any, **arguments: Any) -> Any:
    with torch.no_grad():
        return policy.model(**arguments)


def test_towers_equal_timms_own(policy: Any) -> None:
    """Bit for bit: the second-to-last block of the two timm classes, without prefix tokens, features side by side."""
    backbone = policy.model.vision_backbone
    pixels = torch.randn(3, 6, 28, 28, generator=torch.Generator().manual_seed(0))
    features = []
    for name, prefix, part in ((DINO, "featurizer", pixels[:, :3]), (SIGLIP, "fused_featurizer", pixels[:, 3:])):
        ours = getattr(backbone, prefix)
        own: Any = timm.create_model(
            name, num_classes=0, img_size=28, embed_dim=ours.embed_dim, depth=3, num_heads=4, mlp_ratio=1.75
        )
        weights = {key.replace("scale_factor", "gamma"): value for key, value in ours.state_dict().items()}
        own.load_state_dict(weights)
        with torch.no_grad():
            features += own.eval().get_intermediate_layers(part, n={1})
    assert [own.shape for own in features] == [(3, 4, 32), (3, 4, 24)]
    with torch.no_grad():
        assert torch.equal(backbone(pixels), torch.cat(features, -1))
    assert not torch.equal(features[0][0], features[0][1])


def test_projector_is_three_layers_with_gelu(policy: Any) -> None:
    projector = policy.model.projector
    states = torch.randn(2, 5, 56, generator=torch.Generator().manual_seed(1))
    expected = states.double()
    for number, layer in enumerate((projector.fc1, projector.fc2, projector.fc3)):
        if number:
            expected = expected * 0.5 * (1 + torch.erf(expected / 2**0.5))
        expected = expected @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad():
        torch.testing.assert_close(projector(states).double(), expected, rtol=1e-4, atol=1e-4)
    assert [tuple(layer.weight.shape) for layer in projector.children()] == [(224, 56), (48, 224), (48, 48)]


def test_patches_stand_behind_the_start_token(policy: Any, pictures: list[Image.Image]) -> None:
    """The order of the authors' code: start token, patches, text; every patch where its placeholder is."""
    given = inputs(policy, pictures[0])
    ids, count = given["input_ids"][0], policy.model.config.image_tokens
    assert ids[0] == policy.tokenizer.bos_token_id and ids[-1] == policy.processor.blank
    assert (ids == policy.encoder.image_token).nonzero().flatten().tolist() == list(range(1, 1 + count))
    model = policy.model
    with torch.no_grad():
        words = model.get_input_embeddings()(torch.cat([ids[:1], ids[1 + count :]]))
        patches = model.projector(model.vision_backbone(given["pixel_values"]))[0]
        sequence = torch.cat([words[:1], patches, words[1:]])[None]
        expected = model.language_model(inputs_embeds=sequence).logits
    assert torch.equal(forward(policy, **given).logits, expected)


def test_black_and_white_pictures_differ(policy: Any) -> None:
    black, white = (Image.new("RGB", (64, 64), color) for color in ("black", "white"))
    logits = policy.logits([black, white], ["lift the red block"] * 2)
    assert (logits[0] - logits[1]).abs().max() > 0.1 * logits.std()
    done = act(policy, [black, white], ["lift the red block"] * 2)
    assert (done.tokens[0] != done.tokens[1]).any() and (done.actions[0] != done.actions[1]).any()


@pytest.mark.parametrize("number", [0, 1])
def test_an_empty_cache_does_not_make_it_blind(policy: Any, pictures: list[Image.Image], number: int) -> None:
    given = inputs(policy, pictures[number])
    plain = forward(policy, **given, use_cache=False).logits
    assert torch.equal(forward(policy, **given, past_key_values=DynamicCache(), use_cache=True).logits, plain)
    unseen = {**given, "pixel_values": torch.zeros_like(given["pixel_values"])}
    assert not torch.allclose(forward(policy, **unseen, past_key_values=DynamicCache()).logits, plain, atol=1e-2)


def test_steps_with_a_cache_equal_one_forward(policy: Any, pictures: list[Image.Image]) -> None:
    """Logits of every token of a generated answer, taken in one by one, and all at once without a cache."""
    given, cache, steps = inputs(policy, pictures[2]), DynamicCache(), []
    ids, mask = given["input_ids"], given["attention_mask"]
    outputs = forward(policy, **given, past_key_values=cache, use_cache=True)
    for _ in range(7):
        steps.append(outputs.logits[:, -1])
        ids, mask = torch.cat([ids, steps[-1].argmax(-1)[:, None]], 1), torch.cat([mask, mask[:, :1]], 1)
        outputs = forward(policy, input_ids=ids[:, -1:], attention_mask=mask, past_key_values=cache, use_cache=True)
    whole = forward(policy, input_ids=ids, pixel_values=given["pixel_values"], use_cache=False).logits[0, -8:-1]
    torch.testing.assert_close(torch.cat(steps), whole, rtol=0, atol=1e-4 * whole.abs().max().item())
    assert act(policy, pictures[2:3], ["lift the red block"]).tokens[0].tolist() == ids[0, -7:].tolist()
    said = policy.model.generate(**given, max_new_tokens=7, min_new_tokens=7, do_sample=False, eos_token_id=None)
    assert said[0, -7:].tolist() == ids[0, -7:].tolist()


def test_places_and_pictures_must_match(policy: Any, pictures: list[Image.Image]) -> None:
    given = inputs(policy, pictures[0])
    with pytest.raises(InputError, match="4 places for patches of images, and the images given have 0"):
        forward(policy, **{**given, "pixel_values": None})
    with pytest.raises(InputError, match="4 places .* have 8 patches"):
        forward(policy, **{**given, "pixel_values": given["pixel_values"].repeat(2, 1, 1, 1)})
    with pytest.raises(InputError, match="without tokens"):
        forward(policy)


def test_it_can_be_trained(policy: Any, pictures: list[Image.Image]) -> None:
    """A loss over labels, with gradients in every weight that is not dead."""
    given = inputs(policy, pictures[0])
    patches = given["input_ids"] == policy.model.config.image_token_id
    loss = policy.model(**given, labels=given["input_ids"].masked_fill(patches, -100)).loss
    named = dict(policy.model.named_parameters())
    slopes = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    still = {name for name, slope in zip(named, slopes, strict=True) if slope is None}
    assert still == {name for name in named if policy.model.dead(name)}
    assert {name.split(".")[2] for name in still} == {"blocks", "norm", "attn_pool"}
    assert {name.split(".")[3] for name in still if ".blocks." in name} == {"2"}
