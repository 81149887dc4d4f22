"""The PPO agent: what it may choose, training a little, and its file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from agents.actions import ActionSet
from agents.agent import make_agent
from agents.environments import make_environment
from agents.errors import OptionError
from agents.ppo import PPOOptions, combinations, train_ppo
from recorder.record import StreamRecorder
from recorder.recording import Recording, RecordingHeader

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


@pytest.mark.parametrize("changes", [{"steps": 0}, {"environments": -1}, {"device": "tpu"}, {"seed": -1}])
def test_options_are_checked(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(OptionError):
        options(tmp_path / "a", **changes)
