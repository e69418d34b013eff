"""How a task of lmms-eval wants its answers written, in the engine's words.

What would change the answers and cannot be had is refused; what is only meant for other models is left out and named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vlmsteer.errors import InputError

LONGEST = 1024  # tokens of an answer where a task does not say, as in the harness's own models
UNASKED = "\n\n"  # the harness stops there in every task that names no stop; it would cut captions in two
SAMPLING = ("temperature", "top_p", "top_k")
PASSED = ("num_beams", "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "min_new_tokens")
MANY = ("n", "best_of", "num_return_sequences")


class Writing(NamedTuple):
    """How answers are written: the most tokens, the strings that end one, arguments of generate (none for greedy)."""

    limit: int
    stops: tuple[str, ...]
    generation: tuple[tuple[str, Any], ...]


def writing(asked: Mapping[str, Any], warn: Callable[[str], None]) -> Writing:
    """What a task's `generation_kwargs` mean here.

    Answers are greedy unless `temperature` is above 0 or `do_sample` is true; `do_sample: false` and `temperature: 0`
    both mean greedy. Settings that the engine does not have are left out and named to `warn`.

    Raises:
        InputError: if several answers to one question are wanted, or a setting is no number.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    stops = given.pop("until", [])
    stops = [stops] if isinstance(stops, str) else list(stops)
    for name in MANY:
        if given.pop(name, 1) != 1:
            raise InputError(f"{name} asks for several answers to one question; vlmsteer gives one. Leave it out.")
    try:
        limit = int(given.pop("max_new_tokens", given.pop("max_gen_toks", LONGEST)))
        temperature = float(given.get("temperature", 1.0 if given.get("do_sample") else 0.0))
    except (TypeError, ValueError) as error:
        raise InputError(f"max_new_tokens and temperature are numbers: {error}.") from error
    sampled = temperature > 0 and given.pop("do_sample", True) is not False
    generation: dict[str, Any] = {"do_sample": True} if sampled else {}
    for name in SAMPLING:
        value = given.pop(name, None)
        if sampled and value is not None:
            generation[name] = value
    generation |= {name: given.pop(name) for name in PASSED if name in given}
    if generation.get("num_beams") == 1:
        del generation["num_beams"]
    given.pop("do_sample", None)
    for name in given:
        warn(name)
    kept = tuple(str(stop) for stop in stops if stop and stop != UNASKED)
    return Writing(limit, kept, tuple(sorted(generation.items())))
