"""How each object is drawn. One function an object; `SHAPES` maps its name to it."""

from vlmsteer_counterfacts.shapes import living, produce, things

SHAPES = produce.SHAPES | living.SHAPES | things.SHAPES
