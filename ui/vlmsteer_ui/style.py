"""How the page looks: a theme without remote fonts, colors for prior and pixel, light and dark, what figures share.

A figure is a `div.figure`. In it, a `button.full` shows it on the full screen, and what has `data-tip` says so in the
figure's `.tip` while it is pointed at; a click locks that. Cells of a table are walked through with the arrow keys.
"""

from __future__ import annotations

from gradio.themes import Base

from vlmsteer_ui import templates

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
PRIOR, PIXEL = "#c2570c", "#1d5fd1"  # orange and blue; in the dark the lighter ones of `CSS`

CSS, JS = templates.read("page.css"), templates.read("page.js")


def theme() -> Base:
    """The page's theme."""
    return Base(
        primary_hue="slate", neutral_hue="slate", font=FONT, font_mono=MONO, text_size="md", radius_size="sm",
        spacing_size="sm",
    )  # fmt: skip
