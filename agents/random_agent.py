"""Random but human-like: keys are pressed and held, sometimes together."""

from __future__ import annotations

from typing import Any

import numpy as np

from agents.actions import ActionSet

TICS_PER_SECOND = 35
# Mean seconds that a key is held, and that it is left alone.
HOLD_SECONDS = {"ATTACK": 0.25, "USE": 0.1, "TURN": 0.45, "MOVE": 0.8, "SPEED": 1.5, "SELECT": 0.1}
REST_SECONDS = {"ATTACK": 0.8, "USE": 2.0, "TURN": 0.9, "MOVE": 0.9, "SPEED": 2.0, "SELECT": 6.0}
# Pressing one of these lets go of the other: a hand rarely holds both.
OPPOSITES = (
    ("TURN_LEFT", "TURN_RIGHT"), ("MOVE_LEFT", "MOVE_RIGHT"), ("MOVE_FORWARD", "MOVE_BACKWARD"),
)  # fmt: skip


class RandomAgent:
    """Each button is a two-state Markov chain with human holding times; axes wander.

    How busy the hand is differs from episode to episode, so that still, calm and hectic play are
    all recorded.
    """

    name = "random"
    sensors: frozenset[str] = frozenset()

    def __init__(self, action_set: ActionSet, frame_skip: int = 2) -> None:
        self._actions = action_set
        self._seconds_per_frame = frame_skip / TICS_PER_SECOND
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Start anew from ``seed``."""
        self._rng = np.random.default_rng(seed)
        self._action = self._actions.rest
        self._tempo = self._rng.uniform(0.5, 2.0, self._actions.size)

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action (A,) to hold now."""
        if self._actions.exclusive:
            if self._rng.random() < self._seconds_per_frame / 0.3:
                self._action = self._actions.encode([str(self._rng.choice(self._actions.buttons))])
            return self._action.copy()
        for i, name in enumerate(self._actions.buttons):
            kind = name.partition("_")[0]
            held = self._action[i] > 0.5
            mean = (HOLD_SECONDS if held else REST_SECONDS).get(kind, 0.5 if held else 1.0)
            rate = 1.0 if held else self._tempo[i]
            if self._rng.random() < 1 - np.exp(-self._seconds_per_frame * rate / mean):
                self._action[i] = 1 - self._action[i]
                if not held:
                    self._let_go_of_opposite(name)
        for i in range(len(self._actions.buttons), self._actions.size):
            drift = 0.9 * self._action[i] + 0.3 * self._rng.standard_normal()
            self._action[i] = np.clip(drift, -1, 1)
        return self._action.copy()

    def _let_go_of_opposite(self, name: str) -> None:
        for a, b in OPPOSITES:
            if name in (a, b):
                other = b if name == a else a
                if other in self._actions.buttons:
                    self._action[self._actions.buttons.index(other)] = 0
