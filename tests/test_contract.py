"""What every family keeps: the same sites, positions, recipes and answers, whatever is inside.

A new family enters `checkpoints.BUILDERS` and must pass this file as it is.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from engine_recipes import QUESTIONS, both, flags, hooks, recipe
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

import vlmsteer
from vlmsteer.errors import ModelError, SiteError
from vlmsteer.recipe import Edit, Recipe
from vlmsteer.selfcheck import check
from vlmsteer.sites import Site
from vlmsteer.tokens import OF_ROWS
from vlmsteer.vectors import Vectors

Pictures = list[Image.Image]
TOWERS = {
    "LLaVA": ["vision", "projector", "text"],
    "LLaVA-NeXT": ["vision", "projector", "text"],
    "LLaVA-OneVision": ["vision", "projector", "text"],
    "InstructBLIP": ["vision", "qformer", "projector", "text"],
    "InstructBLIP (T5)": ["vision", "qformer", "projector", "encoder", "text"],
    "Qwen2-VL": ["vision", "projector", "text"],
    "Qwen2.5-VL": ["vision", "projector", "text"],
    "Qwen3-VL": ["vision", "projector", "text"],
    "OpenVLA": ["vision", "vision2", "projector", "text"],
    "pi0": ["vision", "projector", "text", "expert"],
}
POINTS = {"block_in", "head", "attn_out", "norm_out", "neuron", "mlp_out", "block_out"}


def close(seen: Tensor, expected: Tensor) -> None:
    """Equal but for the order of sums; random weights make logits of any size, so that size is the measure."""
    torch.testing.assert_close(seen, expected, atol=1e-4 * expected.abs().max().item(), rtol=0)


def steers(session: Any) -> list[Recipe | None]:
    """Recipes that differ in tower, point, operation and positions, one of them none."""
    prompt = session.family.reads_prompt
    return [
        None,
        recipe(session, f"{prompt}.0-1.block_out", strength=2.0, positions="image", seed=1),
        recipe(session, f"{prompt}.1.block_out", "scale", strength=-0.5, positions="question", seed=2),
        both(recipe(session, "text.1.block_out", "replace", seed=3), recipe(session, "text.2.head", seed=4)),
        recipe(session, f"{session.family.reads_prompt}.1.neuron", "affine", 0.3, (0, -1), "prefill", seed=5),
    ]


def test_towers_points_and_widths(everyone: Any) -> None:
    """Every tower has every point in every layer; a width is that of the states, which `load` has read."""
    towers = TOWERS[everyone.family.name]
    assert list(dict.fromkeys(site.tower for site in everyone.sites)) == towers
    for tower in set(towers) - {"projector"}:
        for layer in range(everyone.layers(tower)):
            found = {site.point for site in everyone.sites if (site.tower, site.layer) == (tower, layer)}
            assert found - {"cross_head", "cross_out"} == POINTS
    crossed = {(site.tower, site.layer) for site in everyone.sites if site.point == "cross_out"}
    wanted = {
        "InstructBLIP": {("qformer", 0), ("qformer", 2)},
        "InstructBLIP (T5)": {("qformer", 0), ("qformer", 2), ("text", 0), ("text", 1), ("text", 2)},
    }
    assert crossed == wanted.get(everyone.family.name, set())


@pytest.mark.parametrize("swap", [("attn_out", "mlp_out"), ("norm_out", "block_out"), ("head", "neuron")])
def test_a_wrong_declaration_is_found(everyone: Any, swap: tuple[str, str]) -> None:
    for tower in everyone.family.towers:
        if "norm_out" in swap and not everyone.family.towers[tower].pre_norm:
            continue
        wrong = copy.copy(everyone)
        first, second = (Site(tower, 0, point) for point in swap)
        wrong.taps = {**everyone.taps, first: everyone.taps[second], second: everyone.taps[first]}
        wrong.instrument = type(everyone.instrument)(
            everyone.model, wrong.taps, everyone.family, everyone.instrument.image_token
        )
        with pytest.raises(ModelError):
            check(wrong)


def timm_states(tower: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    """What enters the first block of a timm tower and what each block gives, by timm's own collector."""
    made = tower.forward_intermediates(pixels, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True)
    outputs = [torch.cat(part[::-1], 1) if isinstance(part, tuple) else part for part in made]
    return (tower.norm_pre(tower._pos_embed(tower.patch_embed(pixels))), *outputs)


def reference(session: Any, picture: Image.Image, question: str) -> dict[str, tuple[Tensor, ...]]:
    """transformers' own hidden states by tower; in Qwen's vision tower in the order in which it works."""
    layout = session.encoder.encode([picture], [question]).whole(session.device)
    model, inputs = session.model, dict(layout.inputs)
    more = {"output_hidden_states": True}
    with torch.no_grad():
        if "InstructBLIP" in session.family.name:
            pixels, ids = inputs["pixel_values"], inputs["qformer_input_ids"]
            vision = model.vision_model(pixels, **more)
            asked = {"input_ids": ids, "query_embeds": model.query_tokens, **more}
            qformer = model.qformer(encoder_hidden_states=vision.last_hidden_state, **asked)
            found = {"vision": vision.hidden_states, "qformer": qformer.hidden_states}
            features = model.language_projection(qformer.last_hidden_state[:, : model.query_tokens.shape[1]])
            prompt = inputs.get("encoder_ids", inputs["input_ids"])
            embedded = model.get_input_embeddings()(prompt)
            embedded[prompt == session.encoder.image_token] = features[0]
            if "encoder_ids" not in inputs:
                return found | {"text": model.language_model(inputs_embeds=embedded, **more).hidden_states}
            start = inputs["input_ids"]
            seq = model.language_model(inputs_embeds=embedded, decoder_input_ids=start, **more)
            return found | {"encoder": seq.encoder_hidden_states, "text": seq.decoder_hidden_states}
        if "OpenVLA" in session.family.name:
            backbone, first = model.vision_backbone, inputs["pixel_values"].split(3, 1)
            found = {"vision": timm_states(backbone.featurizer, first[0])}
            found |= {"vision2": timm_states(backbone.fused_featurizer, first[1])}
            return found | {"text": model(**inputs, position_ids=layout.positions, **more).hidden_states}
        if "expert" in session.family.towers:
            images, ids = inputs.pop("pixel_values"), inputs.pop("input_ids")
            vlm, one = model.model.vlm, torch.ones(len(ids), 1, dtype=torch.bool)
            embedded = model.model.embed_prefix(ids, images[:, None], one)
            more |= inputs
            kinds = torch.zeros_like(ids)
            prompt = vlm(inputs_embeds=embedded, token_type_ids=kinds, position_ids=layout.positions, **more)
            config = model.config
            shapes = (config.max_state_dim,), (config.chunk_size, config.max_action_dim)
            chunk = model.embed_action_time(*(torch.zeros(1, *shape) for shape in shapes), torch.ones(1))
            expert = model.model(action_embeds=chunk, past_key_values=prompt.past_key_values, **more)
            vision = vlm.vision_tower(images, output_hidden_states=True)
            return {"vision": vision.hidden_states, "text": prompt.hidden_states, "expert": expert.hidden_states}
        positions = layout.positions.permute(2, 0, 1) if layout.positions.dim() == 3 else layout.positions
        found = {"text": model(**inputs, position_ids=positions, **more).hidden_states}
        if "Qwen" in session.family.name:
            grid = inputs["image_grid_thw"]
            return found | {"vision": model.model.visual(inputs["pixel_values"], grid_thw=grid, **more).hidden_states}
        pixels = inputs["pixel_values"].flatten(0, -4)
        return found | {"vision": model.model.vision_tower(pixels, **more).hidden_states}


def test_states_equal_transformers_own(everyone: Any, pictures: Pictures) -> None:
    """Bit by bit at every layer of every tower; the last entry of a decoder's hidden states is after its norm."""
    own = reference(everyone, pictures[1], QUESTIONS[0])
    assert set(own) == set(everyone.family.towers)
    for tower, states in own.items():
        last = everyone.layers(tower) - 1
        assert len(states) == last + 2
        with everyone.read([f"{tower}.*.block_out", f"{tower}.0.block_in"], "all", "both") as seen:
            everyone.logits(pictures[1:2], QUESTIONS[:1])
        for layer in range(-1, last if tower in OF_ROWS else last + 1):
            site = f"{tower}.{layer}.block_out" if layer >= 0 else f"{tower}.0.block_in"
            expected = states[layer + 1]
            expected = expected if expected.dim() == 3 else expected[None]
            rows = seen.rows(site)
            if (
                tower == "vision" and "Qwen" in everyone.family.name
            ):  # the same rows, ordered by their place in the image
                expected = expected[0][expected[0, :, 0].argsort()][None]
                rows = [rows[0][rows[0][:, 0].argsort()]]
            if tower == "text" and not everyone.family.towers["text"].stitched:
                # deepstack: what transformers reports has the vision states added, at image tokens only
                rows, expected = [rows[0][-4:]], expected[:, -4:]
            assert torch.equal(torch.stack(rows), expected), (tower, layer)


def test_zero_edits_change_nothing_and_real_ones_something(everyone: Any, pictures: Pictures) -> None:
    plain = everyone.logits(pictures, QUESTIONS)
    for tower in TOWERS[everyone.family.name]:
        live = 1 if tower == "projector" else everyone.family.live_layers(everyone.model.config, tower)
        for layer in {0, live - 1}:
            edit = recipe(everyone, f"{tower}.{layer}.block_out", positions="all", size=3.0)
            vectors = edit.edits[0].vectors
            nothing = Recipe((Edit(Vectors(tower, "block_out", {layer: 0 * vectors.layers[layer]}), positions="all"),))
            assert torch.equal(everyone.logits(pictures, QUESTIONS, nothing), plain)
            assert not torch.allclose(everyone.logits(pictures, QUESTIONS, edit), plain, atol=1e-3)
    assert torch.equal(everyone.logits(pictures, QUESTIONS), plain)


def test_the_model_is_left_as_it_was(anyone: Any, pictures: Pictures) -> None:
    before = hooks(anyone.model), flags(anyone.model)
    plain = anyone.ask(pictures[0], QUESTIONS[0], max_new_tokens=5)
    steer = both(*(one for one in steers(anyone) if one))
    assert anyone.ask(pictures[0], QUESTIONS[0], steer, max_new_tokens=5) != plain
    with pytest.raises(RuntimeError, match="stop"), anyone.apply(steer), anyone.read("text.*.block_out"):
        anyone.logits(pictures[:1], QUESTIONS[:1])
        raise RuntimeError("stop")
    stream = anyone.stream(pictures[0], QUESTIONS[0], steer)
    next(stream)
    stream.close()
    assert (hooks(anyone.model), flags(anyone.model)) == before
    assert anyone.ask(pictures[0], QUESTIONS[0], max_new_tokens=5) == plain


def test_question_and_last_tokens(everyone: Any, pictures: Pictures) -> None:
    tower = everyone.family.reads_prompt
    for question in (*QUESTIONS, " red? "):
        row = everyone.encoder.encode(pictures[:1], [question]).rows[0]
        shown = question.lower() if everyone.family.name == "OpenVLA" else question
        assert everyone.tokenizer.decode(row.ids[row.question]).strip() == shown.strip()
        with (
            everyone.read(f"{tower}.0.block_in", "question") as asked,
            everyone.read(f"{tower}.0.block_in", "all") as every,
        ):
            everyone.logits(pictures[:1], [question])
        assert torch.equal(asked.rows(f"{tower}.0.block_in")[0], every.rows(f"{tower}.0.block_in")[0][row.question])


def test_image_tokens_and_their_boxes(everyone: Any, pictures: Pictures) -> None:
    """A spot in the picture reaches just the tokens whose boxes show it, once patches ignore each other."""
    if everyone.family.boxes is None:
        with pytest.raises(SiteError, match="no cells of a grid"):
            everyone.boxes(pictures[0])
        return
    edits = []
    for tower in [name for name in everyone.family.towers if name.startswith("vision")]:
        layers = everyone.family.live_layers(everyone.model.config, tower)
        width = everyone.taps[Site(tower, 0, "attn_out")].width
        silent = dict.fromkeys(range(layers), -torch.ones(width))
        edits.append(Edit(Vectors(tower, "attn_out", silent), "scale", 1.0, "all"))
    alone = Recipe(tuple(edits))
    for size in [(56, 56), (112, 56), (56, 168)]:
        images = [Image.new("RGB", size, (120, 120, 120)) for _ in range(2)]
        boxes = everyone.boxes(images[0])
        shown = boxes[~boxes.isnan().any(1)]
        assert shown.min() >= 0 and shown.max() <= 1
        spot = shown[len(shown) - 2]
        center = torch.tensor(size) * (spot[:2] + spot[2:]) / 2
        third = torch.tensor(size) * (spot[2:] - spot[:2]) / 6
        ImageDraw.Draw(images[1]).rectangle([*(center - third).tolist(), *(center + third).tolist()], (255, 0, 0))
        with everyone.read("text.0.block_in", "image") as seen:
            everyone.logits(images, ["red?"] * 2, alone)
        states = seen.rows("text.0.block_in")
        assert len(states[0]) == len(boxes)
        changed = (states[0] - states[1]).abs().amax(1) > 1e-4
        x, y = (center / torch.tensor(size)).tolist()
        inside = (boxes[:, 0] < x) & (x < boxes[:, 2]) & (boxes[:, 1] < y) & (y < boxes[:, 3])
        assert inside.any() and changed[inside].all()
        near = (0.75 if "OneVision" in everyone.family.name else 0.45) * (
            spot[2:] - spot[:2]
        )  # it shrinks the fine grid
        far = (boxes[:, 0] > x + near[0]) | (boxes[:, 2] < x - near[0])
        far |= (boxes[:, 1] > y + near[1]) | (boxes[:, 3] < y - near[1])
        assert far.any() and not changed[far | boxes.isnan().any(1)].any()


def mixed(session: Any, pictures: Pictures) -> tuple[list[Image.Image | None], list[str], list[Recipe | None]]:
    """Rows of every length, with and without an image, each with its own recipe."""
    own = steers(session)
    own[1], own[3] = own[3], own[1]
    own[3] = recipe(session, f"{session.family.reads_prompt}.1.block_out", positions="question", seed=7)
    return [*pictures, None, pictures[0]], [*QUESTIONS, "red?", "a"], own


def test_batches_equal_single_rows(everyone: Any, pictures: Pictures) -> None:
    images, questions, own = mixed(everyone, pictures)
    together = everyone.logits(images, questions, own)
    alone = [everyone.logits([image], [text], steer) for image, text, steer in zip(images, questions, own, strict=True)]
    close(together, torch.cat(alone))
    assert len(set(together.argmax(-1).tolist())) > 1


def test_answers_in_batches_equal_single_ones(anyone: Any, pictures: Pictures) -> None:
    images, questions, own = mixed(anyone, pictures)
    rows = list(zip(images, questions, own, strict=True))
    answers = [anyone.ask(*row, max_new_tokens=4) for row in rows]
    assert anyone.ask_many(images, questions, own, 4) == answers
    assert anyone.ask_many(images, questions, own, 4, batch_size=2) == answers
    assert len(set(answers)) > 2


@pytest.mark.parametrize("point", ["block_out", "head", "neuron"])
def test_rows_differ_on_the_vision_side(everyone: Any, pictures: Pictures, point: str) -> None:
    for tower in set(TOWERS[everyone.family.name]) - set(OF_ROWS):
        site = f"{tower}.0.{point}"
        if Site.parse(site) not in everyone.taps:
            continue
        own = [recipe(everyone, site, positions="image", seed=1, size=3.0), None]
        own.append(recipe(everyone, site, "scale", positions="all", seed=2))
        together = everyone.logits(pictures, QUESTIONS, own)
        alone = [
            everyone.logits([image], [text], steer) for image, text, steer in zip(pictures, QUESTIONS, own, strict=True)
        ]
        close(together, torch.cat(alone))
        assert not torch.allclose(together[0], everyone.logits(pictures[:1], QUESTIONS[:1])[0], atol=1e-3)


def test_one_image_many_questions_and_a_grid_of_recipes(anyone: Any, pictures: Pictures) -> None:
    images, questions = [pictures[1]] * 3, QUESTIONS
    alone = [anyone.ask(image, text, max_new_tokens=4) for image, text in zip(images, questions, strict=True)]
    assert anyone.ask_many(images, questions, max_new_tokens=4) == alone
    last = [None, *(recipe(anyone, "text.*.block_out", strength=s, seed=5) for s in (1.0, -2.0))]
    wanted = [
        [anyone.ask(image, text, steer, 4) for steer in last] for image, text in zip(images, questions, strict=True)
    ]
    assert anyone.ask_grid(images, questions, last, 4) == wanted
    assert anyone.ask_grid(images, questions, [*last[:2], steers(anyone)[1]], 4)[0][:2] == wanted[0][:2]


def test_answers_that_end_at_different_steps(anyone: Any, pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that have finished leave the batch; the others go on as if alone, each with its own recipe."""
    own = [
        None,
        *(
            recipe(anyone, "text.*.block_out", positions=where, seed=seed)
            for seed in range(7)
            for where in ("last", "generated")
        ),
    ]
    images, questions = [pictures[n % 3] for n in range(len(own))], [QUESTIONS[n % 3] for n in range(len(own))]
    tokens = len(anyone.model.get_output_embeddings().weight)
    ends = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[::4]  # a fourth of all tokens end it
    monkeypatch.setattr(anyone, "ends", torch.cat([ends, anyone.ends]))
    alone = [anyone.ask(*row, max_new_tokens=9) for row in zip(images, questions, own, strict=True)]
    assert len({len(anyone.tokenizer(text).input_ids) for text in alone}) > 1
    assert anyone.ask_many(images, questions, own, 9) == alone
    wanted = [
        [anyone.ask(image, text, steer, 9) for steer in own] for image, text in zip(pictures, QUESTIONS, strict=True)
    ]
    assert anyone.ask_grid(pictures, QUESTIONS, own, 9) == wanted


def test_generation_by_transformers_gives_the_same(anyone: Any, pictures: Pictures) -> None:
    """transformers' generate, with a cache and without, under a recipe that acts on the prompt and on what follows."""
    acts = both(*(one for one in steers(anyone)[1:4] if one), recipe(anyone, "text.0.mlp_out", positions="generated"))
    for steer in (None, acts):
        for image in (pictures[1], None):
            if image is None and steer is not None:
                steer = recipe(anyone, "text.*.block_out", positions="all", size=0.5)
            own = anyone.ask(image, QUESTIONS[0], steer, 5)
            assert anyone.ask(image, QUESTIONS[0], steer, 5, do_sample=False) == own
            assert anyone.ask(image, QUESTIONS[0], steer, 5, do_sample=False, use_cache=False) == own
            assert list(anyone.stream(image, QUESTIONS[0], steer, 5))[-1] == own


def test_recipes_in_several_threads(everyone: Any, pictures: Pictures) -> None:
    own = [one for one in steers(everyone)]
    alone = [everyone.logits(pictures[:1], QUESTIONS[:1], steer) for steer in own]
    seen: dict[int, list[Tensor]] = {}
    gate = threading.Barrier(len(own))

    def work(number: int) -> None:
        gate.wait()
        seen[number] = [everyone.logits(pictures[:1], QUESTIONS[:1], own[number]) for _ in range(4)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(own))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, alone[number]) for number, found in seen.items() for one in found)
    assert len(seen) == len(own)


def test_gradients_reach_every_tower(everyone: Any, pictures: Pictures) -> None:
    sites = [f"{tower}.0.block_out" for tower in TOWERS[everyone.family.name]]
    with everyone.read(sites, "all", grad=True) as states:
        logits = everyone.logits(pictures[1:2], QUESTIONS[:1], grad=True)
        for site in sites:
            (slope,) = torch.autograd.grad(logits[0].max(), states.rows(site)[:1], retain_graph=True)
            assert slope.abs().max() > 0, site


def test_half_precision_is_kept(everyone: Any, folders: Any, pictures: Pictures) -> None:
    name = next(key for key in folders if folders[key].name == everyone.name)
    half = vlmsteer.load(folders[name], dtype=torch.bfloat16)
    logits = half.logits(pictures[:1], QUESTIONS[:1], steers(half)[3])
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


def test_saved_again_it_is_the_same_model(everyone: Any, folders: Any, pictures: Pictures, tmp_path: Any) -> None:
    name = next(key for key in folders if folders[key].name == everyone.name)
    everyone.model.save_pretrained(tmp_path / "again")
    everyone.processor.save_pretrained(tmp_path / "again")
    saved, again = (load_file(folder / "model.safetensors") for folder in (folders[name], tmp_path / "again"))
    assert set(saved) == set(again)
    loaded = vlmsteer.load(tmp_path / "again", check=False)
    assert torch.equal(loaded.logits(pictures, QUESTIONS), everyone.logits(pictures, QUESTIONS))
    assert loaded.fingerprint["shapes"] == everyone.fingerprint["shapes"]
