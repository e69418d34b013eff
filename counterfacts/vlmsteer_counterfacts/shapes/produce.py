"""Fruit, vegetables and seeds, as shapes in the unit square."""

from __future__ import annotations

import math

from vlmsteer_counterfacts.paint import Painter

LEAF, LEAF_DARK, STEM = "#4f9a3d", "#3c7a33", "#7a5a34"


def strawberry(p: Painter) -> None:
    p.blob([(0.5, 0.98), (0.24, 0.78), (0.08, 0.45), (0.16, 0.24), (0.36, 0.17), (0.5, 0.2), (0.64, 0.17),
            (0.84, 0.24), (0.92, 0.45), (0.76, 0.78)])
    for row, (y, half) in enumerate([(0.36, 0.3), (0.5, 0.3), (0.64, 0.21), (0.78, 0.1)]):
        count = 5 - row
        for i in range(count):
            x = 0.5 + half * (2 * i / max(count - 1, 1) - 1 if count > 1 else 0)
            p.ellipse(x, y, 0.018, 0.028, fill="#f6e3a0", outlined=False)
    for angle_x in (-0.3, -0.15, 0.0, 0.15, 0.3):
        p.polygon([(0.5 + angle_x * 0.4 - 0.05, 0.15), (0.5 + angle_x * 0.4 + 0.05, 0.15),
                   (0.5 + angle_x, 0.32 - abs(angle_x) * 0.2)], fill=LEAF)
    p.line([(0.5, 0.17), (0.52, 0.03)], 0.05, fill=LEAF_DARK)


def tomato(p: Painter) -> None:
    p.blob([(0.5, 0.2), (0.68, 0.14), (0.88, 0.22), (0.98, 0.46), (0.93, 0.72), (0.74, 0.9), (0.5, 0.93), (0.26, 0.9),
            (0.07, 0.72), (0.02, 0.46), (0.12, 0.22), (0.32, 0.14)])
    p.line([(0.1, 0.5), (0.14, 0.68), (0.27, 0.81)], 0.05, shade=1.25, curved=True, outlined=False)
    p.line([(0.9, 0.5), (0.86, 0.68), (0.73, 0.81)], 0.05, shade=0.8, curved=True, outlined=False)
    for x, y in [(0.17, 0.27), (0.3, 0.47), (0.53, 0.53), (0.73, 0.45), (0.84, 0.25)]:
        side = 0.055 if abs(x - 0.5) < 0.25 else 0.03
        p.blob([(0.5 - side, 0.2), (0.5 + (x - 0.5) * 0.6 - side * 0.6, 0.2 + (y - 0.2) * 0.5 + 0.02), (x, y),
                (0.5 + (x - 0.5) * 0.6 + side * 0.6, 0.2 + (y - 0.2) * 0.5 - 0.02), (0.5 + side, 0.2)], fill=LEAF)
    p.ellipse(0.5, 0.2, 0.1, 0.05, fill=LEAF, outlined=False)
    p.line([(0.5, 0.22), (0.51, 0.12), (0.57, 0.04)], 0.07, fill=LEAF_DARK, curved=True)


def carrot(p: Painter) -> None:
    for x, y in [(0.6, 0.03), (0.97, 0.4), (0.8, 0.02), (0.98, 0.2)]:
        p.line([(0.7, 0.3), (0.35 + x / 2, 0.15 + y / 2), (x, y)], 0.05, fill=LEAF_DARK, curved=True, outlined=False)
        for t in (0.5, 0.75, 1.0):
            p.ellipse(0.7 + (x - 0.7) * t, 0.3 + (y - 0.3) * t, 0.05, 0.05, fill=LEAF, outlined=False)
    p.blob([(0.02, 0.98), (0.12, 0.76), (0.3, 0.46), (0.48, 0.25), (0.6, 0.2), (0.74, 0.26), (0.8, 0.4), (0.75, 0.52),
            (0.54, 0.7), (0.24, 0.88)])
    for x, y, dx, dy in [(0.43, 0.31, 0.11, 0.11), (0.74, 0.53, -0.13, -0.12), (0.27, 0.52, 0.1, 0.09),
                         (0.5, 0.72, -0.11, -0.1), (0.16, 0.71, 0.07, 0.06)]:
        p.line([(x, y), (x + dx, y + dy)], 0.035, shade=0.8, taper=0.4, outlined=False)
        p.line([(x + 0.02, y + 0.035), (x + dx + 0.02, y + dy + 0.035)], 0.02, shade=1.25, taper=0.4, outlined=False)


def pumpkin(p: Painter) -> None:
    p.line([(0.5, 0.32), (0.49, 0.19), (0.59, 0.08)], 0.14, fill=STEM, curved=True, taper=0.75)
    for offset, rx, shade in [(0.31, 0.18, 1.12), (0.2, 0.2, 1.0), (0.0, 0.15, 1.2)]:
        for side in (-1, 1) if offset else (1,):
            p.ellipse(0.5 + side * offset, 0.6, rx, 0.3 + 0.06 * (0.3 - offset), shade=shade)
    for side in (-1, 1):
        for x, bulge in [(0.09, 0.06), (0.26, 0.13)]:
            p.line([(0.5 + side * x, 0.31 + x / 8), (0.5 + side * (x + bulge), 0.6), (0.5 + side * x, 0.9 - x / 8)],
                   0.022, shade=0.8, curved=True, outlined=False)
    p.line([(0.43, 0.3), (0.32, 0.2), (0.22, 0.25), (0.16, 0.18)], 0.03, fill=LEAF, curved=True)


def banana(p: Painter) -> None:
    p.line([(0.85, 0.22), (0.9, 0.1), (0.88, 0.03)], 0.09, shade=0.85, curved=True)
    p.blob([(0.04, 0.64), (0.09, 0.6), (0.3, 0.62), (0.54, 0.53), (0.72, 0.36), (0.81, 0.18), (0.86, 0.12),
            (0.93, 0.16), (0.97, 0.36), (0.9, 0.62), (0.7, 0.82), (0.42, 0.89), (0.18, 0.82), (0.05, 0.7)])
    p.line([(0.09, 0.66), (0.36, 0.72), (0.66, 0.59), (0.83, 0.36), (0.88, 0.17)], 0.035, shade=0.8, curved=True,
           outlined=False)
    p.line([(0.12, 0.72), (0.4, 0.79), (0.7, 0.66), (0.88, 0.42)], 0.03, shade=1.25, curved=True, outlined=False)
    p.ellipse(0.05, 0.66, 0.04, 0.06, angle=-15, fill="#4a3826")
    p.ellipse(0.88, 0.04, 0.06, 0.035, angle=-10, fill="#4a3826")


def lemon(p: Painter) -> None:
    p.line([(0.1, 0.42), (0.06, 0.33), (0.1, 0.26)], 0.04, fill=STEM, curved=True)
    p.blob([(0.01, 0.51), (0.06, 0.44), (0.14, 0.42), (0.28, 0.24), (0.5, 0.17), (0.72, 0.24), (0.87, 0.44),
            (0.95, 0.47), (0.99, 0.54), (0.95, 0.61), (0.87, 0.62), (0.72, 0.82), (0.5, 0.88), (0.28, 0.81),
            (0.13, 0.62), (0.05, 0.58)])
    p.line([(0.86, 0.47), (0.89, 0.54), (0.86, 0.6)], 0.03, shade=0.8, curved=True, outlined=False)
    p.line([(0.24, 0.42), (0.32, 0.33), (0.46, 0.26)], 0.05, shade=1.25, curved=True, outlined=False)
    for i, (x, y) in enumerate([(0.3, 0.6), (0.5, 0.76), (0.42, 0.67), (0.52, 0.4), (0.64, 0.71), (0.69, 0.41),
                                (0.6, 0.58), (0.76, 0.56)]):
        p.ellipse(x, y, 0.018, 0.018, shade=1.25 if i % 2 else 0.8, outlined=False)
    p.blob([(0.09, 0.27), (0.16, 0.14), (0.3, 0.08), (0.44, 0.13), (0.32, 0.25), (0.2, 0.29)], fill=LEAF)
    p.line([(0.1, 0.27), (0.38, 0.14)], 0.02, fill=LEAF_DARK, outlined=False)


def cucumber(p: Painter) -> None:
    p.line([(0.92, 0.1), (0.98, 0.02)], 0.07, fill=LEAF_DARK)
    p.blob([(0.06, 0.7), (0.24, 0.56), (0.44, 0.4), (0.62, 0.22), (0.76, 0.08), (0.88, 0.06), (0.96, 0.14),
            (0.95, 0.27), (0.82, 0.45), (0.64, 0.64), (0.45, 0.82), (0.28, 0.96)])
    for x, y in [(0.16, 0.7), (0.27, 0.84)]:
        p.line([(x, y), (x + 0.34, y - 0.28), (x + 0.66, y - 0.6)], 0.035, shade=1.25, taper=0.5, outlined=False)
        p.line([(x + 0.05, y + 0.05), (x + 0.39, y - 0.23), (x + 0.69, y - 0.53)], 0.03, shade=0.8, outlined=False)
    for x, y in [(0.36, 0.47), (0.52, 0.33), (0.67, 0.18), (0.5, 0.77), (0.65, 0.62), (0.8, 0.46), (0.94, 0.27)]:
        p.ellipse(x, y, 0.03, 0.03, shade=0.8)
    p.ellipse(0.16, 0.83, 0.17, 0.13, angle=50, fill="#e9f0c4")
    for i in range(6):
        turn = math.tau * i / 6
        p.ellipse(0.16 + 0.075 * math.cos(turn), 0.83 + 0.075 * math.sin(turn), 0.032, 0.014, angle=60 * i,
                  fill="#a9b973", outlined=False)


def broccoli(p: Painter) -> None:
    p.blob([(0.4, 0.97), (0.39, 0.76), (0.22, 0.54), (0.34, 0.48), (0.5, 0.6), (0.66, 0.48), (0.78, 0.54),
            (0.61, 0.76), (0.6, 0.97), (0.5, 0.99)], shade=1.25)
    p.line([(0.5, 0.6), (0.48, 0.9)], 0.03, shade=0.9, outlined=False)
    crowns = [(0.17, 0.44, 0.16), (0.83, 0.44, 0.16), (0.24, 0.26, 0.17), (0.76, 0.26, 0.17), (0.5, 0.19, 0.18),
              (0.36, 0.46, 0.15), (0.64, 0.46, 0.15), (0.5, 0.36, 0.16)]
    for x, y, radius in crowns:
        for i in range(8):
            turn = math.tau * i / 8
            p.ellipse(x + 0.72 * radius * math.cos(turn), y + 0.72 * radius * math.sin(turn), 0.4 * radius,
                      0.4 * radius, shade=0.8)
        p.ellipse(x, y, 0.8 * radius, 0.8 * radius, shade=0.95, outlined=False)
        for dx, dy in [(-0.3, -0.2), (0.25, -0.4), (0.1, 0.15), (-0.25, 0.4), (0.5, 0.2)]:
            p.ellipse(x + dx * radius, y + dy * radius, 0.022, 0.022, shade=1.2, outlined=False)


def eggplant(p: Painter) -> None:
    p.blob([(0.7, 0.18), (0.82, 0.28), (0.82, 0.44), (0.73, 0.62), (0.64, 0.82), (0.46, 0.96), (0.24, 0.96),
            (0.07, 0.82), (0.04, 0.6), (0.16, 0.42), (0.36, 0.33), (0.54, 0.22)])
    p.line([(0.14, 0.66), (0.22, 0.5), (0.38, 0.41)], 0.06, shade=1.25, curved=True, outlined=False)
    p.line([(0.28, 0.89), (0.47, 0.87), (0.6, 0.72)], 0.05, shade=0.8, curved=True, outlined=False)
    p.polygon([(0.72, 0.14), (0.58, 0.14), (0.46, 0.24), (0.58, 0.27), (0.57, 0.42), (0.68, 0.34), (0.76, 0.48),
               (0.8, 0.38), (0.9, 0.4), (0.87, 0.26)], fill=LEAF)
    p.line([(0.77, 0.24), (0.85, 0.13), (0.97, 0.07)], 0.1, fill=LEAF_DARK, curved=True, taper=0.8)


def grapes(p: Painter) -> None:
    p.line([(0.5, 0.3), (0.49, 0.14), (0.42, 0.02)], 0.05, fill=STEM, curved=True)
    for row, count in enumerate([4, 5, 4, 3, 2, 1]):
        for i in range(count):
            x, y = 0.5 + 0.175 * (i - (count - 1) / 2), 0.27 + 0.125 * row
            p.ellipse(x, y, 0.108, 0.108, shade=0.8)
            p.ellipse(x, y, 0.093, 0.093, shade=1.0 if (row + i) % 2 else 1.08, outlined=False)
            p.ellipse(x - 0.035, y - 0.035, 0.028, 0.028, shade=1.25, outlined=False)
    p.polygon([(0.5, 0.14), (0.56, 0.03), (0.66, 0.07), (0.76, 0.01), (0.8, 0.11), (0.93, 0.14), (0.84, 0.22),
               (0.84, 0.32), (0.72, 0.28), (0.6, 0.31), (0.6, 0.21)], fill=LEAF)
    p.line([(0.5, 0.14), (0.82, 0.17)], 0.02, fill=LEAF_DARK, outlined=False)


def plum(p: Painter) -> None:
    p.blob([(0.47, 0.27), (0.62, 0.2), (0.8, 0.27), (0.91, 0.48), (0.88, 0.74), (0.72, 0.93), (0.5, 0.99),
            (0.27, 0.93), (0.11, 0.74), (0.08, 0.48), (0.18, 0.28), (0.34, 0.21)])
    p.line([(0.47, 0.27), (0.36, 0.44), (0.34, 0.66), (0.45, 0.95)], 0.05, shade=0.8, curved=True, taper=0.4,
           outlined=False)
    p.line([(0.51, 0.31), (0.42, 0.46), (0.4, 0.66), (0.48, 0.9)], 0.03, shade=1.25, curved=True, taper=0.4,
           outlined=False)
    p.ellipse(0.74, 0.44, 0.05, 0.11, angle=-25, shade=1.25, outlined=False)
    p.line([(0.47, 0.29), (0.46, 0.15), (0.39, 0.02)], 0.05, fill=STEM, curved=True)
    p.blob([(0.46, 0.17), (0.56, 0.05), (0.74, 0.02), (0.93, 0.1), (0.8, 0.2), (0.62, 0.22)], fill=LEAF)
    p.line([(0.47, 0.16), (0.84, 0.11)], 0.02, fill=LEAF_DARK, outlined=False)


def blueberry(p: Painter) -> None:
    p.ellipse(0.5, 0.56, 0.47, 0.42)
    p.line([(0.14, 0.56), (0.22, 0.75), (0.4, 0.87)], 0.05, shade=1.25, curved=True, outlined=False)
    p.line([(0.86, 0.56), (0.79, 0.75), (0.6, 0.87)], 0.05, shade=0.8, curved=True, outlined=False)
    star = [(math.tau * (i + 0.5) / 10, 1.0 if i % 2 else 0.6) for i in range(10)]
    for size, shade in [(1.18, 0.8), (1.0, 1.25)]:
        p.polygon([(0.5 + 0.3 * size * r * math.sin(t), 0.3 - 0.24 * size * r * math.cos(t)) for t, r in star],
                  shade=shade)
    p.ellipse(0.5, 0.3, 0.13, 0.1, fill="#2e2a38")
    p.ellipse(0.5, 0.31, 0.05, 0.035, fill="#6a6478", outlined=False)


def potato(p: Painter) -> None:
    p.blob([(0.02, 0.56), (0.07, 0.36), (0.22, 0.23), (0.38, 0.22), (0.54, 0.15), (0.76, 0.14), (0.92, 0.26),
            (0.98, 0.44), (0.92, 0.64), (0.78, 0.75), (0.62, 0.85), (0.42, 0.82), (0.24, 0.85), (0.08, 0.74)])
    p.line([(0.12, 0.69), (0.26, 0.78), (0.42, 0.75)], 0.04, shade=0.8, curved=True, outlined=False)
    p.line([(0.66, 0.22), (0.8, 0.23), (0.89, 0.35)], 0.04, shade=1.25, curved=True, outlined=False)
    for x, y, r in [(0.24, 0.41, 0.07), (0.52, 0.33, 0.05), (0.72, 0.42, 0.08), (0.4, 0.58, 0.08), (0.64, 0.67, 0.06),
                    (0.86, 0.55, 0.04), (0.16, 0.6, 0.04)]:
        p.ellipse(x, y, r, 0.6 * r, angle=-15, shade=1.25, outlined=False)
        p.ellipse(x, y + 0.15 * r, 0.75 * r, 0.35 * r, angle=-15, fill="#4f3d2b", outlined=False)


def acorn(p: Painter) -> None:
    p.blob([(0.17, 0.3), (0.83, 0.3), (0.86, 0.48), (0.8, 0.7), (0.67, 0.85), (0.55, 0.91), (0.5, 0.99), (0.45, 0.91),
            (0.33, 0.85), (0.2, 0.7), (0.14, 0.48)])
    p.line([(0.28, 0.44), (0.3, 0.62), (0.38, 0.76)], 0.06, shade=1.25, curved=True, outlined=False)
    p.line([(0.73, 0.44), (0.71, 0.64), (0.62, 0.78)], 0.05, shade=0.8, curved=True, outlined=False)
    p.line([(0.5, 0.18), (0.5, 0.1), (0.56, 0.02)], 0.08, fill="#3f2d1e", curved=True)
    p.blob([(0.07, 0.31), (0.13, 0.2), (0.3, 0.12), (0.5, 0.1), (0.7, 0.12), (0.87, 0.2), (0.93, 0.31), (0.85, 0.36),
            (0.5, 0.38), (0.15, 0.36)], fill="#59412c")
    for row, y in enumerate((0.17, 0.24, 0.31)):
        for i in range(4 + row):
            x = 0.5 + (i - (3 + row) / 2) * 0.135
            p.polygon([(x - 0.045, y), (x, y - 0.03), (x + 0.045, y), (x, y + 0.03)], fill="#86664a", outlined=False)


SHAPES = {
    shape.__name__: shape
    for shape in (
        strawberry, tomato, carrot, pumpkin, banana, lemon, cucumber, broccoli, eggplant, grapes, plum, blueberry,
        potato, acorn,
    )
}
