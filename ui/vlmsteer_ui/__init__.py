"""The workbench: ask a model about an image, see its layers, steer it, edit the image, on one page (Gradio)."""
