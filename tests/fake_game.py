"""A tiny game with the face of NeuralGame: a moving picture that depends on the action."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.actions import ActionSet
from gamengen.outcome import Outcome

DEFEND = ActionSet(("TURN_LEFT", "TURN_RIGHT", "ATTACK"))


@dataclass(frozen=True)
class FakeState:
    number: int
    angle: int
    spawn: int
    held: np.ndarray


class FakeGame:
    """The picture turns with the turn keys, flashes on fire, and differs from spawn to spawn."""

    device_name, dtype_name, name = "cpu", "float32", "fake game"
    fps = 35.0
    spawn_count = 4

    def __init__(self, action_set: ActionSet = DEFEND, height: int = 48, width: int = 64) -> None:
        self.action_set, self.height, self.width = action_set, height, width
        self.steps = 4
        self.actions: list[np.ndarray] = []  # all that was ever played
        self.spawn, self.number, self.angle = 0, 0, 0
        self.held = action_set.rest
        self.outcome: Outcome | None = None
        self.ended = np.array([False])
        self._rng = np.random.default_rng(0)

    @property
    def frame(self) -> np.ndarray:
        y, x = np.mgrid[: self.height, : self.width]
        sky = np.stack([40 + 4 * ((x + self.angle) % 32), 30 + 2 * y, 60 + 40 * self.spawn + 0 * x], -1)
        if "ATTACK" in self.action_set.buttons and self.held[self.action_set.buttons.index("ATTACK")] > 0.5:
            sky[self.height // 3 : -self.height // 3, self.width // 3 : -self.width // 3] = (255, 230, 120)
        return np.clip(sky, 0, 255).astype(np.uint8)

    def reset(self, spawn: int | None = None) -> np.ndarray:
        self.spawn = int(self._rng.integers(self.spawn_count)) if spawn is None else spawn
        self.number, self.angle, self.held = 0, 0, self.action_set.rest
        return self.frame

    def step(self, action: np.ndarray) -> np.ndarray:
        self.held = self.action_set.check(action).copy()
        self.actions.append(self.held)
        turn = {"TURN_LEFT": -4, "TURN_RIGHT": 4, "MOVE_LEFT": -4, "MOVE_RIGHT": 4}
        self.angle += sum(turn.get(name, 0) for name in self.action_set.held(self.held))
        self.number += 1
        return self.frame

    def save(self) -> FakeState:
        return FakeState(self.number, self.angle, self.spawn, self.held.copy())

    def load(self, state: FakeState) -> np.ndarray:
        self.number, self.angle, self.spawn, self.held = state.number, state.angle, state.spawn, state.held.copy()
        return self.frame
