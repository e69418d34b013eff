"""Draws docs/recolored.png: photos of scikit-image, recolored by a box and GrabCut. Run: python docs/recolored.py"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops
from skimage import data

from vlmsteer_counterfacts.masks import from_box
from vlmsteer_counterfacts.recolor import recolor

PHOTOS = {
    "coffee": ([(76, 70, 479, 388)], ("blue", "green")),
    "chelsea": ([(132, 82, 207, 150), (296, 104, 345, 166)], ("blue", "purple")),
    "rocket": ([(298, 122, 346, 410)], ("red", "yellow")),
    "astronaut": ([(16, 195, 375, 512)], ("blue", "black")),
}
WIDTH, GAP = 300, 8

rows = []
for name, (boxes, colors) in PHOTOS.items():
    photo = Image.fromarray(getattr(data, name)())
    mask = from_box(photo, boxes[0])
    for box in boxes[1:]:
        mask = ImageChops.lighter(mask, from_box(photo, box))
    shown = [photo, mask.convert("RGB"), *(recolor(photo, mask, color) for color in colors)]
    rows.append([picture.resize((WIDTH, round(WIDTH * photo.height / photo.width))) for picture in shown])
height = sum(row[0].height + GAP for row in rows) - GAP
sheet = Image.new("RGB", (4 * WIDTH + 3 * GAP, height), "white")
top = 0
for row in rows:
    for column, picture in enumerate(row):
        sheet.paste(picture, (column * (WIDTH + GAP), top))
    top += row[0].height + GAP
sheet.save(Path(__file__).with_name("recolored.png"))
