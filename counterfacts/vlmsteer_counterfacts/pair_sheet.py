"""A set on one page: each pair's original beside its counterfactual, with both answers, and why it was rejected."""

from __future__ import annotations

import textwrap
from pathlib import Path

from PIL import Image, ImageDraw

from vlmsteer.errors import InputError
from vlmsteer_counterfacts.record import Record, load_records
from vlmsteer_counterfacts.sheet import FAINT, INK, MARGIN, PAPER, font

SIDE, GAP, COLUMNS, SMALL = 150, 22, 4, 13
WORDS = {
    "color": "{object}: {prior} or {pixel}?",
    "size": "which is larger, {prior} or {pixel}?",
    "presence": "is there a {object}? {prior} or {pixel}",
    "relation": "{object}: {prior} or {pixel}?",
    "texture": "{object}: {prior} or {pixel}?",
}


def pair_sheet(folder: str | Path, count: int = 24) -> Image.Image:
    """At most `count` pairs, taken evenly from the whole set.

    Raises:
        InputError: the folder holds no set, or an empty one.
    """
    records = load_records(folder)
    if not records:
        raise InputError(f"{str(folder)!r} holds no pairs.")
    chosen = [records[index * len(records) // min(count, len(records))] for index in range(min(count, len(records)))]
    columns = min(COLUMNS, len(chosen))
    reasons = max(len(_lines(record)) for record in chosen)
    width, height = 2 * SIDE + 4, SIDE + round((reasons + 0.9) * 1.35 * SMALL)
    rows = -(-len(chosen) // columns)
    size = 2 * MARGIN + columns * (width + GAP) - GAP, 2 * MARGIN + rows * (height + GAP) - GAP
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, record in enumerate(chosen):
        left = MARGIN + number % columns * (width + GAP)
        top = MARGIN + number // columns * (height + GAP)
        for place, which in enumerate(("original", "counterfactual")):
            picture = record.picture(which)
            picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            at = left + place * (SIDE + 4) + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2
            sheet.paste(picture, at)
        for line, text in enumerate(_lines(record)):
            at = left, top + SIDE + 6 + round(1.35 * SMALL * line)
            draw.text(at, text, FAINT if line else INK, font(SMALL), anchor="la")
    return sheet


def _lines(record: Record) -> list[str]:
    said = {name: getattr(record, name) for name in ("object", "prior", "pixel")}
    return [
        WORDS[record.attribute].format(**said),
        *(line for text in record.reasons for line in textwrap.wrap(text, 46)),
    ]
