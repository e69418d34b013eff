"""What the images of CHAIR show: COCO's boxes and captions, or a JSON file of ours with the objects by image.

The published scorers keep theirs as a pickle of their own class, which nobody should open; JSON says the same.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vlmsteer.bench.chair_words import Vocabulary, coco, mentions, read_vocabulary
from vlmsteer.bench.files import Files, field, read_json, read_rows
from vlmsteer.errors import InputError, did_you_mean

GROUND_TRUTH, SYNONYMS = "chair_ground_truth.json", "synonyms.txt"
SPLITS = ("val2014", "train2014")


@dataclass(frozen=True)
class Truth:
    """What is known of each image, by `image_key`.

    Attributes:
        objects: the objects it shows.
        captions: what people wrote about it; the objects in it are shown too.
        files: its file's name, where it is known.
    """

    objects: dict[str, list[str]]
    captions: dict[str, list[str]]
    files: dict[str, str]


def vocabulary(files: Files) -> Vocabulary:
    """The objects of a folder: those of its `synonyms.txt`, COCO's if there is none."""
    return read_vocabulary(files.folder / SYNONYMS) if files.has(SYNONYMS) else coco()


def image_key(name: str | int) -> str:
    """What all names of an image have in common: for COCO's the number, for others the name itself.

    Example:
        >>> image_key(1290), image_key("COCO_val2014_000000001290.jpg"), image_key("000000001290.jpg")
        ('1290', '1290', '1290')
    """
    number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)(?:\.jpe?g)?", str(name))
    return number[1] if number else str(name)


def write_ground_truth(folder: str | Path, path: str | Path, way: str = "pattern") -> None:
    """Write COCO's ground truth as `chair_ground_truth.json`: {image id: objects}, boxes and captions together.

    Args:
        folder: with `annotations/instances_*2014.json` and `captions_*2014.json`, of both splits or one.
        path: the file to write.
        way: how objects are found in people's captions ("pattern", "wordnet", "strict"); scorers of another way then
            use this one's ground truth. With COCO's own files each scorer finds its own, as the references do.

    Raises:
        InputError: if COCO's files are missing or malformed.
    """
    files = Files(folder)
    words = vocabulary(files)
    truth = _coco(files, words)
    for key, captions in truth.captions.items():
        truth.objects[key] += [node for caption in captions for node in mentions(caption, way, words).nodes]
    found = {truth.files[key]: sorted(set(objects)) for key, objects in truth.objects.items()}
    Path(path).write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


def read_truth(files: Files, words: Vocabulary) -> Truth:
    """The ground truth of a folder: `chair_ground_truth.json`, or else COCO's annotations.

    Raises:
        InputError: if there is neither, or it is malformed.
    """
    if not files.has(GROUND_TRUTH):
        return _coco(files, words)
    path = files.find(GROUND_TRUTH)
    rows, known, truth = read_json(path), set(words.nodes.values()), Truth({}, {}, {})
    if not isinstance(rows, dict):
        raise InputError(f"{str(path)!r} is not a JSON object of image: [objects].")
    for name, nodes in rows.items():
        if not isinstance(nodes, list) or not all(isinstance(node, str) for node in nodes):
            raise InputError(f"{str(path)!r} gives {nodes!r} for {name!r}, not a list of objects.")
        unknown = sorted(set(nodes) - known)
        if unknown:
            raise InputError(
                f"{str(path)!r} has an unknown object {unknown[0]!r} for {name!r}{did_you_mean(unknown[0], known)}."
            )
        key = image_key(name)
        if key in truth.objects:
            raise InputError(f"{str(path)!r} names the image {key} twice.")
        truth.objects[key] = nodes
        if "." in name:
            truth.files[key] = name
    return truth


def read_list(path: Path) -> list[str]:
    """The ids or names of a list of images: JSON numbers or texts, or objects with `image_id` or `image`.

    Raises:
        InputError: if it cannot be read, an entry is neither number nor name, or an image stands there twice.
    """
    text = path.read_text(encoding="utf-8-sig")
    plain = text.lstrip().startswith("[") and read_json(path)
    if plain and not any(isinstance(one, dict) for one in plain):
        values = [(f"Entry {number} of {str(path)!r}", one) for number, one in enumerate(plain, 1)]
    else:
        values = []
        for number, row in enumerate(read_rows(path), 1):
            where = f"Row {number} of {str(path)!r}"
            name = next((name for name in ("image_id", "image") if name in row), "image_id")
            values.append((where, field(row, name, where, (int, str))))
    seen: dict[str, str] = {}
    for where, value in values:
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise InputError(f"{where} is {value!r}; an image is a number or a name.")
        if image_key(value) in seen:
            raise InputError(f"{where} names the image {value!r} again.")
        seen[image_key(value)] = str(value)
    return list(seen.values())


def _coco(files: Files, words: Vocabulary) -> Truth:
    truth = Truth({}, {}, {})
    splits = [split for split in SPLITS if files.has(f"annotations/instances_{split}.json")]
    if not splits:
        files.find(GROUND_TRUTH, "annotations/instances_val2014.json")
    for split in splits:
        instances, people = (files.find(f"annotations/{kind}_{split}.json") for kind in ("instances", "captions"))
        boxes, texts = _rows(instances), _rows(people)
        nodes: dict[int, str] = {}
        for row in boxes("categories"):
            name = field(row, "name", f"A category of {str(instances)!r}")
            if name not in words.nodes:
                raise InputError(f"{str(instances)!r} has a category {name!r} that is not in the list of synonyms.")
            nodes[field(row, "id", f"The category {name!r} of {str(instances)!r}", int)] = words.nodes[name]
        for number, row in enumerate(boxes("images"), 1):
            where = f"Image {number} of {str(instances)!r}"
            key = str(field(row, "id", where, int))
            truth.files[key] = field(row, "file_name", where)
            truth.objects[key], truth.captions[key] = [], []
        for number, row in enumerate(boxes("annotations"), 1):
            where = f"Annotation {number} of {str(instances)!r}"
            key, category = str(field(row, "image_id", where, int)), field(row, "category_id", where, int)
            if key not in truth.objects or category not in nodes:
                raise InputError(f"{where} is of image {key} and category {category}, of which one is not listed.")
            if nodes[category] not in truth.objects[key]:
                truth.objects[key].append(nodes[category])
        for number, row in enumerate(texts("annotations"), 1):
            where = f"Caption {number} of {str(people)!r}"
            key = str(field(row, "image_id", where, int))
            if key not in truth.captions:
                raise InputError(f"{where} is of image {key}, which {instances.name} does not list.")
            truth.captions[key].append(field(row, "caption", where))
    return truth


def _rows(path: Path) -> Any:
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{str(path)!r} is not a COCO annotation file (a JSON object with images and annotations).")
    return partial(field, value, where=repr(str(path)), kind=list)
