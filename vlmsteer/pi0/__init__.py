"""pi0 (Black et al., RSS 2025, arXiv 2410.24164): a policy whose actions come from a flow, not from tokens."""
