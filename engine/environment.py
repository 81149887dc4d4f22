"""The neural game behind Gymnasium's face, so that agents can play it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from agents.errors import OptionError
from engine.game import NeuralGame
from gamengen.checkpoints import Checkpoint

MAX_FRAMES = 1050


class NeuralGameEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """A :class:`NeuralGame` as an environment: frames (H, W, 3) uint8 out, actions (A,) float32 in.

    Rewards and ends are those that the checkpoint's outcome head tells, at the frame at which they show; ``info`` has
    what it reads of the score bar. Without such a head the reward is always 0 and an episode ends by truncation alone;
    ``info["outcome"]`` says so.

    Args:
        checkpoint: as for :class:`NeuralGame`.
        device: likewise.
        steps: likewise.
        max_frames: frames of an episode.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        OptionError: an option cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path | Checkpoint | None = None,
        device: str = "auto",
        steps: int | None = None,
        max_frames: int = MAX_FRAMES,
    ) -> None:
        if max_frames < 1:
            raise OptionError(f"must be at least 1, got {max_frames}", "max_frames", "give a positive number")
        self._game = NeuralGame(checkpoint, device, steps)
        self._max_frames, self._played = max_frames, 0
        self.action_set = self._game.action_set
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": self._game.fps}
        self.observation_space = gymnasium.spaces.Box(0, 255, self._game.frame.shape, np.uint8)
        low = np.array([0.0] * len(self.action_set.buttons) + [-1.0] * len(self.action_set.axes), np.float32)
        self.action_space = gymnasium.spaces.Box(low, np.ones_like(low), dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start from a stored spawn: ``options={"spawn": n}``, or one drawn from the seed."""
        super().reset(seed=seed)
        if seed is not None:
            self._game.reseed(seed)
        self._played = 0
        spawn = (options or {}).get("spawn")
        return self._game.reset(spawn).copy(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` (A,) for one frame."""
        frame = self._game.step(action)
        self._played += 1
        outcome = self._game.outcome
        reward = float(outcome.reward[0]) if outcome is not None else 0.0
        return frame.copy(), reward, bool(self._game.ended[0]), self._played >= self._max_frames, self._info()

    def render(self) -> np.ndarray:
        """The newest frame (H, W, 3) uint8."""
        return self._game.frame

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"spawn": self._game.spawn}
        if not self._game.tells_outcome:
            return info | {"outcome": "not predicted: reward is 0"}
        outcome = self._game.outcome
        levels = {name: float(value[0]) for name, value in outcome.levels.items()} if outcome is not None else {}
        rises = {name: float(value[0]) for name, value in outcome.rises.items()} if outcome is not None else {}
        return info | {"outcome": "predicted", "levels": levels, "rises": rises}
