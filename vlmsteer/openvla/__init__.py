"""OpenVLA (Kim et al., CoRL 2024, arXiv 2406.09246) as a model, without the code that its checkpoints carry."""
