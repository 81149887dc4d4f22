"""The PPO agent: what it may choose, training a little, and its file."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.actions import ActionSet
from agents.agent import make_agent
from agents.environments import make_environment
from agents.errors import OptionError
from agents.policy import combinations
from agents.ppo import DecisionEnvironment, PPOOptions, train_ppo
from recorder.record import StreamRecorder
from recorder.recording import Recording, RecordingHeader
from recorder.replay import Replay

DOOM = ActionSet(("MOVE_FORWARD", "MOVE_BACKWARD", "TURN_LEFT", "TURN_RIGHT", "ATTACK", "USE", "SPEED"))


def options(out: Path, **changes: object) -> PPOOptions:
    values = {"steps": 64, "environments": 2, "n_steps": 16, "batch_size": 16, "epochs": 1, "max_frames": 40}
    return PPOOptions("doom/basic", out, **{**values, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording]:
    folder = tmp_path_factory.mktemp("ppo")
    environment = make_environment("doom/basic")
    header = RecordingHeader.of(environment, 240, 320, {"ppo": ""}, 0)
    environment.close()
    recording = Recording.create_or_resume(folder / "recording", header)
    with StreamRecorder(recording, 2, 0, "ppo") as listener:
        summary = train_ppo(options(folder / "agent.safetensors"), listener)
    assert summary.steps == 64
    return folder / "agent.safetensors", recording


def test_forward_turn_and_fire_can_be_held_together() -> None:
    table = combinations(DOOM)
    wanted = DOOM.encode(["MOVE_FORWARD", "TURN_LEFT", "ATTACK"])
    assert (table == wanted).all(1).any() and (table == DOOM.rest).all(1).any()
    both = DOOM.encode(["TURN_LEFT", "TURN_RIGHT"])
    assert not (table * both == both).all(1).any()


def test_exclusive_buttons_and_axes_have_combinations_too() -> None:
    assert (combinations(ActionSet(("A", "B", "C"), exclusive=True)) == np.eye(3)).all()
    assert len(combinations(ActionSet((), ("X", "Y")))) == 25


def test_training_is_recorded_frame_by_frame(trained: tuple[Path, Recording]) -> None:
    episodes = trained[1].episodes()
    assert episodes and all(info.truncated or info.terminated for info in episodes)
    assert all(info.agent == "ppo" and info.frames <= 40 for info in episodes)
    with Replay(trained[1].header) as replay:  # each with the seed that is stored, or the game would go another way
        assert all(len(replay(info.path).cameras) == info.frames for info in episodes)


def test_a_finished_agent_stays_as_it_was_trained(trained: tuple[Path, Recording]) -> None:
    before = trained[0].read_bytes()
    assert train_ppo(options(trained[0], hold=4)).steps == 64
    assert trained[0].read_bytes() == before


def test_a_loaded_agent_plays_the_same(trained: tuple[Path, Recording]) -> None:
    environment = make_environment("doom/basic", sensors=frozenset({"automap"}))
    frame, info = environment.reset(seed=3)
    plays = []
    for _ in range(2):
        agent = make_agent(str(trained[0]), environment.action_set)
        agent.reset(5)
        plays.append(np.stack([agent.act(frame, info) for _ in range(12)]))
    environment.close()
    assert (plays[0] == plays[1]).all() and (plays[0][0] == plays[0][1]).all()  # decisions are held for two frames


def test_training_goes_on(trained: tuple[Path, Recording], tmp_path: Path) -> None:
    agent = tmp_path / "agent.safetensors"
    shutil.copy(trained[0], agent)
    assert train_ppo(options(agent, steps=96)).steps == 96


def test_an_agent_of_another_game_or_no_agent_is_refused(trained: tuple[Path, Recording], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the agent plays with"):
        make_agent(str(trained[0]), DOOM)
    damaged = tmp_path / "agent.safetensors"
    damaged.write_bytes(trained[0].read_bytes()[:5000])
    with pytest.raises(OptionError, match="no agent, or a damaged one"):
        make_agent(str(damaged), ActionSet(("MOVE_LEFT", "MOVE_RIGHT", "ATTACK")))


class Witness:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.frames: list[tuple[np.ndarray, np.ndarray, float, dict[str, float]]] = []
        self.ends: list[tuple[bool, bool]] = []

    def begin(self, index: int) -> int:
        return 7

    def add(
        self, index: int, frame: np.ndarray, action: np.ndarray, reward: float, variables: dict[str, float]
    ) -> None:
        self.frames.append((frame, action, reward, variables))

    def end(self, index: int, terminated: bool, truncated: bool) -> None:
        self.ends.append((terminated, truncated))


def test_every_frame_of_a_decision_is_told_with_the_games_own_reward(tmp_path: Path) -> None:
    witness = Witness()
    game = DecisionEnvironment(options(tmp_path / "a", hold=3), 0, witness)
    game.reset(seed=1)
    first = game._frame
    game.step(5)
    assert len(witness.frames) == 3 and witness.ends == []
    game._env.reset(seed=7)
    assert (game._env.reset(seed=7)[0] == first).all(), "what the listener says is what it is played with"
    assert (witness.frames[0][0] == first).all()  # the action is told with the frame it is held on
    assert all((action == game.table[5]).all() for _, action, _, _ in witness.frames)
    assert witness.frames[0][2] <= -2  # doom/basic: -1 a tic
    game.close()


def test_a_game_without_variables_has_its_own_reward(tmp_path: Path) -> None:
    game = DecisionEnvironment(replace(options(tmp_path / "a"), spec="gym/CartPole-v1", max_frames=9, hold=2), 0)
    game.reset(seed=1)
    earned, over, info = [], False, {}
    while not over:
        _, reward, terminated, truncated, info = game.step(0)
        earned.append(reward)
        over = terminated or truncated
    game.close()
    assert max(earned) == 4.0, "one a tic"
    assert info["total_reward"] == sum(earned)


def test_an_engine_that_dies_cuts_the_episode_short(tmp_path: Path) -> None:
    witness = Witness()
    game = DecisionEnvironment(options(tmp_path / "a"), 0, witness)
    game.reset(seed=1)
    game.step(0)
    os.kill(game._env._engine.pid, signal.SIGKILL)
    ended = False
    while not ended:  # what it had already answered may still come
        *_, terminated, truncated, _ = game.step(0)
        ended = terminated or truncated
    assert (terminated, truncated) == (False, True) and witness.ends == [(False, True)]
    game.reset()
    assert not any(game.step(0)[2:4])
    game.close()


def test_minutes_end_training_and_the_agent_is_kept(tmp_path: Path) -> None:
    summary = train_ppo(options(tmp_path / "a.safetensors", steps=10**9, minutes=1e-9))
    assert 0 < summary.steps < 100
    make_agent(summary.agent, ActionSet(("MOVE_LEFT", "MOVE_RIGHT", "ATTACK")))


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"minutes": 0.0}, {"environments": -1}, {"device": "tpu"}, {"seed": -1}]
)
def test_options_are_checked(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        options(tmp_path / "a", **changes)
