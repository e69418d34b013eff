"""Steered models inside the harnesses of others; each file needs its harness only when it is used from there."""
