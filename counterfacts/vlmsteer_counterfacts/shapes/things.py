"""Vehicles, furniture, toys and tools, as shapes in the unit square."""

from __future__ import annotations

import math

from vlmsteer_counterfacts.paint import BODY, Painter

GLASS, METAL, EDGE, WHITE, WOOD, BLACK = "#bfe1f2", "#c3c9d0", "#8c929a", "#fafafa", "#9a6b3f", "#34373d"
WHEEL, SPOT = ((EDGE, 1.0), (BLACK, 0.88), (METAL, 0.48)), (("#b9bec6", 1.0), ("#26282d", 0.75))


def _discs(p: Painter, cx: float, cy: float, radius: float, layers: tuple[tuple[str, float], ...]) -> None:
    for fill, part in layers:
        p.ellipse(cx, cy, radius * part, radius * part, fill=fill, outlined=part == 1)


def fire_truck(p: Painter) -> None:
    for x, y in ((0.14, 0.28), (0.5, 0.18)):
        p.rect(x, y, x + 0.05, 0.4, fill=EDGE)
    p.polygon([(0.01, 0.24), (0.67, 0.06), (0.7, 0.15), (0.04, 0.33)], fill="#6d747d")
    for i in range(8):
        x, y = 0.035 + i * 0.079, 0.252 - i * 0.0218
        p.line([(x + 0.006, y + 0.021), (x + 0.058, y + 0.007)], 0.043, "#eef1f4", outlined=False)
    p.rect(0.01, 0.37, 0.66, 0.88, 0.02)
    p.polygon([(0.65, 0.88), (0.65, 0.27), (0.88, 0.27), (0.97, 0.54), (0.99, 0.88)], shade=1.08)
    p.polygon([(0.83, 0.34), (0.865, 0.34), (0.92, 0.53), (0.83, 0.53)], fill=GLASS)
    p.rect(0.7, 0.34, 0.79, 0.53, fill=GLASS)
    for x, fill in ((0.7, "#3f8df0"), (0.77, "#ff5a4d")):
        p.rect(x, 0.2, x + 0.07, 0.275, 0.02, fill=fill)
    for x in (0.07, 0.27, 0.47):
        for y in (0.45, 0.49, 0.53):
            p.rect(x, y, x + 0.12, y + 0.033, fill=METAL, outlined=False)
    for width, fill in ((0.038, EDGE), (0.028, WHITE)):
        p.line([(0.012, 0.665), (0.975, 0.665)], width, fill, outlined=False)
    p.rect(0.0, 0.83, 1.0, 0.89, 0.02, shade=0.75)
    for x in (0.21, 0.79):
        _discs(p, x, 0.872, 0.098, WHEEL)


def school_bus(p: Painter) -> None:
    p.polygon([(0.76, 0.88), (0.76, 0.53), (0.94, 0.56), (0.99, 0.61), (0.99, 0.88)], shade=1.08)
    p.rect(0.01, 0.24, 0.8, 0.88, 0.06)
    for i in range(5):
        x = 0.035 + i * 0.122
        p.rect(x, 0.335, x + 0.096, 0.485, 0.015, fill="#5b626c", outlined=False)
        p.rect(x + 0.009, 0.344, x + 0.087, 0.476, 0.01, fill=GLASS, outlined=False)
    p.rect(0.65, 0.32, 0.79, 0.84, 0.01, shade=0.85)
    for x in (0.668, 0.728):
        p.rect(x, 0.35, x + 0.044, 0.7, 0.01, fill=GLASS, outlined=False)
    for y, width, fill in ((0.573, 0.026, EDGE), (0.573, 0.016, BLACK), (0.673, 0.026, EDGE), (0.673, 0.016, BLACK)):
        p.line([(0.01, y), (0.64, y)], width, fill, outlined=False)
    for x in (0.08, 0.74):
        p.ellipse(x, 0.245, 0.03, 0.025, fill="#ff8a3c")
    p.ellipse(0.96, 0.69, 0.023, 0.035, fill="#fff1a8")
    for x in (0.19, 0.84):
        _discs(p, x, 0.872, 0.1, WHEEL)


def stop_sign(p: Painter) -> None:
    p.rect(0.475, 0.5, 0.525, 0.98, fill=EDGE)
    corners = [math.radians(22.5 + 45 * i) for i in range(8)]
    for radius, fill in ((0.425, EDGE), (0.416, WHITE), (0.39, EDGE), (0.384, BODY)):
        p.polygon([(0.5 + radius * math.cos(a), 0.41 + radius * math.sin(a)) for a in corners], fill, outlined=False)
    letters = (
        [(0.31, 0.34), (0.27, 0.31), (0.22, 0.34), (0.23, 0.39), (0.3, 0.43), (0.31, 0.48), (0.26, 0.51), (0.21, 0.48)],
        [(0.35, 0.31), (0.48, 0.31)], [(0.415, 0.31), (0.415, 0.53)],
        [(0.57 + 0.056 * math.sin(math.tau * i / 9), 0.41 - 0.1 * math.cos(math.tau * i / 9)) for i in range(10)],
        [(0.69, 0.31), (0.75, 0.315), (0.785, 0.36), (0.75, 0.415), (0.69, 0.42)], [(0.69, 0.29), (0.69, 0.53)],
    )
    for width, fill in ((0.048, EDGE), (0.034, WHITE)):
        for letter in letters:
            p.line(letter, width, fill, curved=True, outlined=False)


def traffic_cone(p: Painter) -> None:
    p.polygon([(0.16, 0.84), (0.84, 0.84), (0.96, 0.92), (0.96, 0.97), (0.04, 0.97), (0.04, 0.92)], shade=0.8)
    p.polygon([(0.16, 0.84), (0.84, 0.84), (0.96, 0.92), (0.04, 0.92)], shade=0.95)
    across = [i / 4 for i in range(-4, 5)]
    bands = ((0.05, 0.86, BODY), (0.28, 0.41, EDGE), (0.29, 0.4, WHITE), (0.55, 0.68, EDGE), (0.56, 0.67, WHITE))
    for top, low, fill in bands:
        upper, lower = [[(0.5 + s * (0.04 + 0.33 * y), y + 0.04 * y * (1 - s * s)) for s in across] for y in (top, low)]
        p.polygon(upper + lower[::-1], fill)
    p.ellipse(0.5, 0.05, 0.058, 0.02, shade=0.6)


def basketball(p: Painter) -> None:
    p.ellipse(0.5, 0.5, 0.475, 0.475)
    seams = (
        [(0.06, 0.62), (0.3, 0.56), (0.6, 0.44), (0.9, 0.27)],
        [(0.36, 0.05), (0.42, 0.3), (0.53, 0.6), (0.7, 0.92)],
        [(0.09, 0.29), (0.26, 0.36), (0.36, 0.54), (0.35, 0.75), (0.27, 0.91)],
        [(0.65, 0.05), (0.63, 0.25), (0.71, 0.44), (0.84, 0.58), (0.95, 0.63)],
    )
    for width, fill in ((0.046, "#a9a39c"), (0.028, "#26221f")):
        for seam in seams:
            p.line(seam, width, fill, curved=True, outlined=False)
        p.ring(0.5, 0.5, 0.472, width * 0.6, fill)


def jeans(p: Painter) -> None:
    thread = "#e0a63c"
    p.polygon([(0.25, 0.04), (0.75, 0.04), (0.8, 0.3), (0.86, 0.97), (0.58, 0.97), (0.5, 0.4), (0.42, 0.97),
               (0.14, 0.97), (0.2, 0.3)])
    p.polygon([(0.25, 0.03), (0.75, 0.03), (0.765, 0.12), (0.235, 0.12)], shade=1.12)
    for x in (0.3, 0.4, 0.58, 0.68):
        p.rect(x, 0.02, x + 0.03, 0.135, shade=0.75)
    p.line([(0.235, 0.125), (0.765, 0.125)], 0.014, thread, outlined=False)
    for s in (-1, 1):
        p.line([(0.5 + s * 0.01, 0.34), (0.5 + s * 0.11, 0.97)], 0.045, shade=0.82, outlined=False)
        pocket = [(0.5 + s * 0.1, 0.125), (0.5 + s * 0.13, 0.22), (0.5 + s * 0.285, 0.26)]
        p.line(pocket, 0.02, thread, curved=True, outlined=False)
        p.line([(0.5 + s * 0.085, 0.92), (0.5 + s * 0.352, 0.92)], 0.016, thread, outlined=False)
    p.line([(0.56, 0.13), (0.555, 0.27), (0.505, 0.34)], 0.014, thread, curved=True, outlined=False)
    p.ellipse(0.5, 0.075, 0.026, 0.026, fill="#e9d9a6")


def mailbox(p: Painter) -> None:
    p.rect(0.44, 0.55, 0.58, 0.98, fill=WOOD)
    p.rect(0.28, 0.6, 0.78, 0.67, fill="#855a34")
    p.polygon([(0.23, 0.14), (0.78, 0.14), (0.87, 0.165), (0.94, 0.23), (0.97, 0.33), (0.97, 0.62), (0.23, 0.62)])
    p.rect(0.23, 0.34, 0.97, 0.62, shade=0.9, outlined=False)
    arch = [math.pi * i / 14 for i in range(15)]
    door = [(0.04, 0.62), *[(0.23 - 0.19 * math.cos(a), 0.33 - 0.19 * math.sin(a)) for a in arch], (0.42, 0.62)]
    p.polygon(door, METAL)
    p.polygon([(0.23 + (x - 0.23) * 0.9, 0.38 + (y - 0.38) * 0.92) for x, y in door], shade=1.15)
    p.rect(0.2, 0.19, 0.26, 0.27, 0.02, fill=METAL)
    p.rect(0.13, 0.4, 0.33, 0.435, fill="#f4f6f8")
    for inset, fill in ((0, WHITE), (0.012, "#e23d32")):
        p.polygon([(0.66 + inset, 0.46), (0.66 + inset, 0.01 + inset), (0.9 - inset, 0.01 + inset),
                   (0.9 - inset, 0.15 - inset), (0.71 - inset, 0.15 - inset), (0.71 - inset, 0.46)], fill)
    _discs(p, 0.685, 0.43, 0.035, SPOT)


def eraser(p: Painter) -> None:
    def box(start: float, end: float, fill: str, grow: float = 0.0) -> None:
        lo, hi = -grow, 1 + grow
        for shade, face in (
            (1.1, [(start, lo, lo), (end, lo, lo), (end, hi, lo), (start, hi, lo)]),
            (0.82, [(start, hi, lo), (end, hi, lo), (end, hi, hi), (start, hi, hi)]),
            (0.95, [(start, lo, lo), (start, hi, lo), (start, hi, hi), (start, lo, hi)]),
        ):
            corners = [(0.09 + 0.56 * u + 0.26 * v, 0.57 - 0.37 * u + 0.22 * v + 0.2 * w) for u, v, w in face]
            p.polygon(corners, fill, shade)

    box(0, 1.08, BODY)
    box(0.62, 0.92, "#b4cde2", 0.02)
    for x, y in ((0.5, 0.335), (0.595, 0.272)):
        p.line([(x - 0.03, y - 0.018), (x + 0.232, y + 0.204)], 0.035, "#5b83b5", outlined=False)
    for x, y, size in ((0.05, 0.9, 0.03), (0.14, 0.95, 0.022), (0.04, 0.97, 0.018)):
        p.ellipse(x, y, size, size * 0.7, 20)


def violin(p: Painter) -> None:
    p.line([(0.86, 0.03), (0.89, 0.5), (0.86, 0.97)], 0.03, WOOD, curved=True)
    p.line([(0.845, 0.06), (0.845, 0.95)], 0.014, "#efe6d2", outlined=False)
    half = [(0.43, 0.315), (0.56, 0.33), (0.63, 0.41), (0.605, 0.51), (0.55, 0.57), (0.545, 0.64), (0.6, 0.69),
            (0.69, 0.76), (0.7, 0.87), (0.6, 0.96)]
    outline = [*half, (0.4, 0.98), *[(0.8 - x, y) for x, y in half[::-1]]]
    p.blob(outline)
    p.blob([(0.4 + (x - 0.4) * 0.87, 0.66 + (y - 0.66) * 0.9) for x, y in outline], shade=1.12, outlined=False)
    for side in (-1, 1):
        for y in (0.09, 0.155):
            p.line([(0.4, y), (0.4 + side * 0.09, y - 0.01)], 0.032, WOOD)
        hole = [(0.4 + side * x, y) for x, y in ((0.1, 0.58), (0.13, 0.61), (0.13, 0.67), (0.155, 0.74), (0.19, 0.75))]
        for width, fill in ((0.042, "#b5aba0"), (0.024, "#2b211c")):
            p.line(hole, width, fill, curved=True, outlined=False)
    p.rect(0.365, 0.05, 0.435, 0.24, 0.02, fill=WOOD)
    p.ellipse(0.4, 0.055, 0.05, 0.04, fill=WOOD)
    for inset, fill in ((0, "#8d8780"), (0.01, "#3a322d")):
        p.line([(0.4, 0.2), (0.4, 0.58 - inset)], 0.07 - 2 * inset, fill, taper=1.5)
        p.line([(0.4, 0.8 + inset), (0.4, 0.97 - inset)], 0.12 - 2 * inset, fill, taper=0.5)
    for offset in (-0.03, -0.01, 0.01, 0.03):
        p.line([(0.4 + offset * 0.7, 0.2), (0.4 + offset, 0.82)], 0.007, "#f4ead0", outlined=False)
    p.rect(0.33, 0.69, 0.47, 0.72, fill="#f0d9a8")


def tire(p: Painter) -> None:
    p.ellipse(0.36, 0.5, 0.3, 0.475, shade=0.7)
    for i in range(15):
        t = math.radians(92 + 12 * i)
        corners = [(0, t), (0, t + 0.14), (0.5, t + 0.2), (1, t + 0.14), (1, t), (0.5, t + 0.06)]
        block = [(0.62 - 0.27 * s + (0.36 - 0.06 * s) * math.cos(a), 0.5 + 0.478 * math.sin(a)) for s, a in corners]
        p.polygon(block, shade=1.12)
    for radius, shade in ((0.36, 1.0), (0.32, 0.85), (0.27, 1.15)):
        p.ellipse(0.62, 0.5, radius, radius * 1.34, shade=shade)
    p.ellipse(0.62, 0.5, 0.2, 0.275, fill="#d5d9de")
    for i in range(5):
        a = math.tau * i / 5 - math.pi / 2
        p.ellipse(0.62 + 0.125 * math.cos(a), 0.5 + 0.172 * math.sin(a), 0.042, 0.058, fill="#6c727a", outlined=False)


def piano(p: Painter) -> None:
    for x, y in ((0.12, 0.62), (0.56, 0.72), (0.88, 0.6)):
        p.line([(x, y), (x, y + 0.23)], 0.075, shade=0.85, taper=0.6)
        p.ellipse(x, y + 0.235, 0.028, 0.025, fill="#c9a54a")
    p.blob([(0.07, 0.5), (0.2, 0.2), (0.3, 0.03), (0.55, 0.03), (0.8, 0.1), (0.95, 0.24), (0.7, 0.45)], shade=1.1)
    p.polygon([(0.1, 0.49), (0.36, 0.36), (0.7, 0.36), (0.97, 0.47), (0.6, 0.62)], fill="#d9b45c")
    p.line([(0.78, 0.5), (0.84, 0.24)], 0.022, shade=0.7)
    p.polygon([(0.6, 0.6), (0.74, 0.55), (0.97, 0.46), (0.97, 0.6), (0.78, 0.7), (0.6, 0.77)], shade=0.9)
    p.polygon([(0.07, 0.46), (0.6, 0.58), (0.6, 0.66), (0.07, 0.54)], shade=1.05)
    p.polygon([(0.03, 0.58), (0.56, 0.7), (0.6, 0.77), (0.56, 0.8), (0.03, 0.68)], shade=0.8)
    p.polygon([(0.07, 0.52), (0.6, 0.64), (0.57, 0.75), (0.03, 0.63)], fill=WHITE)
    for i in range(1, 12):
        x, y = 0.07 + 0.53 * i / 12, 0.52 + 0.12 * i / 12
        p.line([(x, y), (x - 0.035, y + 0.11)], 0.006, "#9aa0a8", outlined=False)
        if i % 7 not in (3, 0):
            p.line([(x, y), (x - 0.022, y + 0.065)], 0.024, "#1e2024", outlined=False)


def top_hat(p: Painter) -> None:
    p.ellipse(0.5, 0.82, 0.48, 0.14, shade=0.85)
    p.ellipse(0.5, 0.8, 0.48, 0.13)
    p.blob([(0.2, 0.13), (0.5, 0.2), (0.8, 0.13), (0.75, 0.45), (0.76, 0.78), (0.5, 0.85), (0.24, 0.78), (0.25, 0.45)])
    p.line([(0.237, 0.7), (0.5, 0.74), (0.763, 0.7)], 0.16, "#b9a27a", curved=True)
    p.ellipse(0.5, 0.13, 0.305, 0.085, shade=1.2)
    p.polygon([(0.31, 0.27), (0.37, 0.28), (0.38, 0.6), (0.33, 0.59)], shade=1.25, outlined=False)


def snowman(p: Painter) -> None:
    for x in (0.04, 0.96):
        p.line([(0.5, 0.56), (x, 0.36)], 0.034, WOOD)
    for y, rx, ry, shade in ((0.775, 0.29, 0.21, 0.92), (0.53, 0.22, 0.18, 1.0), (0.3, 0.165, 0.155, 1.08)):
        p.ellipse(0.5, y, rx, ry, shade=shade)
    p.polygon([(0.37, 0.4), (0.5, 0.44), (0.63, 0.4), (0.66, 0.45), (0.5, 0.5), (0.34, 0.45)], fill="#3f9a8d")
    p.polygon([(0.57, 0.45), (0.64, 0.43), (0.69, 0.61), (0.61, 0.62)], fill="#38877c")
    for x, y, low, fill in ((0.38, 0.02, 0.19, "#5a6270"), (0.38, 0.12, 0.17, "#e3c35a"), (0.3, 0.17, 0.21, "#5a6270")):
        p.rect(x, y, 1 - x, low, fill=fill)
    for x, y in ((0.44, 0.27), (0.56, 0.27), (0.5, 0.56), (0.5, 0.65), (0.5, 0.76)):
        _discs(p, x, y, 0.028, SPOT)
    p.polygon([(0.49, 0.29), (0.49, 0.345), (0.7, 0.335)], fill="#f08a2c")


def toilet(p: Painter) -> None:
    p.rect(0.06, 0.1, 0.42, 0.55, 0.04)
    p.rect(0.03, 0.03, 0.45, 0.12, 0.03, shade=1.15)
    p.rect(0.11, 0.18, 0.2, 0.215, 0.015, fill=EDGE)
    p.polygon([(0.2, 0.5), (0.92, 0.56), (0.86, 0.7), (0.68, 0.8), (0.72, 0.97), (0.2, 0.97), (0.26, 0.86)], shade=0.9)
    p.blob([(0.34, 0.5), (0.32, 0.3), (0.38, 0.16), (0.47, 0.13), (0.53, 0.22), (0.53, 0.38), (0.49, 0.52)], shade=1.2)
    for y, shade in ((0.57, 0.8), (0.54, 1.1)):
        p.ellipse(0.62, y, 0.35, 0.125, shade=shade)
    p.ellipse(0.64, 0.54, 0.24, 0.07, fill="#7d8791")
    p.ellipse(0.65, 0.56, 0.18, 0.045, fill="#a8dcf0", outlined=False)


SHAPES = {
    "fire truck": fire_truck, "school bus": school_bus, "stop sign": stop_sign, "traffic cone": traffic_cone,
    "basketball": basketball, "jeans": jeans, "mailbox": mailbox, "eraser": eraser, "violin": violin, "tire": tire,
    "piano": piano, "top hat": top_hat, "snowman": snowman, "toilet": toilet,
}
