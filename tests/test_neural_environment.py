"""The neural game behind Gymnasium's face."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from agents.errors import OptionError
from engine.environment import NeuralGameEnv
from gamengen.checkpoints import Checkpoint


def test_gymnasium_finds_no_fault(tiny: Path) -> None:
    check_env(NeuralGameEnv(tiny, "cpu", 1, max_frames=20), skip_render_check=True)


def test_without_an_outcome_head_it_ends_by_truncation_alone_and_says_so(made_up: Callable[..., Checkpoint]) -> None:
    env = NeuralGameEnv(made_up(), "cpu", 1, max_frames=3)
    _, info = env.reset(seed=4, options={"spawn": 0})
    assert info["spawn"] == 0 and "not predicted" in info["outcome"]
    steps = [env.step(env.action_set.rest) for _ in range(3)]
    assert [truncated for *_, truncated, _ in steps] == [False, False, True]
    assert all(reward == 0 and not terminated for _, reward, terminated, _, _ in steps)


def test_the_same_seed_gives_the_same_episode(tiny: Path) -> None:
    env = NeuralGameEnv(tiny, "cpu", 1)
    plays = []
    for _ in range(2):
        first, _ = env.reset(seed=7)
        plays.append(np.stack([first, *(env.step(env.action_set.rest)[0] for _ in range(3))]))
    assert (plays[0] == plays[1]).all()


def test_max_frames_is_checked(tiny: Path) -> None:
    with pytest.raises(OptionError):
        NeuralGameEnv(tiny, "cpu", max_frames=0)
