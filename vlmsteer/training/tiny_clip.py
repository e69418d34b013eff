"""tiny-clip: open_clip's own CLIP, ResNet and text tower, at a size that trains in half an hour on one CPU core.

It is a judge of counterfactual pictures and must have no prior: colors are uniform here, and every picture has near
misses in its batch (the same object in another color, another object in the same color, the larger one swapped, sides
swapped, something removed), so that no shortcut pays. What `splits.py` holds back is never shown, and which color a
held-out object has is never said. Pictures are drawn once into a file; captions are made anew every time.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlmsteer.bench.pairs import drawn_pairs
from vlmsteer.bench.statistics import rate as measured_rate
from vlmsteer.training import cards
from vlmsteer.training.clip_captions import Caption, Group, group
from vlmsteer.training.progress import Log, adam, rate, restore, save
from vlmsteer.training.splits import HELD_OUT_OBJECTS, HELD_OUT_STYLE
from vlmsteer_counterfacts.clip import Scorer, load_scorer
from vlmsteer_counterfacts.draw import Scene
from vlmsteer_counterfacts.facts import article, facts
from vlmsteer_counterfacts.palette import COLORS

NAME = "tiny-clip"
STEPS, BATCH, GROUPS, PEAK_RATE, SAVE_EVERY = 750, 128, 10_000, 2e-3, 100
PAIRS = 400  # measured on, by task
POOR = 0.6  # a task whose interval begins below this is named in the card as not learned
IMAGE_SIZE, CONTEXT, VOCABULARY, SHIFT = 96, 24, 900, 6
CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": IMAGE_SIZE, "layers": [1, 2, 2, 1], "width": 16, "head_width": 32},
    "text_cfg": {
        "context_length": CONTEXT, "width": 128, "heads": 4, "layers": 3,
        "hf_tokenizer_name": NAME,  # open_clip reads the tokenizer beside the weights where any name stands here
    },
}  # fmt: skip
RENDERS = ((84, 0.5), (IMAGE_SIZE, 0.35), (192, 0.15))  # sizes drawn, and their shares; all are then scaled to ours


def draw(groups: Sequence[Group], path: Path, seed: int, report: Callable[[str], None] = print) -> np.ndarray:
    """Every scene of the groups, drawn once into a file: (scenes, IMAGE_SIZE, IMAGE_SIZE, 3) bytes.

    A run that was stopped goes on with the first picture that is missing.
    """
    scenes, part, size = [scene for one in groups for scene in one.scenes], path.with_suffix(".part"), IMAGE_SIZE**2 * 3
    if not path.exists():
        with part.open("ab") as file:
            done = file.tell() // size
            file.truncate(done * size)
            for number in range(done, len(scenes)):
                rng = random.Random(f"{seed}/render/{number}")
                pixels = rng.choices([px for px, _ in RENDERS], [share for _, share in RENDERS])[0]
                image = scenes[number].render(pixels).image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
                file.write(image.tobytes())
                if (number + 1) % 2000 == 0:
                    report(f"{number + 1} of {len(scenes)} pictures drawn")
        os.replace(part, path)
    return np.memmap(path, np.uint8, "r").reshape(len(scenes), IMAGE_SIZE, IMAGE_SIZE, 3)


class Batches:
    """Batch `step` as (numbers of pictures, whether to mirror each, captions): any step can be made on its own."""

    def __init__(self, groups: Sequence[Group], batch: int, seed: int) -> None:
        self.groups, self.batch, self.seed = groups, batch, seed
        self.firsts = np.cumsum([0, *(len(one.scenes) for one in groups)])

    def __call__(self, step: int) -> tuple[list[int], list[bool], list[str]]:
        """No caption is true of two pictures: groups that would bring such a caption in are passed over."""
        rng = random.Random(f"{self.seed}/{step}")
        numbers, mirrored, texts = [], [], []
        taken: dict[tuple[str, ...], list[tuple[Caption, Scene]]] = defaultdict(list)  # by the objects shown
        while len(numbers) < self.batch:
            index = rng.randrange(len(self.groups))
            chosen = self.groups[index]
            new = list(zip(chosen.captions(rng), chosen.scenes, strict=True))
            keys = [tuple(sorted(item.object for item in scene.items)) for _, scene in new]
            known = [pair for key in set(keys) for pair in taken[key]]
            if any(a.true_of(old) or b.true_of(scene) for a, scene in new for b, old in known):
                continue
            if any(a.true_of(other) for (a, _), (_, other) in itertools.permutations(new, 2)):
                continue
            mirror = chosen.kind != "relation" and rng.random() < 0.5
            for offset, (key, pair) in enumerate(zip(keys, new, strict=True)):
                taken[key].append(pair)
                numbers.append(int(self.firsts[index]) + offset)
                mirrored.append(mirror)
                texts.append(pair[0].text(rng))
        return numbers, mirrored, texts


def learn_tokenizer(seed: int = 0) -> Any:
    """A CLIP tokenizer learned on captions: their words are single tokens, and anything else is spelled in bytes."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = random.Random(seed)
    lines = [caption.text(rng) for _ in range(3000) for caption in group(rng).captions(rng)]
    lines += [fact.plural for fact in facts().values()]
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = CLIPTokenizer().backend_tokenizer.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>"],
        initial_alphabet=letters,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learned.train_from_iterator(lines, trainer)
    state = json.loads(learned.to_str())["model"]
    vocab = state["vocab"]
    for token in (*(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"):
        vocab.setdefault(token, len(vocab))  # the end comes last: a text is read at its highest number
    merges: Any = [tuple(pair) for pair in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token="<|pad|>", model_max_length=CONTEXT)


def build(tokenizer: Any, seed: int = 0) -> tuple[Any, dict[str, Any]]:
    """An untrained model and its configuration."""
    from open_clip.model import CLIP, set_model_preprocess_cfg
    from open_clip.transform import PreprocessCfg

    config = {**CONFIG, "text_cfg": {**CONFIG["text_cfg"], "vocab_size": len(tokenizer)}}
    torch.manual_seed(seed)
    model = CLIP(**config)
    set_model_preprocess_cfg(model, {**vars(PreprocessCfg()), "size": IMAGE_SIZE})
    return model, config


def pixels(pictures: np.ndarray, mirrored: Sequence[bool], rng: random.Random, visual: Any) -> torch.Tensor:
    """Pictures (n, height, width, 3) as the model takes them, each moved by up to SHIFT pixels."""
    moved = np.empty_like(pictures)
    side = pictures.shape[1]
    for number, (picture, mirror) in enumerate(zip(pictures, mirrored, strict=True)):
        padded = np.pad(picture[:, ::-1] if mirror else picture, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), "edge")
        top, left = rng.randrange(2 * SHIFT + 1), rng.randrange(2 * SHIFT + 1)
        moved[number] = padded[top : top + side, left : left + side]
    mean, std = torch.tensor(visual.image_mean), torch.tensor(visual.image_std)
    return ((torch.from_numpy(moved) / 255 - mean) / std).permute(0, 3, 1, 2)


def train(
    folder: Path,
    steps: int = STEPS,
    seed: int = 0,
    report: Callable[[str], None] = print,
    groups: int = GROUPS,
    batch: int = BATCH,
) -> Any:
    """Train until `steps`, resuming from `folder` if it holds a checkpoint.

    Args:
        folder: where the pictures, the tokenizer, `state.pt` (every SAVE_EVERY steps and at the end) and
            `losses.jsonl` are written.
        report: called with a line of text every 20 steps.
        groups: how many groups of scenes are drawn, about 2.6 pictures each.
        batch: at least so many pictures a step.

    Returns:
        The trained model.
    """
    from open_clip.loss import ClipLoss
    from open_clip.tokenizer import HFTokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer").exists():
        learn_tokenizer(seed).save_pretrained(folder / "tokenizer")
    tokenizer = HFTokenizer(str(folder / "tokenizer"), context_length=CONTEXT)
    model, _ = build(tokenizer.tokenizer, seed)
    model.to(device, memory_format=torch.channels_last).train()
    optimizer = adam(model, PEAK_RATE)
    first = restore(folder, model, optimizer, device) if (folder / "state.pt").exists() else 0
    drawn = [group(random.Random(f"{seed}/group/{number}")) for number in range(groups)]
    pictures = draw(drawn, folder / f"pictures-{seed}-{groups}.bytes", seed, report)
    batches, contrast = Batches(drawn, batch, seed), ClipLoss()
    log = Log(
        folder, lambda step, loss, seconds: report(f"step {step} of {steps}, loss {loss:.3f}, {seconds:.2f} s a step")
    )
    for step in range(first, steps):
        numbers, mirrored, texts = batches(step)
        shown = pixels(pictures[numbers], mirrored, random.Random(f"{seed}/shift/{step}"), model.visual)
        for settings in optimizer.param_groups:
            settings["lr"] = rate(step, steps, PEAK_RATE)
        loss = contrast(*model(shown.to(device), tokenizer(texts).to(device)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        log(step + 1, loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            save(folder, model, optimizer, step + 1)
    return model.eval()


def export(folder: Path, out: Path) -> None:
    """Write what `folder` has trained so far in the layout that open_clip publishes, in half precision."""
    from open_clip.push_to_hf_hub import save_for_hf
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    model, config = build(tokenizer)
    model.load_state_dict(torch.load(folder / "state.pt", map_location="cpu", weights_only=True)["model"])
    save_for_hf(model.half(), tokenizer, config, str(out), safe_serialization=True)
    for path in out.iterdir():
        path.chmod(0o644)


def evaluate(scorer: Scorer, n: int = PAIRS, report: Callable[[str], None] = print) -> dict[str, dict[str, Any]]:
    """How often the right caption fits better than the wrong one, by task, with 95 % intervals; n pairs a task."""
    measured: dict[str, dict[str, Any]] = {}
    for words, split, style, sizes in (
        ("held-out objects", "test", None, (84, 256)),
        ("held-out colors", "validate", None, (84, 256)),
        ("held-out style", "test", HELD_OUT_STYLE, (84,)),
    ):
        for size in sizes:
            report(f"color, {words}, {size} px")
            pairs = drawn_pairs("color", split, n, 1, size, style)  # pyright: ignore[reportArgumentType]
            shown = [pair.object for pair in pairs]
            texts = {(name, color): article(f"{color} {name}") for name in dict.fromkeys(shown) for color in COLORS}
            column = {key: number for number, key in enumerate(texts)}
            for kind in ("original", "counterfactual"):
                scores = scorer([pair.image(kind) for pair in pairs], list(texts.values()))
                asked = [(p.prior, p.pixel) if kind == "original" else (p.pixel, p.prior) for p in pairs]
                of = [[row[column[name, c]] for c in COLORS] for row, name in zip(scores, shown, strict=True)]
                order = list(COLORS)
                two = [row[order.index(a)] > row[order.index(b)] for row, (a, b) in zip(of, asked, strict=True)]
                best = [order[int(np.argmax(row))] == a for row, (a, _) in zip(of, asked, strict=True)]
                task = f"color, {words}, {kind} picture, {size} px"
                measured[f"{task}: right of two"] = measured_rate(two, shown).as_dict()
                measured[f"{task}: right of eleven"] = measured_rate(best, shown).as_dict()
    report("size")
    pairs = drawn_pairs("size", "test", n, 1)
    for kind in ("original", "counterfactual"):
        right = []
        for pair in pairs:
            both = [(pair.prior, pair.pixel), (pair.pixel, pair.prior)]
            texts_ = [Caption(((a, None), (b, None)), "larger than").text(random.Random(0), "{}") for a, b in both]
            margin = scorer.agrees(pair.image(kind), *texts_)
            right.append(margin > 0 if kind == "original" else margin < 0)
        measured[f"size, held-out objects, {kind} picture"] = measured_rate(right, [p.object for p in pairs]).as_dict()
    for kind, other, task in (
        ("presence", 1, "presence: one object more or less"),
        ("presence", 2, "presence: another object in the place of one"),
        ("relation", 1, "relation: left, right, above, below"),
        ("size", 1, "size: any two objects of training"),
        ("binding", 1, "two objects, their colors exchanged"),
    ):
        report(task)
        rng, outcomes, clusters = random.Random(f"evaluate/{kind}"), [], []
        for number in range(n // 2):
            drawn = group(rng, kind)
            captions = [caption.text(rng, "{}") for caption in drawn.captions(rng)]
            images = [drawn.scenes[index].render(84).image for index in (0, other)]
            scores = scorer(images, [captions[0], captions[other]])
            outcomes += [bool(scores[0, 0] > scores[0, 1]), bool(scores[1, 1] > scores[1, 0])]
            clusters += [number, number]
        measured[task] = measured_rate(outcomes, clusters).as_dict()
    return measured


def make(
    folder: Path,
    steps: int = STEPS,
    seed: int = 0,
    report: Callable[[str], None] = print,
    groups: int = GROUPS,
    batch: int = BATCH,
    n: int = PAIRS,
) -> Path:
    """Train as `train` does, export, measure on n pairs a task, write the card; returns the finished folder."""
    train(folder, steps, seed, report, groups, batch)
    finished, part = folder / NAME, folder / f"{NAME}.part"
    shutil.rmtree(part, ignore_errors=True)
    export(folder, part)
    measured = evaluate(load_scorer(str(part)), n, report)
    losses = cards.logged(folder)
    return cards.publish(part, finished, losses, measured, card(steps, seed, losses, measured, groups, batch))


def card(
    steps: int,
    seed: int,
    losses: list[dict[str, Any]],
    measured: dict[str, dict[str, Any]],
    groups: int = GROUPS,
    batch: int = BATCH,
) -> str:
    """The model card, in Markdown."""
    poor = [task for task, value in measured.items() if " of eleven" not in task and value["interval"][0] < POOR]
    curve = [row for row in losses if row["step"] in {20, 100, 200} or row["step"] % 250 == 0 or row is losses[-1]]
    lines = [
        f"# {NAME}", "",
        "A small contrastive model of open_clip's own class, trained from scratch on the drawn world of this project: "
        "it says whether a counterfactual picture shows what it should. It knows 44 drawn objects and nothing else; "
        "for photos take a published model.", "",
        "```python",
        "from vlmsteer_counterfacts.clip import load_scorer",
        "",
        'load_scorer().agrees("picture.png", "a blue strawberry", "a red strawberry")  # above 0: it is blue', "",
        "import open_clip  # or without any code of this project",
        "",
        'model, preprocess = open_clip.create_model_from_pretrained("local-dir:FOLDER")',
        'tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")',
        "```", "",
        f"* Made by `{cards.command(NAME, steps, STEPS, seed)}`: {steps} steps of {batch} pictures or a few more, "
        f"{cards.minutes(losses)} minutes on a {cards.machine()}, after {groups} groups of scenes were drawn once.",
        f"* Input {IMAGE_SIZE} px (larger and smaller pictures are scaled), texts of up to {CONTEXT} tokens. A ResNet "
        "and a causal text tower, open_clip's `ClipLoss`. Weights in half precision.",
        "* Every color that training draws an object in is equally frequent: a judge needs no prior. In each batch "
        "stand scenes that differ in one thing: color, object, what is there, which is larger, who stands where, which "
        "of two has which color.",
        '* A caption names everything that is there: "a tree" fits a tree beside an acorn less well than "a tree and '
        'an acorn" does. Ask about presence in this way.',
        f"* Never seen in training: {', '.join(HELD_OUT_OBJECTS)} in any but their usual color, or against their usual "
        "relative size, nor any caption that says their color; two colors of every other object; the drawing style "
        f'"{HELD_OUT_STYLE}".',
        *([f"* Not to be asked, near chance: {'; '.join(poor)}."] if poor else []),
        "* License: Apache-2.0.", "",
        "## Loss", "", *cards.curve(curve),
        "## Measured on held-out data", "",
        f"`vlmsteer train {NAME}` measures this at its end: how often the right caption is nearer than the wrong one "
        "(or than the other ten colors'). Where nothing is said to be held out, the scenes are new and their objects "
        "those of training. 95 % intervals, bootstrap clustered by object or scene.", "",
        "| task | rate | interval | n |", "|---|---|---|---|", *cards.rates(measured),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
