"""Everything a user can get wrong ends in one of these errors.

A message is one or two sentences: what was given, what is possible, what to do. The command line prints it without a
traceback and exits 2. Any other exception is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 12


class VlmsteerError(Exception):
    """Root of every error that the user can act on."""


class InputError(VlmsteerError):
    """An image, a question or a dataset cannot be used as given."""


class SiteError(VlmsteerError):
    """A site, layer, point or position does not exist in the model."""


class RecipeError(VlmsteerError):
    """A recipe or vector file cannot be read, or was made for another model."""


class ModelError(VlmsteerError):
    """A model name is unknown, or its checkpoint cannot be loaded."""


def did_you_mean(given: str, options: Iterable[str]) -> str:
    """The tail of a message about an unknown name: the nearest option, then what is possible.

    Args:
        given: the name that was not found; case is ignored when looking for a near one.
        options: the names that exist; at most 12 are listed, near ones first when there are more.

    Returns:
        A text that starts with "; " and has no final period, or "" when there are no options.

    Example:
        >>> did_you_mean("blok_out", ["block_in", "block_out", "attn_out"])
        "; did you mean 'block_out'? Possible: attn_out, block_in, block_out"
    """
    names = sorted(set(options))
    if not names:
        return ""
    folded: dict[str, list[str]] = {}
    for name in names:
        folded.setdefault(name.lower(), []).append(name)
    found = difflib.get_close_matches(str(given).lower(), folded, n=LISTED)
    near = [name for key in found for name in folded[key]]
    listed = ", ".join(names)
    if len(names) > LISTED:
        nearest_first = near + [name for name in names if name not in near]
        listed = f"{', '.join(nearest_first[:LISTED])}, ... ({len(names)} in all)"
    if near:
        return f"; did you mean {near[0]!r}? Possible: {listed}"
    return f"; possible: {listed}"
