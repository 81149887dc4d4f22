"""Agent in the loop, in a game whose neural copy is perfect, or broken in a known way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents.actions import ActionSet
from agents.errors import DataError, OptionError
from gamengen.checkpoints import load_checkpoint
from gamengen.evaluation import agent_play
from gamengen.evaluation.agent_play import (
    ClonedAgent,
    compare_agent,
    count_events,
    make_player,
    median_filter,
    true_outcome,
)
from gamengen.evaluation.judge import Judge, fit_judge
from gamengen.evaluation.options import EvaluateOptions
from gamengen.evaluation.subject import Subject
from recorder.episodes import EpisodeWriter, play_episode, read_episode, read_info
from recorder.recording import Recording, RecordingHeader

KEYS = ActionSet(("LEFT", "RIGHT", "ATTACK"))
VARIABLES = ("HEALTH", "AMMO2", "KILLCOUNT")
HEADER = RecordingHeader("gym/arena", KEYS, 32, 48, 1, 30.0, VARIABLES, {}, 0, {})
OPTIONS = EvaluateOptions(agent_seeds=6, agent_frames=60)
OUTCOMES = {"kills", "survival_frames", "ammo_used", "health_lost"}


class Arena:
    """Stripes that turn; a bar of health above, one of ammunition below; a flash for two frames after a kill."""

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._rng = np.random.default_rng(seed)
        self._angle = int(self._rng.integers(8))
        self._health, self._ammo, self._kills, self._pause, self._flash = 100, 20, 0, 0, 0
        return self._look()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        lucky, hurt = self._rng.random(2)
        self._angle += int(action[1]) - int(action[0])
        self._pause, self._flash = max(0, self._pause - 1), max(0, self._flash - 1)
        if action[2] > 0.5 and self._ammo and not self._pause:
            self._ammo, self._pause = self._ammo - 1, 6
            if lucky < 0.5:
                self._kills, self._flash = self._kills + 1, 2
        if hurt < 0.15:
            self._health = max(0, self._health - 10)
        if self._health:
            self._shown = self._look()[0]
        return self._shown, 0.0, self._health == 0, False, self._look()[1]

    def close(self) -> None:
        pass

    def _look(self) -> tuple[np.ndarray, dict[str, Any]]:
        frame = np.zeros((32, 48, 3), np.uint8)
        frame[:, (np.arange(48) + self._angle) % 8 < 4] = (0, 60, 160)
        frame[:4] = frame[-4:] = 0
        frame[:4, : 4 * self._health // 10] = 255
        frame[-4:, : 2 * self._ammo] = (255, 200, 0)
        if self._flash:
            frame[10:22, 16:32] = (255, 255, 200)
        values = (self._health, self._ammo, self._kills)
        return frame, {"variables": dict(zip(VARIABLES, map(float, values), strict=True))}


class Player:
    """Turns right all the time, and fires half of it."""

    name, sensors = "skilled", frozenset[str]()

    def reset(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        return np.array([0, 1, self._rng.random() < 0.5], np.float32)


class Mirror:
    """A neural game that is perfect: it plays the real one. Keys that are ``dead`` do nothing in it.

    It tells that all games are lost in the step number ``lost``.
    """

    context = 4

    def __init__(self, dead: str = "", lost: int | None = None) -> None:
        self._works, self._lost = np.array([name != dead for name in KEYS.names], np.float32), lost

    def play(
        self, frames: np.ndarray, actions: np.ndarray, choose: Any, count: int, seed: int, lose: Any
    ) -> Iterator[np.ndarray]:
        games = [Arena() for _ in frames]
        for number, (game, keys) in enumerate(zip(games, actions, strict=True)):
            game.reset(seed=agent_play.FIRST_SEED + seed + number)
            for action in keys:
                last = game.step(action)[0]
            assert np.array_equal(last, frames[number, -1]), "the start is the real game's"
        newest = frames[:, -1]
        for step in range(count):
            chosen = choose(step, newest) * self._works
            newest = np.stack([game.step(keys)[0] for game, keys in zip(games, chosen, strict=True)])
            yield newest
            if step == self._lost:
                assert lose(step, list(range(len(games)))) is None


@pytest.fixture(scope="module")
def arena_judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    folder = tmp_path_factory.mktemp("arena")
    infos = []
    for number in range(14):
        path = folder / f"{number}.h5"
        with EpisodeWriter(path, 32, 48, 3, VARIABLES, number, "skilled") as writer:
            play_episode(Arena(), Player(), writer, number)  # type: ignore[arg-type]
        infos.append(read_info(path))
    return fit_judge(infos[1:], KEYS, steps=200)


@pytest.fixture
def arena(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_play, "make_environment", lambda spec, **_: Arena())


def compare(judge: Judge, mirror: Mirror, options: EvaluateOptions = OPTIONS) -> dict[str, Any]:
    return compare_agent(mirror, judge, HEADER, options)  # type: ignore[arg-type]


# --- the judge, in a game with variables ---


def test_variables_are_read(arena_judge: Judge, tmp_path: Path) -> None:
    with EpisodeWriter(tmp_path / "0.h5", 32, 48, 3, VARIABLES, 99, "skilled") as writer:
        play_episode(Arena(), Player(), writer, 99)  # type: ignore[arg-type]
    episode = read_episode(tmp_path / "0.h5")
    reading = arena_judge.read(episode.frames)
    assert set(reading.variables) == {"HEALTH", "AMMO2"}, "kills are counted, not shown"
    assert np.abs(reading.variables["HEALTH"] - episode.variables[3:, 0]).mean() < 5
    assert np.abs(reading.variables["AMMO2"] - episode.variables[3:, 1]).mean() < 1
    assert reading.kills is not None
    assert count_events(reading.kills) == pytest.approx(episode.variables[-1, 2], abs=1)
    assert arena_judge.config.last_health == 10


# --- both sides ---


def test_a_perfect_copy_comes_to_the_same(arena_judge: Judge, arena: None) -> None:
    found = compare(arena_judge, Mirror())
    assert (found["agent"], found["seeds"], found["frames"]) == ("cloned", 6, 60)
    assert set(found["real"]) == set(found["neural"]) == set(found["real_true"]) == OUTCOMES
    for name, figure in found["difference"].items():
        assert found["real"][name]["mean"] == pytest.approx(found["neural"][name]["mean"], abs=0.4)
        assert figure["mean"] == pytest.approx(0, abs=0.4)
    assert json.loads(json.dumps(found)) == found


def test_what_is_read_is_near_the_truth(arena_judge: Judge, arena: None) -> None:
    found = compare(arena_judge, Mirror())
    for name, error in (("kills", 1), ("survival_frames", 3), ("ammo_used", 1), ("health_lost", 10)):
        real, true = found["real"][name], found["real_true"][name]
        assert real["mean"] == pytest.approx(true["mean"], abs=error)
        assert true["ci95"] > 0
    assert found["real_true"]["kills"]["mean"] > 1


def test_a_game_without_variables_tells_no_truth(arena_judge: Judge) -> None:
    assert true_outcome(arena_judge, {}, 4) == {}


def test_a_key_that_does_nothing_shows(arena_judge: Judge, arena: None) -> None:
    found = compare(arena_judge, Mirror(dead="ATTACK"))
    assert found["neural"]["ammo_used"]["mean"] < 0.3 * found["real"]["ammo_used"]["mean"]
    kills = found["difference"]["kills"]
    assert kills["mean"] + kills["ci95"] < 0
    assert found["difference"]["survival_frames"]["mean"] == pytest.approx(0, abs=2), "that does not depend on the keys"


def test_a_game_that_is_lost_counts_up_to_there(arena_judge: Judge, arena: None) -> None:
    found = compare(arena_judge, Mirror(lost=3), EvaluateOptions(agent_seeds=2, agent_frames=20))
    assert found["neural"]["survival_frames"]["mean"] <= 3 < found["real"]["survival_frames"]["mean"]


def test_the_same_seed_gives_the_same_games(arena_judge: Judge, arena: None) -> None:
    few = EvaluateOptions(agent_seeds=2, agent_frames=20)
    found = compare(arena_judge, Mirror(), few)
    assert compare(arena_judge, Mirror(), few) == found
    assert compare(arena_judge, Mirror(), EvaluateOptions(agent_seeds=2, agent_frames=20, seed=7)) != found


def test_more_games_than_go_side_by_side(arena_judge: Judge, arena: None, monkeypatch: pytest.MonkeyPatch) -> None:
    few = EvaluateOptions(agent_seeds=3, agent_frames=8)
    together = compare(arena_judge, Mirror(), few)
    monkeypatch.setattr(agent_play, "MOST_PARALLEL", 2)
    assert compare(arena_judge, Mirror(), few) == together


def test_one_game_has_no_interval(arena_judge: Judge, arena: None) -> None:
    found = compare(arena_judge, Mirror(), EvaluateOptions(agent_seeds=1, agent_frames=8))
    assert found["neural"]["kills"]["ci95"] is None


def test_games_that_end_at_once(arena_judge: Judge, arena: None, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Arena.step
    monkeypatch.setattr(Arena, "step", lambda self, action: (*step(self, action)[:2], True, False, {"variables": {}}))
    with pytest.raises(DataError, match="most games end within 4 frames"):
        compare(arena_judge, Mirror())


# --- who plays ---


def test_a_clone_plays_as_the_players_did(arena_judge: Judge) -> None:
    agent, game = ClonedAgent(arena_judge), Arena()
    agent.reset(3)
    frame, info = game.reset(seed=3)
    held = []
    for _ in range(50):
        held.append(agent.act(frame, info))
        frame, *_ = game.step(held[-1])
    left, right, attack = np.mean(held, axis=0)
    assert left < 0.1
    assert right > 0.9
    assert 0.25 < attack < 0.75, "drawn, so that it does not get stuck"


def test_a_clone_of_exclusive_buttons(arena_judge: Judge) -> None:
    config = replace(arena_judge.config, action_set=ActionSet(KEYS.buttons, exclusive=True))
    agent = ClonedAgent(Judge(config, arena_judge._network, arena_judge.device))
    held = np.stack([agent.act(Arena().reset(seed=0)[0], {}) for _ in range(20)])
    assert (held.sum(axis=1) == 1).all()
    assert held[:, 1].sum() > held[:, 0].sum()


@pytest.mark.parametrize(
    ("name", "message"),
    [("nobody", "unknown agent"), ("scripted", "also needs depth and labels"), ("file", "also needs the map")],
)
def test_an_agent_that_cannot_play_both(
    name: str, message: str, arena_judge: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Player):
        sensors = frozenset({"automap"})

    doom = RecordingHeader("doom/basic", KEYS, 32, 48, 2, 17.5, VARIABLES, {}, 0, {})
    if name == "file":
        (tmp_path / "agent.safetensors").touch()
        name = str(tmp_path / "agent.safetensors")
        monkeypatch.setattr(agent_play, "make_agent", lambda *_: Trained())
        monkeypatch.setattr(agent_play, "read_agent", lambda path: ({"options": {"inside": None}}, {}))
    with pytest.raises(OptionError, match=message) as caught:
        make_player(name, arena_judge, doom)
    assert "cloned" in str(caught.value)
    if message != "unknown agent":
        assert make_player(name, arena_judge, HEADER), "where the real game gives no such thing either"


def test_random_play_needs_nothing(arena_judge: Judge, arena: None) -> None:
    found = compare(arena_judge, Mirror(), EvaluateOptions(agent="random", agent_seeds=2, agent_frames=10))
    assert found["agent"] == "random"
    assert found["real"]["ammo_used"] == found["neural"]["ammo_used"]


# --- by hand ---


def test_events() -> None:
    chances = np.array([0.1, 0.9, 0.8, 0.1, 0.6, 0.2, 0.9, 0.9])
    assert count_events(chances) == 2, "what follows within three frames is the same one"
    assert count_events(np.zeros(5)) == count_events(np.zeros(0)) == 0
    assert count_events(np.ones(9)) == 3


def test_a_misreading_is_not_a_loss() -> None:
    ammo = np.array([20, 20, 20, 3, 3, 20, 20, 20, 20, 19, 19, 19, 50, 19], float)
    assert median_filter(ammo).tolist() == [20] * 9 + [19] * 5


# --- real Doom, and a real checkpoint ---


def test_real_doom(basic_recording: Path, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = Recording.open(basic_recording)
    judge = fit_judge(recording.episodes(), recording.header.action_set, steps=2)
    subject = Subject(load_checkpoint(tiny), torch.device("cpu"))
    found = compare_agent(subject, judge, recording.header, EvaluateOptions(agent_seeds=2, agent_frames=4))
    assert set(found) == {"agent", "seeds", "frames", "real", "real_true", "neural", "difference"}
    assert found["real_true"]["survival_frames"]["mean"] <= 4
    assert "agent in the loop" in capsys.readouterr().err
