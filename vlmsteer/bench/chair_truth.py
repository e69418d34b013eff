"""What the images of CHAIR show: COCO's boxes and captions, or a JSON file of ours with the objects by image.

The published scorers keep theirs as a pickle of their own class, which nobody should open; JSON says the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmsteer.bench.chair_words import Vocabulary, coco, mentions, read_vocabulary
from vlmsteer.bench.files import Files, field, read_json, read_rows
from vlmsteer.errors import InputError, did_you_mean

GROUND_TRUTH, SYNONYMS = "chair_ground_truth.json", "synonyms.txt"
SPLITS = ("val2014", "train2014")
BOXES = tuple(f"annotations/instances_{split}.json" for split in SPLITS)


@dataclass(frozen=True)
class Truth:
    """What is known of each image, by `image_key`.

    Attributes:
        words: the objects that count, and the words for them.
        objects: the objects it shows.
        captions: what people wrote about it; the objects in it are shown too.
        files: its file's name, where it is known.
    """

    words: Vocabulary
    objects: dict[str, list[str]]
    captions: dict[str, list[str]]
    files: dict[str, str]


def given(files: Files, name: str) -> Path:
    """A file that a user names: in the folder, else where the command runs."""
    return files.find(name, str(Path(name).absolute()))


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
    files.find(*BOXES)
    words = _vocabulary(files)
    truth = _coco(files, words)
    for key, captions in truth.captions.items():
        truth.objects[key] += [node for caption in captions for node in mentions(caption, way, words).nodes]
    found = {truth.files[key]: sorted(set(objects)) for key, objects in truth.objects.items()}
    Path(path).write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


def read_truth(files: Files, synonyms: str | None = None) -> Truth:
    """The ground truth of a folder: `chair_ground_truth.json`, or else COCO's annotations.

    Args:
        synonyms: the file with the objects and the words for them; by default `synonyms.txt`, COCO's if there is none.

    Raises:
        InputError: if there is no ground truth, or a file is missing or malformed.
    """
    path = files.find(GROUND_TRUTH, *BOXES)
    words = _vocabulary(files, synonyms)
    return _ours(path, words) if path.name == GROUND_TRUTH else _coco(files, words)


def read_list(path: Path) -> list[str]:
    """The ids or names of a list of images: a JSON list of them, or rows with `image_id` or `image`, as captions have.

    Raises:
        InputError: if it cannot be read, an entry is neither number nor name, or an image stands there twice.
    """
    try:
        values = read_json(path)
    except InputError:
        values = None  # JSON lines, or not readable as rows either
    if not isinstance(values, list) or any(isinstance(one, dict) for one in values):
        values = [_image(row, f"Row {number} of {str(path)!r}") for number, row in enumerate(read_rows(path), 1)]
    seen: dict[str, str] = {}
    for number, value in enumerate(values, 1):
        where = f"Image {number} of {str(path)!r}"
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            raise InputError(f"{where} is {value!r}; an image is a number or a name.")
        if image_key(value) in seen:
            raise InputError(f"{where}, {value!r}, stands there twice.")
        seen[image_key(value)] = str(value)
    return list(seen.values())


def _image(row: dict[str, Any], where: str) -> Any:
    return field(row, "image" if "image" in row and "image_id" not in row else "image_id", where, (int, str))


def _vocabulary(files: Files, name: str | None = None) -> Vocabulary:
    if name is None and not files.has(SYNONYMS):
        return coco()
    return read_vocabulary(given(files, name or SYNONYMS))


def _ours(path: Path, words: Vocabulary) -> Truth:
    rows, known, truth = read_json(path), set(words.nodes.values()), Truth(words, {}, {}, {})
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


def _coco(files: Files, words: Vocabulary) -> Truth:
    truth = Truth(words, {}, {}, {})
    for split in SPLITS:
        if files.has(f"annotations/instances_{split}.json"):
            _read_split(files, split, truth)
    return truth


def _read_split(files: Files, split: str, truth: Truth) -> None:
    """Add what COCO's two files of a split say."""
    instances, people = (files.find(f"annotations/{kind}_{split}.json") for kind in ("instances", "captions"))
    boxes, texts = read_json(instances), read_json(people)
    nodes: dict[int, str] = {}
    for where, row in _rows(boxes, "categories", instances):
        name = field(row, "name", where)
        if name not in truth.words.nodes:
            raise InputError(f"{where} is {name!r}, which is not in the list of synonyms.")
        nodes[field(row, "id", where, int)] = truth.words.nodes[name]
    for where, row in _rows(boxes, "images", instances):
        key = str(field(row, "id", where, int))
        if key in truth.objects:
            raise InputError(f"{where} has the id {key} of an image before it.")
        truth.files[key] = field(row, "file_name", where)
        truth.objects[key], truth.captions[key] = [], []
    for where, row in _rows(boxes, "annotations", instances):
        key, category = str(field(row, "image_id", where, int)), field(row, "category_id", where, int)
        if key not in truth.objects or category not in nodes:
            raise InputError(f"{where} is of image {key} and category {category}, of which one is not listed.")
        if nodes[category] not in truth.objects[key]:
            truth.objects[key].append(nodes[category])
    for where, row in _rows(texts, "annotations", people):
        key = str(field(row, "image_id", where, int))
        if key not in truth.captions:
            raise InputError(f"{where} is of image {key}, which {instances.name} does not list.")
        truth.captions[key].append(field(row, "caption", where))


def _rows(value: Any, name: str, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of one list in an annotation file, each with what it is called in messages."""
    if not isinstance(value, dict):
        raise InputError(f"{str(path)!r} is not a COCO annotation file (a JSON object with images and annotations).")
    for number, row in enumerate(field(value, name, repr(str(path)), list), 1):
        where = f"Row {number} of {name!r} in {str(path)!r}"
        if not isinstance(row, dict):
            raise InputError(f"{where} is {row!r}, not a JSON object.")
        yield where, row
