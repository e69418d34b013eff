"""One run in several processes (`accelerate launch`, `torchrun`, `mpirun`): who am I, and wait for the rest.

Processes exchange nothing but a word at the start and at the end (gloo, so no GPU is needed); answers go through files,
so nodes must see one folder.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from vlmsteer.errors import InputError, VlmsteerError

T = TypeVar("T")
PATIENCE = timedelta(days=30)  # a process may have much more to do than another
NAMES = {  # torchrun and accelerate; Open MPI; Intel MPI and MPICH
    "rank": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "world": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "local": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
}


@dataclass(frozen=True)
class Ranks:
    """This process's number, how many there are, and its number on this machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @staticmethod
    def here() -> Ranks:
        """As the launcher's environment says; one process without a launcher."""
        world = _number("world", 1) if "MASTER_ADDR" in os.environ else 1
        return Ranks(_number("rank", 0), world, _number("local", 0)) if world > 1 else Ranks()

    def join(self) -> None:
        """Meet the other processes. Without any, nothing happens."""
        if self.world > 1:
            import torch.distributed as dist

            dist.init_process_group("gloo", rank=self.rank, world_size=self.world, timeout=PATIENCE)

    def leave(self) -> None:
        """Say goodbye."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def first(self, work: Callable[[], T]) -> T:
        """What the first process finds, given to all; so is its error.

        Raises:
            VlmsteerError: the first process's.
        """
        if self.world == 1:
            return work()
        import torch.distributed as dist

        told: list[T | VlmsteerError | None] = [None]
        if self.rank == 0:
            try:
                told = [work()]
            except VlmsteerError as error:
                told = [error]
        dist.broadcast_object_list(told, src=0)
        if isinstance(told[0], VlmsteerError):
            raise told[0]
        return told[0]  # pyright: ignore[reportReturnType]

    def all(self, error: VlmsteerError | None) -> None:
        """Wait until every process is done.

        Raises:
            VlmsteerError: the first error of any process.
        """
        errors = [error]
        if self.world > 1:
            import torch.distributed as dist

            errors = [None] * self.world
            dist.all_gather_object(errors, error)  # pyright: ignore[reportArgumentType]
        for one in errors:
            if one is not None:
                raise one


def _number(what: str, default: int) -> int:
    for name in NAMES[what]:
        value = os.environ.get(name)
        if value is not None:
            if not value.isdigit():
                raise InputError(f"The launcher's {name} is {value!r}, which is no number.")
            return int(value)
    return default
