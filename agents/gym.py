"""Any Gymnasium environment that renders ``rgb_array``, behind the project's own face."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from PIL import Image

from agents.actions import ActionSet
from agents.environments import LARGEST_FRAME_SKIP
from agents.errors import OptionError, SpecError

DEFAULT_FPS = 30.0


class GymEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """``gym/<id>``: Discrete becomes a one-hot of exclusive buttons, Box axes, MultiBinary buttons.

    The frame is the rendered picture, scaled with its aspect kept and centred on black.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(
        self, name: str, frame_skip: int = 1, height: int = 240, width: int = 320, max_frames: int | None = None
    ) -> None:
        if not 1 <= frame_skip <= LARGEST_FRAME_SKIP:
            raise OptionError(f"must be 1 to {LARGEST_FRAME_SKIP}, got {frame_skip}", "frame_skip", "use 1 to 8")
        try:
            self._env = gymnasium.make(name, render_mode="rgb_array")
        except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
            first_line = str(error).strip().split("\n")[0]
            remedy = "check its id and its package"
            if isinstance(error, ImportError):
                remedy = "install its package, or run python -m gamengen in the folder where it lies"
            raise SpecError(f"cannot make the environment ({first_line})", name, remedy) from error
        self.spec_name = f"gym/{name}"
        self.frame_skip = frame_skip
        self.fps = float(self._env.metadata.get("render_fps", DEFAULT_FPS)) / frame_skip
        self.variable_names: tuple[str, ...] = ()
        self.max_frames = max_frames
        self.render_mode = "rgb_array"
        self._size = (width, height)
        self._frame = np.zeros((height, width, 3), np.uint8)
        self._frames_played = 0
        self.action_set = _action_set(self._env.action_space, name)
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self.action_set.size,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode: (frame, info)."""
        super().reset(seed=seed)
        self._env.reset(seed=seed, options=options)
        self._frames_played = 1
        return self._render(), {"variables": {}}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` (A,) for ``frame_skip`` steps; rewards are summed."""
        native = self._native(self.action_set.check(action))
        reward, terminated, truncated = 0.0, False, False
        for _ in range(self.frame_skip):
            _, r, terminated, truncated, _ = self._env.step(native)
            reward += float(r)
            if terminated or truncated:
                break
        self._frames_played += 1
        truncated = truncated or (self.max_frames is not None and self._frames_played >= self.max_frames)
        return self._render(), reward, bool(terminated), bool(truncated), {"variables": {}}

    def render(self) -> np.ndarray:
        """The newest frame (H, W, 3) uint8."""
        return self._frame

    def close(self) -> None:
        """Close the wrapped environment."""
        self._env.close()

    def _render(self) -> np.ndarray:
        picture = self._env.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise SpecError("the environment does not render rgb_array", self.spec_name, "use one that does")
        image = Image.fromarray(picture.astype(np.uint8))
        scale = min(self._size[0] / image.width, self._size[1] / image.height)
        inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        canvas = Image.new("RGB", self._size)
        offset = ((self._size[0] - inner[0]) // 2, (self._size[1] - inner[1]) // 2)
        canvas.paste(image.resize(inner, Image.Resampling.BILINEAR), offset)
        self._frame = np.array(canvas)
        return self._frame

    def _native(self, action: np.ndarray) -> Any:
        space = self._env.action_space
        if isinstance(space, gymnasium.spaces.Discrete):
            return int(space.start) + int(action.argmax())
        if isinstance(space, gymnasium.spaces.MultiBinary):
            return (action > 0.5).astype(space.dtype).reshape(space.shape)
        assert isinstance(space, gymnasium.spaces.Box)
        unit = (action.reshape(space.shape) + 1) / 2
        return (space.low + unit * (space.high - space.low)).astype(space.dtype)


def _action_set(space: gymnasium.Space[Any], name: str) -> ActionSet:
    if isinstance(space, gymnasium.spaces.Discrete) and space.n > 1:
        return ActionSet(tuple(f"ACTION_{i}" for i in range(int(space.n))), exclusive=True)
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return ActionSet(tuple(f"BUTTON_{i}" for i in range(int(np.prod(space.shape)))))
    if isinstance(space, gymnasium.spaces.Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return ActionSet((), tuple(f"AXIS_{i}" for i in range(int(np.prod(space.shape)))))
    raise SpecError(f"cannot encode its actions ({space})", name, "use Discrete, MultiBinary or a bounded Box")
