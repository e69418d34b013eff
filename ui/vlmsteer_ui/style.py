"""How the page looks: one theme without remote fonts, colors for prior and pixel, light and dark."""

from __future__ import annotations

from gradio.themes import Base

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
PRIOR, PIXEL = "#c2570c", "#1d5fd1"  # orange and blue; in the dark the lighter ones of `CSS`

CSS = """
:root, .gradio-container { --prior: #c2570c; --pixel: #1d5fd1; --heat: 88, 70, 200; }
.dark, .dark .gradio-container { --prior: #fb923c; --pixel: #7db1ff; --heat: 150, 135, 255; }
.gradio-container { max-width: 1440px !important; margin: 0 auto; }
#header { align-items: center; gap: 12px; }
#title h1 { font-size: 1.35rem; margin: 0; white-space: nowrap; }
#answers textarea { font-size: 1rem; }
#run-row button { min-height: 44px; }
.quiet { color: var(--body-text-color-subdued); font-size: .85rem; }
@media (max-width: 640px) { #header, #top-row { flex-direction: column; align-items: stretch; } }
"""


def theme() -> Base:
    """The page's theme."""
    return Base(
        primary_hue="slate", neutral_hue="slate", font=FONT, font_mono=MONO, text_size="md", radius_size="sm",
        spacing_size="sm",
    )  # fmt: skip
