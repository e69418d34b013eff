"""A small vector canvas: shapes in the unit square, a pose, and several rendering styles.

Every shape becomes a polygon with a fill that is either `BODY` (the part that carries the object's color) or a fixed
accent. Keeping polygons until the end lets one drawing be posed, restyled and masked exactly: the body mask is what a
color counterfactual may touch, the object mask is everything drawn.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from vlmsteer_counterfacts.palette import RGB

BODY = "body"
Point = tuple[float, float]


class Shape(NamedTuple):
    """A filled polygon. `shade` < 1 darkens the fill, > 1 lightens it."""

    points: list[Point]
    fill: str
    shade: float
    outlined: bool


@dataclass(frozen=True)
class Pose:
    """How an object stands in its box: mirrored, turned (degrees), and stretched horizontally."""

    mirrored: bool = False
    angle: float = 0.0
    stretch: float = 1.0

    @staticmethod
    def random(rng: random.Random) -> Pose:
        return Pose(rng.random() < 0.5, rng.uniform(-14, 14), rng.uniform(0.9, 1.1))

    def apply(self, points: Sequence[Point]) -> list[Point]:
        turn = math.radians(self.angle)
        cos, sin = math.cos(turn), math.sin(turn)
        flip = -1.0 if self.mirrored else 1.0
        placed = []
        for x, y in points:
            dx, dy = (x - 0.5) * flip * self.stretch, y - 0.5
            placed.append((0.5 + dx * cos - dy * sin, 0.5 + dx * sin + dy * cos))
        return placed


class Painter:
    """Collects shapes. Coordinates run from (0, 0) top left to (1, 1) bottom right; an object should fill it."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self.shapes: list[Shape] = []
        self.rng = rng or random.Random(0)

    def polygon(self, points: Sequence[Point], fill: str = BODY, shade: float = 1.0, outlined: bool = True) -> None:
        """A straight-edged polygon."""
        self.shapes.append(Shape(list(points), fill, shade, outlined))

    def blob(self, points: Sequence[Point], fill: str = BODY, shade: float = 1.0, outlined: bool = True) -> None:
        """A smooth closed curve through the points (Catmull-Rom)."""
        self.polygon(smooth(points, closed=True), fill, shade, outlined)

    def ellipse(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        angle: float = 0.0,
        fill: str = BODY,
        shade: float = 1.0,
        outlined: bool = True,
    ) -> None:
        """An ellipse turned by `angle` degrees."""
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        ring = [(rx * math.cos(t * math.tau / 40), ry * math.sin(t * math.tau / 40)) for t in range(40)]
        self.polygon([(cx + x * cos - y * sin, cy + x * sin + y * cos) for x, y in ring], fill, shade, outlined)

    def rect(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        radius: float = 0.0,
        fill: str = BODY,
        shade: float = 1.0,
        outlined: bool = True,
    ) -> None:
        """A rectangle, its corners rounded by `radius`."""
        if radius <= 0:
            self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], fill, shade, outlined)
            return
        corners = [
            (x1 - radius, y0 + radius, -90),
            (x1 - radius, y1 - radius, 0),
            (x0 + radius, y1 - radius, 90),
            (x0 + radius, y0 + radius, 180),
        ]
        points = [
            (
                cx + radius * math.cos(math.radians(start + step * 18)),
                cy + radius * math.sin(math.radians(start + step * 18)),
            )
            for cx, cy, start in corners
            for step in range(6)
        ]
        self.polygon(points, fill, shade, outlined)

    def line(
        self,
        points: Sequence[Point],
        width: float,
        fill: str = BODY,
        shade: float = 1.0,
        curved: bool = False,
        taper: float = 1.0,
        outlined: bool = True,
    ) -> None:
        """A stroke of `width`, its end `taper` times as wide as its start; `curved` smooths it through the points."""
        path = smooth(points, closed=False) if curved else list(points)
        left, right = [], []
        for i, (x, y) in enumerate(path):
            (ax, ay), (bx, by) = path[max(i - 1, 0)], path[min(i + 1, len(path) - 1)]
            length = math.hypot(bx - ax, by - ay) or 1.0
            half = 0.5 * width * (1 + (taper - 1) * i / max(len(path) - 1, 1))
            nx, ny = -(by - ay) / length * half, (bx - ax) / length * half
            left.append((x + nx, y + ny))
            right.append((x - nx, y - ny))
        self.polygon(left + right[::-1], fill, shade, outlined)

    def ring(self, cx: float, cy: float, radius: float, width: float, fill: str = BODY, shade: float = 1.0) -> None:
        """A circle drawn as a stroke."""
        points = [
            (cx + radius * math.cos(t * math.tau / 36), cy + radius * math.sin(t * math.tau / 36)) for t in range(37)
        ]
        self.line(points, width, fill, shade, outlined=False)


def smooth(points: Sequence[Point], closed: bool, steps: int = 6) -> list[Point]:
    """A Catmull-Rom curve through the points, sampled `steps` times a segment."""
    count = len(points)

    def at(i: int) -> Point:
        return points[i % count] if closed else points[min(max(i, 0), count - 1)]

    curve: list[Point] = []
    for i in range(count if closed else count - 1):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = at(i - 1), at(i), at(i + 1), at(i + 2)
        for step in range(steps):
            t = step / steps
            weights = (-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3)
            curve.append(
                (
                    0.5 * (weights[0] * ax + weights[1] * bx + weights[2] * cx + weights[3] * dx),
                    0.5 * (weights[0] * ay + weights[1] * by + weights[2] * cy + weights[3] * dy),
                )
            )
    return curve if closed else [*curve, points[-1]]


def tint(color: RGB, factor: float) -> RGB:
    """`color` darkened (factor < 1) or moved towards white (factor > 1)."""
    if factor <= 1:
        return tuple(round(channel * factor) for channel in color)  # pyright: ignore[reportReturnType]
    return tuple(round(channel + (255 - channel) * min(factor - 1, 1)) for channel in color)  # pyright: ignore[reportReturnType]


def parse(fill: str) -> RGB:
    """'#rrggbb' as three bytes."""
    return int(fill[1:3], 16), int(fill[3:5], 16), int(fill[5:7], 16)


STYLES = ("flat", "outline", "shaded", "textured", "crayon")


def render(
    shapes: Sequence[Shape],
    color: RGB,
    pose: Pose,
    style: str,
    pixels: int,
    rng: random.Random,
    supersample: int = 3,
) -> tuple[Image.Image, Image.Image]:
    """Paint shapes into a transparent square.

    Returns:
        The RGBA picture and the body mask ("L", 255 where the object's own color shows, outlines included, less where
        it covers part of a pixel, 0 exactly where the color has no influence), both `pixels` wide.
    """
    side = pixels * supersample
    canvas = Image.new("RGB", (side, side), color)
    alpha = Image.new("L", (side, side), 0)
    body = Image.new("L", (side, side), 0)
    on_canvas, on_alpha, on_body = ImageDraw.Draw(canvas), ImageDraw.Draw(alpha), ImageDraw.Draw(body)
    # A little inside the square, so that a turned object is not cut off.
    scale, shift = side * 0.86, side * 0.07
    edge = max(1, round(side / 85))
    for shape in shapes:
        points = [(shift + x * scale, shift + y * scale) for x, y in pose.apply(shape.points)]
        fill = tint(color if shape.fill == BODY else parse(shape.fill), shape.shade)
        on_canvas.polygon(points, fill=fill)
        on_alpha.polygon(points, fill=255)
        on_body.polygon(points, fill=255 if shape.fill == BODY else 0)
        if style == "outline" and shape.outlined:
            dark = tint(fill, 0.35) if max(fill) > 70 else (110, 110, 115)
            on_canvas.line([*points, points[0]], fill=dark, width=edge, joint="curve")
            on_alpha.line([*points, points[0]], fill=255, width=edge)
            on_body.line([*points, points[0]], fill=255 if shape.fill == BODY else 0, width=edge, joint="curve")
    light, cover = _surface(style, side, rng)
    picture = np.asarray(canvas, np.float32)
    if light is not None:
        picture = np.where(light < 1, picture * light, picture + (255 - picture) * (light - 1)).clip(0, 255)
    opacity = np.asarray(alpha, np.float32) * cover if cover is not None else np.asarray(alpha, np.float32)
    rgba = np.dstack([picture, opacity]).round().astype(np.uint8)
    size = (pixels, pixels)
    body = ImageChops.darker(body, alpha)
    # Premultiplied while shrinking, so that the hidden canvas color does not bleed into edges.
    shrunk = Image.fromarray(rgba, "RGBA").convert("RGBa").resize(size, Image.Resampling.BOX).convert("RGBA")
    return shrunk, body.resize(size, Image.Resampling.BOX)


def _surface(style: str, side: int, rng: random.Random) -> tuple[np.ndarray | None, np.ndarray | None]:
    """How light falls on the object (side, side, 1; 1 = as is) and how densely it is painted (side, side), by style."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    if style == "shaded":
        distance = np.hypot(x - rng.uniform(0.28, 0.42), y - rng.uniform(0.22, 0.36))
        light = 1.16 - 0.62 * distance + 0.35 * np.exp(-((distance / 0.11) ** 2))
        return light[..., None].clip(0.6, 1.45), None
    if style == "textured":
        grain = np.random.default_rng(rng.getrandbits(32)).random((40, 40), dtype=np.float32)
        grain = np.asarray(Image.fromarray(grain).resize((side, side), Image.Resampling.BILINEAR))
        return (1.04 - 0.26 * grain - 0.08 * y)[..., None], None
    if style == "crayon":
        angle, stripes = rng.uniform(0.5, 1.1), rng.uniform(17, 24)
        wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * stripes * math.tau + 3 * np.sin(9 * y + 5 * x))
        return None, np.where(wave > -0.45, 1.0, 0.25).astype(np.float32)
    return None, None
