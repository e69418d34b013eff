"""Checkboxes whose choices change with the model. Gradio writes a stub, chosen.pyi, beside every such class."""

from __future__ import annotations

from typing import Any

import gradio as gr


class Chosen(gr.CheckboxGroup):
    """Takes what a page sends that is behind, or forges; `Panel.of` checks it."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        return payload
