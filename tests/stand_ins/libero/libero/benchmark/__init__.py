import os
from typing import NamedTuple

import numpy as np

from libero.libero import get_libero_path  # pyright: ignore[reportMissingImports]

STATES = [(3, 0), (5, 0), (2, 12), (1, 0)]  # done after so many actions, breaks at this step
TASKS = ("pick up the red bowl", "Open the drawer")


class Task(NamedTuple):
    name: str
    language: str
    problem_folder: str
    bddl_file: str


class LIBERO_SPATIAL:
    def __init__(self) -> None:
        self.n_tasks = len(TASKS)

    def get_task(self, i: int) -> Task:
        name = TASKS[i].replace(" ", "_")
        return Task(name, TASKS[i], "libero_spatial", f"{name}.bddl")

    def get_task_bddl_file_path(self, i: int) -> str:
        task = self.get_task(i)
        return os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)

    def get_task_init_states(self, i: int) -> np.ndarray:
        return np.array(STATES, dtype=float)


def get_benchmark_dict() -> dict:
    return {"libero_spatial": LIBERO_SPATIAL, "libero_goal": LIBERO_SPATIAL}
