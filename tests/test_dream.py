"""Agents that learn inside the neural game."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_outcome import telling

from agents.errors import OptionError
from agents.policy import PPOAgent, read_agent
from agents.ppo import PPOOptions, train_ppo
from engine.dream import REWARD_SCALE, DreamGames
from engine.game import NeuralGame
from gamengen.checkpoints import Checkpoint
from gamengen.cli import main

MakeUp = Callable[..., Checkpoint]


def games(made_up: MakeUp, ends: float = -9.0, batch: int = 3, **changes: Any) -> DreamGames:
    game = NeuralGame(telling(made_up, ends), "cpu", 1, batch=batch, dtype="float32")
    return DreamGames(game, **{"hold": 2, "max_frames": 6, **changes})


def test_a_decision_is_held_and_paid(made_up: MakeUp) -> None:
    dream = games(made_up)
    seen = dream.reset()
    assert seen["image"].shape == (3, 6, 120, 160) and not seen["image"][:, 3:].any(), "no map"
    choice = int(np.flatnonzero(dream.table[:, 0])[0])
    seen, rewards, dones, _ = dream.step(np.array([choice, 0, 0]))
    assert rewards == pytest.approx([2 * REWARD_SCALE] * 3, rel=1e-3), "two frames of reward 1"
    assert not dones.any()
    held = seen["actions"].reshape(3, 32, -1)
    assert held[0, -1, 0] == 1 and not held[1:].any()


def test_a_game_is_cut_after_its_frames(made_up: MakeUp) -> None:
    dream = games(made_up)
    dream.reset()
    for last in (False, False, True):
        seen, _, dones, infos = dream.step(np.zeros(3, int))
        assert dones.tolist() == [last] * 3
    assert all(info["TimeLimit.truncated"] for info in infos)
    assert infos[0]["total_reward"] == pytest.approx(6, rel=1e-3)
    assert not np.array_equal(infos[0]["terminal_observation"]["image"], seen["image"][0]), "the next has begun"


def test_an_end_is_paid_once(made_up: MakeUp) -> None:
    dream = games(made_up, ends=9.0)
    dream.reset()
    _, rewards, dones, infos = dream.step(np.zeros(3, int))
    assert dones.all() and not infos[0]["TimeLimit.truncated"]
    assert rewards == pytest.approx([REWARD_SCALE] * 3, rel=1e-3), "of the frame after the end nothing"


def test_one_game_alone(made_up: MakeUp) -> None:
    dream = games(made_up, batch=1)
    assert dream.reset()["image"].shape == (1, 6, 120, 160)
    assert dream.step(np.zeros(1, int))[1].shape == (1,)


def test_a_game_without_outcomes(made_up: MakeUp) -> None:
    with pytest.raises(OptionError, match="tells no rewards"):
        DreamGames(NeuralGame(made_up(), "cpu"), 2, 6)


def test_an_agent_trained_inside_plays_without_a_map(made_up: MakeUp, tmp_path: Path) -> None:
    dream = games(made_up)
    out = tmp_path / "dreamer.safetensors"
    options = PPOOptions(
        "gym/stripes", out, 24, environments=3, n_steps=4, batch_size=6, epochs=1, device="cpu", inside="made-up"
    )  # fmt: skip
    summary = train_ppo(options, games=dream)
    assert (summary.steps, summary.episodes) == (24, 6)
    assert summary.last_episodes_reward == pytest.approx(6, rel=1e-2)
    assert read_agent(out)[0]["options"]["inside"] == "made-up"
    agent = PPOAgent.load(out, dream.action_set)
    assert agent.sensors == frozenset()
    assert agent.act(np.zeros((48, 80, 3), np.uint8), {}).shape == (2,)


def test_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["agent", "train", "doom/basic", "--inside", str(tiny), "--out", str(tmp_path / "a.safetensors")]
    quick = ["--steps", "8", "--environments", "2", "--n-steps", "4", "--batch-size", "4", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main([*words, *quick])
    assert left.value.code == 0
    assert (tmp_path / "a.safetensors").is_file()
    for more, what in (
        (["--record", str(tmp_path / "r")], "what is dreamed is not recorded"),
        (["--frame-skip", "4"], "the checkpoint's frame_skip is 2, not 4"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*words, *quick, *more])
        assert left.value.code == 1
        assert what in capsys.readouterr().err
