"""The drawn world on two pages: every object with its facts, styles and other colors; scenes with their exact boxes.

The pages are for looking: what a model was trained on should be seen before its numbers are believed.
"""

from __future__ import annotations

import itertools
import random
from functools import cache

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from vlmsteer.errors import InputError
from vlmsteer_counterfacts import palette
from vlmsteer_counterfacts.draw import Item, Picture, Scene, group_scene, size_scene
from vlmsteer_counterfacts.facts import Fact, facts, size_pairs
from vlmsteer_counterfacts.paint import STYLES, Pose

PAPER, INK, FAINT, RULE, TILE = (255, 255, 255), (28, 31, 36), (104, 111, 121), (214, 218, 224), (212, 218, 226)
MARKS = ((214, 39, 40), (23, 103, 189), (24, 132, 60), (122, 50, 173), (196, 92, 0), (0, 122, 135))
MARGIN, GAP = 48, 28
SHOWN = len(STYLES) - 1  # thumbnails in a column: the styles that the large picture does not show, and as many colors


def contact_sheet(columns: int = 4, pixels: int = 216) -> Image.Image:
    """Every object in its usual color with its facts, then in the other styles and in some counterfactual colors.

    Args:
        columns: objects in a row, 2 to 8.
        pixels: side of an object's large picture, 96 to 512; with the defaults the sheet is 1600 pixels wide.

    Raises:
        InputError: if either is out of range.
    """
    if not 2 <= columns <= 8:
        raise InputError(f"A contact sheet has 2 to 8 columns, not {columns}.")
    if not 96 <= pixels <= 512:
        raise InputError(f"The pictures of a contact sheet are 96 to 512 pixels wide, not {pixels}.")
    text, thumb = _sizes(pixels)
    cell_width, cell_height = pixels + 8 + 2 * thumb + 5, pixels + round(2.9 * text)
    groups: dict[str, list[Fact]] = {}
    for fact in facts().values():
        groups.setdefault(fact.group, []).append(fact)
    rows = sum(-(-len(members) // columns) for members in groups.values())
    width = 2 * MARGIN + columns * cell_width + (columns - 1) * GAP
    intro = (
        f"{len(facts())} objects in their usual color ({STYLES[0]} style) with their usual size; beside each, in the "
        f"styles {', '.join(STYLES[1:])} (from the top), and in {SHOWN} counterfactual colors."
    )
    lines = _wrapped(intro, text, width - 2 * MARGIN)
    head, band = MARGIN + 2 * text + round(1.4 * text * (len(lines) + 1)), round(3.2 * text)
    sheet = Image.new("RGB", (width, head + len(groups) * band + rows * (cell_height + GAP) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), "The drawn world", INK, font(2 * text), anchor="la")
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 2.7 * text + 1.4 * text * number), line, FAINT, font(text), anchor="la")
    top = head
    for group, members in groups.items():
        draw.line([(MARGIN, top), (width - MARGIN, top)], RULE, 2)
        draw.text((MARGIN, top + text), group.capitalize(), INK, font(1.4 * text), anchor="la")
        top += band
        for number, fact in enumerate(members):
            row, column = divmod(number, columns)
            corner = (MARGIN + column * (cell_width + GAP), top + row * (cell_height + GAP))
            _object_cell(sheet, fact, corner, pixels)
        top += -(-len(members) // columns) * (cell_height + GAP)
    return sheet


def scenes_sheet(seed: int = 0, pixels: int = 482) -> Image.Image:
    """Scenes of one to six objects and scenes that compare two sizes; each object's mask and box are outlined.

    Args:
        seed: fixes which scenes are drawn.
        pixels: side of a picture, 200 to 512; with the default the sheet is about 1600 pixels wide.

    Raises:
        InputError: if `pixels` is out of range.
    """
    if not 200 <= pixels <= 512:
        raise InputError(f"The pictures of a sheet of scenes are 200 to 512 pixels wide, not {pixels}.")
    rng = random.Random(seed)
    text, columns = max(11, round(pixels / 27)), 3
    parts = (
        ("Groups: one to six objects", [_group(count, rng) for count in range(1, 7)]),
        ("Sizes: one object drawn larger than the other", [_size(usual, rng) for usual in (True, False, False)]),
    )
    head, band, cell = MARGIN + round(5.5 * text), round(3.4 * text), pixels + round(3.4 * text)
    rows = sum(-(-len(scenes) // columns) for _, scenes in parts)
    size = (2 * MARGIN + columns * pixels + (columns - 1) * GAP, head + len(parts) * band + rows * cell + MARGIN)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), f"Scenes of the drawn world, seed {seed}", INK, font(2 * text), anchor="la")
    legend = "Outlined: the mask of each object and the box around it, both exact."
    draw.text((MARGIN, MARGIN + 2.7 * text), legend, FAINT, font(text), anchor="la")
    top = head
    for title, scenes in parts:
        draw.line([(MARGIN, top), (size[0] - MARGIN, top)], RULE, 2)
        draw.text((MARGIN, top + text), title, INK, font(1.4 * text), anchor="la")
        top += band
        for number, (scene, caption) in enumerate(scenes):
            row, column = divmod(number, columns)
            x, y = MARGIN + column * (pixels + GAP), top + row * cell
            sheet.paste(_outlined(scene, scene.render(pixels), text), (x, y))
            for line, words in enumerate(_wrapped(caption, text, pixels)[:2]):
                draw.text((x, y + pixels + 0.5 * text + 1.3 * text * line), words, INK, font(text), anchor="la")
        top += -(-len(scenes) // columns) * cell
    return sheet


def font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=round(size))


def _wrapped(text: str, size: int, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _sizes(pixels: int) -> tuple[int, int]:
    """The height of small text and the side of a thumbnail that go with large pictures of `pixels`."""
    text = max(11, round(pixels / 12))
    return text, (pixels + round(2.9 * text) - 5 * (SHOWN - 1)) // SHOWN


@cache
def _upright() -> int:
    """The first seed whose pose is hardly turned and not mirrored."""
    poses = ((seed, Pose.random(random.Random(seed + 1))) for seed in itertools.count())
    return next(seed for seed, pose in poses if not pose.mirrored and abs(pose.angle) < 1.5)


def _portrait(name: str, color: str, style: str, pixels: int) -> Image.Image:
    item = Item(name, color, (0.5, 0.5), 0.96, _upright())
    drawn = max(64, pixels if pixels > 128 else 2 * pixels)
    image = Scene((item,), style, "plain", (TILE, TILE), 0).render(min(drawn, 512)).image
    return image.resize((pixels, pixels), Image.Resampling.LANCZOS) if image.width != pixels else image


def _object_cell(sheet: Image.Image, fact: Fact, corner: tuple[int, int], pixels: int) -> None:
    left, top = corner
    text, thumb = _sizes(pixels)
    sheet.paste(_portrait(fact.name, fact.color, STYLES[0], pixels), corner)
    draw = ImageDraw.Draw(sheet)
    draw.text((left, top + pixels + 0.4 * text), fact.name, INK, font(1.2 * text), anchor="la")
    said = f"{fact.color}, {length(fact.size_m)}"
    draw.text((left, top + pixels + 1.9 * text), said, FAINT, font(text), anchor="la")
    others = random.Random(fact.name).sample([color for color in palette.COLORS if color != fact.color], SHOWN)
    looks = ([(fact.color, style) for style in STYLES[1:]], [(color, STYLES[0]) for color in others])
    for column, entries in enumerate(looks):
        for row, (color, style) in enumerate(entries):
            place = (left + pixels + 8 + column * (thumb + 5), top + row * (thumb + 5))
            sheet.paste(_portrait(fact.name, color, style, thumb), place)


def length(meters: float) -> str:
    """A length in the unit that people would use for it: "7 mm", "19 cm", "1.3 m"."""
    if meters < 0.02:
        return f"{meters * 1000:g} mm"
    return f"{meters * 100:g} cm" if meters < 1 else f"{meters:g} m"


def _group(count: int, rng: random.Random) -> tuple[Scene, str]:
    table = facts()
    groups: dict[str, list[str]] = {}
    for fact in table.values():
        groups.setdefault(fact.group, []).append(fact.name)
    names = rng.sample(rng.choice([members for members in groups.values() if len(members) >= count]), count)
    contents = [(name, table[name].color) for name in names]
    changed = rng.randrange(count)
    others = [color for color in palette.COLORS if color != table[names[changed]].color]
    contents[changed] = (names[changed], rng.choice(others))
    return group_scene(contents, rng, rng.choice(STYLES)), ", ".join(f"{color} {name}" for name, color in contents)


def _size(usual: bool, rng: random.Random) -> tuple[Scene, str]:
    table = facts()
    larger, smaller = rng.choice(size_pairs(table))
    if not usual:
        larger, smaller = smaller, larger
    scene = size_scene((larger, table[larger].color), (smaller, table[smaller].color), rng, rng.choice(STYLES))
    return scene, f"{larger} drawn larger than {smaller}: {'as usual' if usual else 'counterfactual'}"


def _outlined(scene: Scene, picture: Picture, text: int) -> Image.Image:
    image = picture.image.copy()
    draw = ImageDraw.Draw(image)
    for item, mask, box, color in zip(scene.items, picture.masks, picture.boxes, MARKS, strict=False):
        edge = ImageChops.subtract(mask, mask.filter(ImageFilter.MinFilter(5)))
        image.paste(color, mask=edge)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=color, width=1)
        face = font(0.85 * text)
        wide, high = round(face.getlength(item.object)) + 8, text + 4
        x = min(box[0], image.width - wide)
        y = box[1] - high if box[1] >= high else min(box[3], image.height - high)
        draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
        draw.text((x + wide / 2, y + high / 2), item.object, PAPER, face, anchor="mm")
    return image
