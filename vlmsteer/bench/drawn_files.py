"""The drawn world's own test files, in the formats that POPE, CHAIR, AMBER, MATS and Visual CounterFact publish.

The loaders of the public files read these too, so the whole matrix runs on the bundled models without a download. The
scenes are made as those that these models were trained on, from seeds that nothing was learned or chosen on; every
benchmark but the last asks about the same ones.
"""

from __future__ import annotations

import os
import random
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from vlmsteer import __version__
from vlmsteer.bench.benchmark import Benchmark
from vlmsteer.bench.drawn_formats import ASKED, WORLD, Shown, amber, chair, mats, pope
from vlmsteer.bench.files import Files, cache_folder
from vlmsteer.bench.pairs import PIXELS, SPLITS, Split, drawn_pairs, png
from vlmsteer.errors import InputError, did_you_mean
from vlmsteer.training.mix import group
from vlmsteer.training.splits import TRAIN_STYLES
from vlmsteer_counterfacts.dataset import save_pairs
from vlmsteer_counterfacts.draw import group_scene
from vlmsteer_counterfacts.facts import facts
from vlmsteer_counterfacts.paint import STYLES

VERSION = 1  # counted up whenever the same call would write other files
IMAGES = 200
README = """Drawn test files of vlmsteer {version} (version {files}).
{images} scenes of the {split!r} split, seed {seed}, style {style}.

pope/   coco_pope_random.json, _popular, _adversarial: six questions an image, half of them yes (POPE's format)
chair/  chair_ground_truth.json (image: objects), synonyms.txt (LisaAnne's format), images.jsonl
amber/  query_*.json, annotations.json, relation.json, safe_words.txt, metrics.txt (AMBER's; no actions are drawn)
mats/   vsr.json, absurd.json, patching.json (MATS' format; left, right, above and below)
vcf/    data/color-*.parquet, data/size-*.parquet (the layout of Visual CounterFact)

The pictures are drawn by vlmsteer_counterfacts, {pixels} x {pixels} pixels; every scene shows three to six different
objects in their usual colors. "Popular" and "co-occurring" are counted over {world} scenes of the same kind. No command
that learns sees these scenes. vlmsteer.bench.drawn_files.write_drawn wrote them; the same call writes the same bytes.
"""


def drawn_folder() -> Path:
    """The default files, written into the cache on the first call: a folder for each benchmark.

    When several processes start at once each writes its own, and the first is kept.

    Raises:
        InputError: if the cache cannot be written.
    """
    folder = cache_folder() / f"drawn-{__version__}-{VERSION}"
    if not folder.is_dir():
        try:
            write_drawn(folder)
        except InputError as error:
            if not folder.is_dir():  # else another process was faster
                raise InputError(
                    f"{error} The cache is where XDG_CACHE_HOME says; or give files with --data."
                ) from error
    return folder


def located(benchmark: Benchmark, data: Path | None = None, images: Sequence[Path] = ()) -> Files:
    """Where a benchmark's files are: in DATA/NAME or DATA, by default among the drawn ones.

    Args:
        images: further folders in which images are looked for.

    Raises:
        InputError: if the drawn world has no files for it, and it is not on the hub.
    """
    drawn = data is None
    if data is None:
        data = drawn_folder()
    places = [data / one for one in (benchmark.name, benchmark.name.partition("-")[0])]  # amber-g and -d share one
    place = next((one for one in places if one.is_dir()), None)
    if place is None and drawn:
        if benchmark.hub is None:
            raise InputError(
                f"There are no drawn files for {benchmark.name}; give the folder of the published ones with --data."
            )
        place = places[0]
    return Files(place or data, images)


def write_drawn(
    folder: str | Path, images: int = IMAGES, seed: int = 0, split: Split = "test", style: str | None = None
) -> Path:
    """Write the files of every benchmark into subfolders `pope`, `chair`, `amber`, `mats` and `vcf`; all or nothing.

    Args:
        folder: is made; if it is there it must be empty.
        images: scenes; Visual CounterFact has a quarter as many pairs of colors and of sizes.
        seed: of the scenes. Splits and seeds have no scene in common.
        split: "test", or another for trying things out.
        style: one drawing style for all instead of those that the bundled models know.

    Returns:
        The folder.

    Raises:
        InputError: for an unknown split or style, no images, or a folder that is not empty or cannot be written.
    """
    folder = Path(folder).expanduser()
    if split not in SPLITS:
        raise InputError(f"There is no split {split!r}{did_you_mean(split, SPLITS)}.")
    if style not in (None, *STYLES):
        raise InputError(f"There is no drawing style {style!r}{did_you_mean(str(style), STYLES)}.")
    if images < 1:
        raise InputError(f"At least one image is needed, not {images}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{str(folder)!r} is there already; give a new or an empty folder.")
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        _fill(part, images, seed, split, style)
        os.rename(part, folder)
    except OSError as error:
        raise InputError(f"The drawn files cannot be written to {str(folder)!r}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _fill(folder: Path, images: int, seed: int, split: Split, style: str | None) -> None:
    shown = [_shown(number, seed, split, style) for number in range(1, images + 1)]
    for name, make in (("pope", pope), ("chair", chair), ("amber", amber), ("mats", mats)):
        pictures = folder / name / "images"
        pictures.mkdir(parents=True)
        for one in shown:
            (pictures / one.file).write_bytes(one.picture)
        for file, text in make(shown, random.Random(f"files/{name}/{split}/{seed}")).items():
            (folder / name / file).write_text(text, encoding="utf-8")
    count = max(1, images // 4)
    pairs = [pair for one in ("color", "size") for pair in drawn_pairs(one, split, count, seed, style=style)]
    save_pairs(pairs, folder / "vcf")
    told = {"version": __version__, "files": VERSION, "images": images, "split": split, "seed": seed}
    told |= {"style": style or " or ".join(TRAIN_STYLES), "pixels": PIXELS, "world": WORLD}
    (folder / "README.txt").write_text(README.format(**told), encoding="utf-8")


def _shown(number: int, seed: int, split: str, style: str | None) -> Shown:
    rng = random.Random(f"files/{split}/{seed}/{number}")
    names = group(rng)
    while len(names) < ASKED:
        names = group(rng)
    scene = group_scene([(name, facts()[name].color) for name in names], rng, style or rng.choice(TRAIN_STYLES))
    objects = tuple(item.object for item in sorted(scene.items, key=lambda item: item.center[0]))
    return Shown(f"drawn_{split}_{number:06d}.png", scene, objects, png(scene.render(PIXELS).image))
