"""Animals and plants, as shapes in the unit square."""

from __future__ import annotations

import math

from vlmsteer_counterfacts.paint import Painter

WHITE, DARK, CREAM, PINK, ORANGE = "#fafafa", "#221e24", "#f3e2c4", "#f2a0b0", "#f0922b"
LEAF, LEAF_DARK, BARK, WATER, SLATE = "#4f9a3d", "#3c7a33", "#7a5230", "#5fb2e6", "#54545e"


def eye(p: Painter, x: float, y: float, radius: float = 0.04) -> None:
    p.ellipse(x, y, radius, radius, fill=WHITE, outlined=False)
    p.ellipse(x + 0.1 * radius, y, 0.6 * radius, 0.6 * radius, fill=DARK, outlined=False)


def cloud(p: Painter, cx: float, cy: float, rx: float, ry: float, bumps: int, fill: str = "body") -> None:
    points = []
    for turn in (math.tau * step / (bumps * 8) for step in range(bumps * 8)):
        reach = 0.86 + 0.14 * abs(math.sin(turn * bumps / 2))
        points.append((cx + rx * reach * math.cos(turn), cy + ry * reach * math.sin(turn)))
    p.polygon(points, fill)


def bird_legs(p: Painter, xs: tuple[float, float], top: float, fill: str, width: float = 0.035) -> None:
    for x in xs:
        p.line([(x, top), (x, 0.955), (x + 0.11, 0.96)], width, fill=fill)


def frog(p: Painter) -> None:
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.31, 0.74, 0.14, 0.21, side * 22, shade=0.85)
    p.ellipse(0.5, 0.68, 0.27, 0.27)
    p.ellipse(0.5, 0.74, 0.16, 0.18, fill=CREAM, outlined=False)
    p.ellipse(0.5, 0.38, 0.41, 0.22)
    for side in (-1, 1):
        p.line([(0.5 + side * 0.2, 0.57), (0.5 + side * 0.15, 0.93)], 0.12, taper=0.7)
        for leg, toe in ((0.15, 0.06), (0.15, 0.14), (0.15, 0.22), (0.32, 0.3), (0.32, 0.38), (0.32, 0.46)):
            p.line([(0.5 + side * leg, 0.9), (0.5 + side * toe, 0.965)], 0.05)
        p.ellipse(0.5 + side * 0.22, 0.17, 0.15, 0.15)
        p.ellipse(0.5 + side * 0.22, 0.16, 0.105, 0.105, fill=WHITE, outlined=False)
        p.ellipse(0.5 + side * 0.22, 0.17, 0.075, 0.045, fill=DARK, outlined=False)
    for width, fill in ((0.06, PINK), (0.026, "#7a2233")):
        p.line([(0.17, 0.37), (0.34, 0.46), (0.66, 0.46), (0.83, 0.37)], width, fill, curved=True, outlined=False)


def chick(p: Painter) -> None:
    bird_legs(p, (0.4, 0.58), 0.82, ORANGE, 0.05)
    p.polygon([(0.5, 0.12), (0.45, 0.03), (0.54, 0.06), (0.58, -0.01), (0.63, 0.05), (0.71, 0.02), (0.68, 0.12)])
    p.polygon([(0.8, 0.23), (0.98, 0.32), (0.8, 0.4)], fill=ORANGE)
    p.polygon([(0.06, 0.48), (0.2, 0.46), (0.2, 0.7), (0.1, 0.66)])
    p.ellipse(0.48, 0.63, 0.37, 0.28)
    p.ellipse(0.59, 0.32, 0.27, 0.26, outlined=False)
    p.polygon([(0.5, 0.55), (0.2, 0.54), (0.25, 0.63), (0.22, 0.68), (0.3, 0.71), (0.36, 0.76), (0.5, 0.7)], shade=0.8)
    eye(p, 0.7, 0.28, 0.06)


def pig(p: Painter) -> None:
    p.ring(0.055, 0.45, 0.042, 0.028)
    for x, shade in ((0.28, 0.82), (0.6, 0.82), (0.14, 1.0), (0.45, 1.0)):
        p.rect(x, 0.66, x + 0.13, 0.95, shade=shade)
        p.rect(x, 0.9, x + 0.13, 0.97, fill="#7d5148")
    p.ellipse(0.44, 0.55, 0.36, 0.27)
    p.ellipse(0.73, 0.41, 0.24, 0.24)
    p.ellipse(0.76, 0.5, 0.15, 0.115, fill="#b85a70")
    p.ellipse(0.76, 0.495, 0.13, 0.097, fill="#f7b3c0", outlined=False)
    for side in (-1, 1):
        ear = [(0.05, 0.19), (0.17, 0.1), (0.26, 0.17), (0.25, 0.32), (0.16, 0.24)]
        p.blob([(0.73 + side * x, y) for x, y in ear], shade=0.8)
        eye(p, 0.76 + side * 0.11, 0.35, 0.04)
        p.ellipse(0.76 + side * 0.05, 0.495, 0.024, 0.042, fill="#7d2f42", outlined=False)


def flamingo(p: Painter) -> None:
    p.line([(0.46, 0.52), (0.68, 0.66), (0.46, 0.74)], 0.04, shade=0.85)
    p.line([(0.42, 0.5), (0.42, 0.96), (0.56, 0.97)], 0.045, shade=0.9)
    p.line([(0.54, 0.46), (0.72, 0.46), (0.75, 0.34), (0.6, 0.2), (0.64, 0.07), (0.76, 0.09)], 0.09, curved=True)
    p.blob([(0.04, 0.54), (0.16, 0.37), (0.36, 0.28), (0.57, 0.33), (0.66, 0.44), (0.56, 0.57), (0.3, 0.6)])
    p.blob([(0.02, 0.56), (0.2, 0.39), (0.4, 0.37), (0.5, 0.44), (0.36, 0.53), (0.18, 0.55)], shade=0.82)
    p.blob([(0.78, 0.04), (0.88, 0.08), (0.93, 0.18), (0.87, 0.29), (0.83, 0.19), (0.77, 0.16)], fill="#fbe9d8")
    p.blob([(0.905, 0.13), (0.94, 0.2), (0.87, 0.32), (0.84, 0.2)], fill=DARK)
    p.ellipse(0.74, 0.085, 0.09, 0.075)
    eye(p, 0.76, 0.075, 0.035)


def crow(p: Painter) -> None:
    bird_legs(p, (0.46, 0.6), 0.66, SLATE, 0.04)
    p.polygon([(0.4, 0.56), (0.0, 0.76), (0.02, 0.83), (0.07, 0.84), (0.1, 0.89), (0.5, 0.74)], shade=0.9)
    p.polygon([(0.77, 0.08), (0.9, 0.11), (1.0, 0.22), (0.84, 0.23), (0.94, 0.27), (0.77, 0.31)], fill=SLATE)
    p.blob([(0.68, 0.04), (0.8, 0.1), (0.84, 0.22), (0.79, 0.34), (0.8, 0.5), (0.72, 0.66), (0.55, 0.76), (0.38, 0.74),
            (0.3, 0.64), (0.4, 0.46), (0.53, 0.32), (0.55, 0.14)])
    for fall, shade in ((0.0, 1.2), (-0.07, 0.8)):
        wing = [(0.66, 0.38), (0.69, 0.5), (0.58, 0.64), (0.36, 0.73), (0.1, 0.8), (0.3, 0.58), (0.5, 0.38)]
        p.blob([(x, y + fall * (x > 0.3 and y > 0.4)) for x, y in wing], shade=shade)
    eye(p, 0.71, 0.17, 0.045)


def swan(p: Painter) -> None:
    p.polygon([(0.85, 0.05), (0.99, 0.2), (0.8, 0.19)], fill=ORANGE)
    p.polygon([(0.82, 0.05), (0.9, 0.1), (0.84, 0.2), (0.78, 0.18)], fill=DARK)
    p.line([(0.7, 0.78), (0.78, 0.62), (0.73, 0.44), (0.62, 0.26), (0.65, 0.09), (0.77, 0.09)], 0.12, curved=True)
    p.ellipse(0.75, 0.105, 0.11, 0.08, 20)
    p.blob([(0.02, 0.52), (0.2, 0.57), (0.6, 0.64), (0.82, 0.66), (0.84, 0.8), (0.66, 0.91), (0.22, 0.88)])
    for drop, shade in ((0.0, 0.82), (0.08, 1.15), (0.16, 0.88)):
        wing = [(0.08, 0.4), (0.26, 0.46), (0.46, 0.48), (0.63, 0.62), (0.6, 0.76), (0.4, 0.8), (0.2, 0.68)]
        p.blob([(x + drop * (0.64 - x), y + drop * (0.82 - y) * 2.4) for x, y in wing], shade=shade)
    p.line([(x / 8, 0.94 - 0.04 * (x % 2)) for x in range(9)], 0.07, fill=WATER, curved=True, outlined=False)
    eye(p, 0.76, 0.085, 0.033)


def elephant(p: Painter) -> None:
    p.line([(0.08, 0.4), (0.02, 0.55), (0.04, 0.66)], 0.035, shade=0.8, curved=True)
    for x, shade in ((0.24, 0.8), (0.52, 0.8), (0.09, 1.0), (0.39, 1.0)):
        p.rect(x, 0.5, x + 0.15, 0.97, 0.03, shade=shade)
        for nail in (0.035, 0.075, 0.115):
            p.ellipse(x + nail, 0.95, 0.016, 0.02, fill=CREAM, outlined=False)
    p.ellipse(0.39, 0.45, 0.35, 0.28)
    p.line([(0.8, 0.34), (0.87, 0.5), (0.86, 0.7), (0.9, 0.84), (0.99, 0.82)], 0.19, curved=True, taper=0.35)
    p.polygon([(0.73, 0.48), (0.8, 0.52), (0.86, 0.62), (0.96, 0.62), (0.87, 0.7), (0.77, 0.64)], fill="#fffbea")
    p.ellipse(0.74, 0.34, 0.19, 0.22)
    ear = [(0.14, -0.17), (0.17, 0.0), (0.12, 0.16), (0, 0.29), (-0.11, 0.2), (-0.17, 0), (-0.11, -0.18), (0, -0.23)]
    for size, shade in ((1.0, 0.78), (0.7, 1.2)):
        p.blob([(0.55 + size * x, 0.33 + size * y) for x, y in ear], shade=shade, outlined=False)
    eye(p, 0.81, 0.3, 0.04)


def mouse(p: Painter) -> None:
    p.line([(0.2, 0.86), (0.06, 0.8), (0.03, 0.6), (0.12, 0.44), (0.04, 0.22)], 0.045, "#e58c9c", curved=True)
    p.ellipse(0.78, 0.34, 0.15, 0.16, shade=0.8)
    for x in (0.34, 0.66):
        p.ellipse(x, 0.93, 0.1, 0.04, fill=PINK)
    p.blob([(0.98, 0.74), (0.8, 0.52), (0.56, 0.45), (0.3, 0.47), (0.13, 0.68), (0.18, 0.9), (0.5, 0.94), (0.84, 0.87)])
    p.ellipse(0.54, 0.31, 0.2, 0.21)
    p.ellipse(0.54, 0.32, 0.13, 0.14, fill=PINK, outlined=False)
    for y in (0.68, 0.78, 0.88):
        p.line([(0.88, 0.77), (0.68, y)], 0.014, fill="#9a9096", outlined=False)
    p.ellipse(0.96, 0.74, 0.042, 0.042, fill="#d9566f")
    eye(p, 0.78, 0.64, 0.05)


def dolphin(p: Painter) -> None:
    p.blob([(0.1, 0.66), (0.14, 0.78), (0.3, 0.86), (0.34, 0.96), (0.1, 0.86), (0.02, 0.96), (0.0, 0.84)])
    p.blob([(0.42, 0.26), (0.4, 0.12), (0.32, 0.03), (0.5, 0.06), (0.62, 0.2), (0.54, 0.26)], shade=0.88)
    jaw = [(0.96, 0.68), (0.88, 0.63), (0.8, 0.62), (0.7, 0.6), (0.54, 0.54), (0.38, 0.54), (0.24, 0.64)]
    p.blob([*jaw, (0.15, 0.77), (0.08, 0.74), (0.1, 0.58), (0.18, 0.4), (0.32, 0.24), (0.5, 0.17), (0.68, 0.2),
            (0.82, 0.3), (0.88, 0.46), (0.93, 0.53), (0.995, 0.64)])
    p.blob([*jaw, (0.34, 0.5), (0.5, 0.45), (0.68, 0.51), (0.84, 0.56)], fill="#eef2f4", outlined=False)
    p.blob([(0.6, 0.44), (0.7, 0.5), (0.64, 0.64), (0.5, 0.78), (0.53, 0.6)], shade=0.8)
    eye(p, 0.79, 0.45, 0.035)


def whale(p: Painter) -> None:
    for side in (-1, 1):
        jet = [(0.0, 0.4), (0.03, 0.16), (0.12, 0.05), (0.2, 0.14), (0.21, 0.23)]
        p.line([(0.66 + side * x, y) for x, y in jet], 0.06, fill=WATER, curved=True)
        p.ellipse(0.17 + side * 0.09, 0.35, 0.08, 0.13, side * 40, shade=0.88)
    keel = [(0.32, 0.92), (0.58, 0.97), (0.82, 0.93), (0.95, 0.8)]
    p.blob([*keel, (0.98, 0.62), (0.93, 0.46), (0.8, 0.37), (0.6, 0.36), (0.44, 0.46), (0.3, 0.58), (0.22, 0.54),
            (0.22, 0.42), (0.12, 0.42), (0.08, 0.6), (0.14, 0.78)])
    p.blob([*keel, (0.98, 0.7), (0.78, 0.74), (0.55, 0.8)], fill="#eef2f4", outlined=False)
    for x in (0.56, 0.68, 0.8):
        p.line([(x + 0.05, 0.8), (x - 0.02, 0.93)], 0.018, fill="#9fb0b8", outlined=False)
    p.blob([(0.5, 0.7), (0.6, 0.74), (0.52, 0.86), (0.36, 0.88), (0.42, 0.78)], shade=0.8)
    eye(p, 0.8, 0.6, 0.05)


def ladybug(p: Painter) -> None:
    p.ellipse(0.5, 0.18, 0.2, 0.12, fill=DARK)
    for side in (-1, 1):
        for hip, knee, foot in ((0.4, 0.34, 0.27), (0.58, 0.58, 0.58), (0.76, 0.83, 0.9)):
            p.line([(0.5 + side * 0.3, hip), (0.5 + side * 0.43, knee), (0.5 + side * 0.485, foot)], 0.034, DARK)
        p.line([(0.5 + side * 0.08, 0.14), (0.5 + side * 0.13, 0.05), (0.5 + side * 0.2, 0.02)], 0.03, DARK)
        p.ellipse(0.5 + side * 0.1, 0.13, 0.045, 0.036, fill=WHITE, outlined=False)
    p.ellipse(0.5, 0.58, 0.41, 0.39)
    for halo, fill in ((0.012, "#f1ead9"), (0.0, DARK)):
        p.line([(0.5, 0.2), (0.5, 0.97)], 0.02 + 1.6 * halo, fill, outlined=False)
        for x, y, radius in ((0.15, 0.38, 0.058), (0.27, 0.58, 0.064), (0.14, 0.78, 0.058)):
            for side in (-1, 1):
                p.ellipse(0.5 + side * x, y, radius + halo, radius + halo, fill=fill, outlined=False)


def bear(p: Painter) -> None:
    p.ellipse(0.5, 0.69, 0.31, 0.28)
    p.ellipse(0.5, 0.3, 0.3, 0.24)
    for side in (-1, 1):
        p.ellipse(0.5 + side * 0.22, 0.11, 0.11, 0.11)
        p.ellipse(0.5 + side * 0.22, 0.105, 0.062, 0.062, fill="#c99a70", outlined=False)
        p.ellipse(0.5 + side * 0.29, 0.66, 0.1, 0.18, side * 14, shade=0.85)
        p.ellipse(0.5 + side * 0.25, 0.87, 0.15, 0.1, shade=0.9)
        for claw in (0.17, 0.25, 0.33):
            p.line([(0.5 + side * claw, 0.92), (0.5 + side * claw, 0.98)], 0.04, CREAM, taper=0.1, outlined=False)
        eye(p, 0.5 + side * 0.13, 0.25, 0.042)
    p.ellipse(0.5, 0.39, 0.15, 0.12, fill="#ecd2a8")
    p.ellipse(0.5, 0.335, 0.065, 0.045, fill=DARK, outlined=False)
    p.line([(0.42, 0.43), (0.5, 0.455), (0.58, 0.43)], 0.024, DARK, curved=True, outlined=False)


def tree(p: Painter) -> None:
    p.polygon([(0.43, 0.5), (0.57, 0.5), (0.57, 0.86), (0.68, 0.98), (0.32, 0.98), (0.43, 0.86)], fill=BARK)
    cloud(p, 0.5, 0.36, 0.48, 0.36, 9)
    for x, y, shade in ((0.3, 0.5, 0.8), (0.66, 0.48, 0.8), (0.4, 0.24, 1.2), (0.68, 0.26, 1.2)):
        p.line([(x - 0.08, y), (x, y + 0.045), (x + 0.08, y)], 0.035, shade=shade, curved=True, outlined=False)


def cactus(p: Painter) -> None:
    for x, y, elbow in ((0.17, 0.36, 0.72), (0.83, 0.26, 0.58)):
        p.line([(0.5, elbow + 0.02), ((x + 0.25) / 1.5, elbow), (x, elbow - 0.08), (x, y)], 0.17, curved=True)
        p.ellipse(x, y, 0.085, 0.085, outlined=False)
    p.rect(0.37, 0.08, 0.63, 0.97, 0.125)
    p.rect(0.43, 0.1, 0.57, 0.96, shade=0.75, outlined=False)
    for x, y in [(0.17, 0.42), (0.17, 0.58), (0.83, 0.32), (0.83, 0.48), *((0.5, row / 10) for row in range(2, 9))]:
        p.line([(x - 0.03, y - 0.02), (x, y + 0.02), (x + 0.03, y - 0.02)], 0.014, fill="#e8c860", outlined=False)
    cloud(p, 0.5, 0.08, 0.11, 0.085, 5, "#ee5c94")
    p.ellipse(0.5, 0.07, 0.03, 0.025, fill="#ffd84a", outlined=False)
    p.ellipse(0.5, 0.96, 0.4, 0.03, fill="#d9b878", outlined=False)


def rose(p: Painter) -> None:
    p.line([(0.5, 0.58), (0.49, 0.8), (0.52, 0.98)], 0.045, fill=LEAF_DARK, curved=True)
    for side, y in ((-1, 0.8), (1, 0.86)):
        p.blob([(0.5 + side * x, y + z) for x, z in ((0, 0.05), (0.14, -0.08), (0.36, -0.09), (0.22, 0.04))], fill=LEAF)
    for x in (0.24, 0.41, 0.59, 0.76):
        p.polygon([(0.42, 0.56), (0.58, 0.56), (x, 0.73)], fill=LEAF_DARK)
    p.ellipse(0.5, 0.3, 0.34, 0.28, shade=0.85)
    for side, shade in ((-1, 1.0), (1, 1.12)):
        petal = [(0, 0.66), (0.24, 0.62), (0.42, 0.46), (0.47, 0.24), (0.33, 0.22), (0.14, 0.36)]
        p.blob([(0.5 + side * x, y) for x, y in petal], shade=shade)
    p.blob([(0.5, 0.67), (0.29, 0.54), (0.27, 0.28), (0.5, 0.36), (0.73, 0.28), (0.71, 0.54)], shade=0.9)
    p.ellipse(0.5, 0.19, 0.27, 0.155, shade=1.12)
    spiral = [(0.5 + t * 0.0145 * math.cos(t * 0.75), 0.19 + t * 0.0083 * math.sin(t * 0.75)) for t in range(1, 18)]
    p.line(spiral, 0.03, shade=0.6, curved=True, outlined=False)


def sheep(p: Painter) -> None:
    for x in (0.2, 0.32, 0.52, 0.64):
        p.rect(x, 0.7, x + 0.08, 0.97, fill="#4b4046")
    cloud(p, 0.08, 0.5, 0.08, 0.08, 5)
    cloud(p, 0.44, 0.52, 0.41, 0.33, 13)
    for x, y in ((0.25, 0.42), (0.42, 0.54), (0.26, 0.66), (0.56, 0.68), (0.48, 0.34)):
        p.line([(x - 0.06, y), (x - 0.01, y + 0.045), (x + 0.05, y)], 0.03, shade=0.8, curved=True, outlined=False)
    p.ellipse(0.8, 0.38, 0.115, 0.2, fill="#5e4f55")
    for side in (-1, 1):
        p.ellipse(0.8 + side * 0.14, 0.32, 0.085, 0.042, side * 22, fill="#75646a")
        eye(p, 0.8 + side * 0.055, 0.38, 0.038)
    cloud(p, 0.8, 0.19, 0.16, 0.12, 8)


SHAPES = {shape.__name__: shape for shape in (
    frog, chick, pig, flamingo, crow, swan, elephant, mouse, dolphin, whale, ladybug, bear, tree, cactus, rose, sheep)}
