"""Learning inside the neural game: a batch of dreamed games as stable-baselines3 has its environments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from agents.errors import OptionError
from agents.policy import View, combinations
from engine.game import NeuralGame

REWARD_SCALE = 10.0  # a kill is 1 in Doom's own scenarios, and 10 to an agent trained by the paper's reward


class DreamGames(VecEnv):
    """The games of a batched :class:`NeuralGame`, each with decisions that are held for some frames.

    Observations and actions are those of :class:`agents.ppo.DecisionEnvironment`, with no map. Rewards and ends are
    what the outcome head tells; an ended game starts anew from another spawn while the others go on.

    Args:
        game: with an outcome head.
        hold: frames that a decision is held.
        max_frames: frames after which a game is cut.

    Raises:
        OptionError: the game tells no outcome.
    """

    def __init__(self, game: NeuralGame, hold: int, max_frames: int) -> None:
        if not game.tells_outcome:
            raise OptionError("its checkpoint tells no rewards", game.name, "gamengen create makes what does")
        self._game, self._hold, self._max_frames = game, hold, max_frames
        self.action_set = game.action_set
        self.table = combinations(game.action_set)
        self._views = [View(game.action_set) for _ in range(game.batch)]
        self._chosen = np.zeros(game.batch, np.int64)
        self._played, self._totals = np.zeros(game.batch, np.int64), np.zeros(game.batch)
        self.render_mode = "rgb_array"
        super().__init__(game.batch, self._views[0].space, gymnasium.spaces.Discrete(len(self.table)))

    def reset(self) -> Any:
        """Start all games anew, each from a spawn of its own."""
        self._game.respawn(range(self.num_envs))
        self._played[:], self._totals[:] = 0, 0.0
        for view in self._views:
            view.reset()
        return self._stacked([self._look(number) for number in range(self.num_envs)])

    def step_async(self, actions: np.ndarray) -> None:
        """Decide: indices (B,) of the table."""
        self._chosen = np.asarray(actions)

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Hold the decisions; a game that ends within one is not paid for the rest of it."""
        held = self.table[self._chosen]
        earned, ended = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        for _ in range(self._hold):
            self._game.step(held if self.num_envs > 1 else held[0])
            assert self._game.outcome is not None
            earned += np.where(ended, 0, self._game.outcome.reward)
            self._played += ~ended
            ended |= self._game.ended
        cut = ~ended & (self._played >= self._max_frames)
        self._totals += earned
        for view, action in zip(self._views, held, strict=True):
            view.remember(action)
        seen = [self._look(number) for number in range(self.num_envs)]
        infos: list[dict[str, Any]] = [{} for _ in seen]
        finished = np.flatnonzero(ended | cut).tolist()
        for number in finished:
            infos[number] = {
                "terminal_observation": seen[number], "TimeLimit.truncated": bool(cut[number]),
                "total_reward": float(self._totals[number]),
            }  # fmt: skip
            self._played[number], self._totals[number] = 0, 0.0
            self._views[number].reset()
        if finished:
            self._game.respawn(finished)
            for number in finished:
                seen[number] = self._look(number)
        return self._stacked(seen), REWARD_SCALE * earned, ended | cut, infos

    def _look(self, number: int) -> dict[str, np.ndarray]:
        frames = self._game.frame if self.num_envs > 1 else self._game.frame[None]
        return self._views[number].look(frames[number], {})

    def _stacked(self, seen: Sequence[dict[str, np.ndarray]]) -> Any:
        return {name: np.stack([part[name] for part in seen]) for name in seen[0]}

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, once for each of the games asked for."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all games at once."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Call a method, once for each of the games asked for."""
        return [getattr(self, method_name)(*method_args, **method_kwargs) for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None is."""
        return [False for _ in self._get_indices(indices)]
