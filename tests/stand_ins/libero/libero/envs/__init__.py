from typing import Any

import numpy as np

made: list["OffScreenRenderEnv"] = []


class OffScreenRenderEnv:
    def __init__(self, bddl_file_name: str, camera_heights: int = 128, camera_widths: int = 128) -> None:
        self.file, self.size = bddl_file_name, (camera_heights, camera_widths)
        self.calls: list[tuple[str, Any]] = []
        self.closed = False
        made.append(self)

    def seed(self, seed: int) -> None:
        self.calls.append(("seed", seed))
        np.random.seed(seed)

    def reset(self) -> dict[str, np.ndarray]:
        self.calls.append(("reset", None))
        self.shade, self.hand, self.count, self.over = np.random.uniform(0, 200), np.zeros(3), 0, False
        return self._seen()

    def set_init_state(self, state: np.ndarray) -> dict[str, np.ndarray]:
        self.calls.append(("state", tuple(state)))
        self.state = state
        return self._seen()

    def step(self, action: list[float]) -> tuple[dict[str, np.ndarray], float, bool, dict]:
        if self.over:
            raise ValueError("executing action in terminated episode")
        assert len(action) == 7
        self.calls.append(("step", list(action)))
        self.count += 1
        if self.count == self.state[1]:
            raise RuntimeError("the simulation is unstable")
        self.hand = self.hand + action[:3]
        self.over = self.count - 10 == self.state[0]
        return self._seen(), float(self.over), self.over, {}

    def close(self) -> None:
        self.closed = True

    def _seen(self) -> dict[str, np.ndarray]:
        picture = np.full((*self.size, 3), self.shade)
        row, column, _ = (np.tanh(self.hand) * 100 + 120).astype(int)
        picture[row : row + 30, column : column + 30] = (255, 40, 10)
        return {"agentview_image": picture.astype(np.uint8), "robot0_eef_pos": self.hand}
