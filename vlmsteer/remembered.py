"""What was worked out of an object once, kept for as long as the object lives and stays as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Remembered(Generic[T]):
    """Results by object, not by what equals it: nothing has to be hashed or compared to find one."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], Any, T]] = {}

    def __call__(self, thing: Any, stamp: Any, make: Callable[[], T]) -> T:
        """The result of `make()`, which is called if there is none for this object at this stamp.

        Args:
            thing: anything that may be weakly referred to.
            stamp: what else the result depends on, such as the versions of the object's tensors.
        """
        place = id(thing)
        known = self._known.get(place)
        if known is None or known[0]() is not thing or known[1] != stamp:
            known = (weakref.ref(thing, lambda _: self._known.pop(place, None)), stamp, make())
            self._known[place] = known
        return known[2]
