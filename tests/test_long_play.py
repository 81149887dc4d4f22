"""Long play: who plays what, what is told of early and of late frames, and that a collapse is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from gamengen.checkpoints import Checkpoint
from gamengen.devices import choose_device
from gamengen.evaluation.collapse import frame_statistics
from gamengen.evaluation.drift import summarise_collapse
from gamengen.evaluation.long_play import measure_long_play, summarise_long_play
from gamengen.evaluation.rare_parts import RareBlocks, RareSights
from gamengen.evaluation.similarity import sharpness
from gamengen.evaluation.subject import Subject
from gamengen.evaluation.windows import spread_windows
from recorder.episodes import read_episode
from recorder.recording import Recording

COUNT = 37


class Player:
    """Holds the first key in odd frames, and remembers what it saw."""

    name, sensors = "player", frozenset[str]()

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def reset(self, seed: int) -> None:
        self.seed = seed

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        self.seen.append(frame)
        return np.array([len(self.seen) % 2, 0], np.float32)


class Recorded(Subject):
    """Keeps the frames that it makes."""

    def play(self, *given: Any) -> Iterator[np.ndarray]:
        self.made = []
        for frames in super().play(*given):
            self.made.append(frames)
            yield frames


def test_players_see_the_neural_game_and_every_frame_is_measured(
    made_up: Callable[..., Checkpoint], make_recording: Callable[..., Recording], tmp_path: Path
) -> None:
    checkpoint = made_up()
    episodes = make_recording(tmp_path / "data", (30, 20), height=48, width=80).episodes()
    subject, rare = Recorded(checkpoint, choose_device("cpu")), RareBlocks.learn(episodes)
    sights = RareSights.learn(subject, episodes)
    starts = spread_windows(episodes, 3, subject.context, 1)
    players, told = [Player() for _ in starts], []
    values = measure_long_play(subject, starts, cast(Any, players), COUNT, 5, rare, sights, told.append)
    assert [player.seed for player in players] == [5, 6, 7]
    assert told[-1] == 3 * COUNT and told == sorted(told)
    made = np.stack(subject.made, axis=1)
    for number, player in enumerate(players):
        assert len(player.seen) == subject.context + COUNT - 1
        assert np.array_equal(np.stack(player.seen[subject.context :]), made[number, :-1])
        whole = np.concatenate([player.seen[subject.context - 1][None], made[number]])
        np.testing.assert_allclose(values["statistics"][number], frame_statistics(whole)[1:], atol=1e-5)
        np.testing.assert_allclose(values["unusual"][number, 7::8], rare.shares(made[number, 7::8]), atol=1e-6)
        assert np.array_equal(values["sights"][number, 7::8], sights.seen(made[number, 7::8]))
    for name in ("unusual", "sights"):
        assert np.isnan(np.delete(values[name], np.s_[7::8], axis=1)).all()
    assert values["moving"].shape == (3, COUNT)
    row = summarise_long_play(values, None)
    assert (row["starts"], row["frames"], row["early"], row["late"]) == (3, COUNT, [10, 23], [24, 37])
    late = made[:, 23:]
    for name, expected in {
        "sharpness": np.mean([sharpness(play) for play in late]),
        "brightness": late.mean() / 255,
        "motion": np.abs(np.diff(made[:, 22:].astype(np.float32).mean(axis=-1), axis=1)).mean(),
        "unusual": rare.shares(made[:, 31]).mean(),
    }.items():
        assert row["looks"][name]["late"] == pytest.approx(expected, rel=0.02, abs=2e-4), name


def test_the_next_game_starts_where_one_is_lost(
    made_up: Callable[..., Checkpoint], make_recording: Callable[..., Recording], tmp_path: Path
) -> None:
    checkpoint = made_up(tally=True)
    assert checkpoint.tally is not None
    checkpoint.tally.config = replace(checkpoint.tally.config, vital="HEALTH", ranges=((1, 40), (0, 26)))
    with torch.no_grad():
        checkpoint.tally.last.weight.zero_()
        checkpoint.tally.last.bias.copy_(torch.tensor([40.0, 0, 0, 0, 0, 40]))  # a hit of 8 each frame
    episodes = make_recording(tmp_path / "data", (30, 20), height=48, width=80).episodes()
    subject = Subject(checkpoint, choose_device("cpu"))
    given = RareBlocks.learn(episodes), RareSights.learn(subject, episodes)
    starts = spread_windows(episodes, 3, subject.context, 1)
    players = [Player() for _ in starts]
    values = measure_long_play(subject, starts, cast(Any, players), COUNT, 5, *given)
    assert (values["lost"] >= COUNT // 5).all(), "five hits and the last health is gone"
    firsts = [read_episode(info.path, start, start + 4).frames for info, start in starts]
    for number, player in enumerate(players):
        assert player.seed == 5 + number + 3 * values["lost"][number]
        assert len(player.seen) == COUNT + (subject.context - 1) * (1 + values["lost"][number])
        second = firsts[(number + 1) % 3]
        assert any(np.array_equal(second, np.stack(player.seen[at : at + 4])) for at in range(4, len(player.seen) - 3))
    assert summarise_long_play(values, None)["lost"] == values["lost"].sum()


def test_early_and_late_are_told_apart_and_a_collapse_is_found() -> None:
    rng = np.random.default_rng(0)

    def real(count: int) -> np.ndarray:
        return rng.normal(0, 0.1, (count, 34))

    lessons = [real(200) for _ in range(8)], [np.ones(200, bool)] * 8
    statistics = np.stack([real(1200), real(1200)])
    statistics[1, 900:, :6] -= 3  # it blurs
    values = {"statistics": statistics, "moving": np.ones((2, 1200), bool), "lost": np.array([1, 2])}
    values["unusual"] = np.where(np.arange(1200) % 8 == 7, [np.arange(1200.0), np.zeros(1200)], np.nan)
    values["sights"] = np.where(np.isnan(values["unusual"]), np.nan, 0.5)
    row = summarise_long_play(values, summarise_collapse(values, lessons, lessons))
    assert (row["starts"], row["frames"], row["lost"], row["collapsed"]) == (2, 1200, 3, 1)
    assert row["first"][0] is None and 870 < row["first"][1] <= 910
    assert (row["early"], row["late"]) == ([51, 550], [701, 1200])
    looks = {"early": np.arange(55, 550, 8).mean() / 2, "late": np.arange(703, 1200, 8).mean() / 2}
    assert row["looks"]["unusual"] == looks
    short = summarise_long_play({name: part[:, :69] if part.ndim > 1 else part for name, part in values.items()}, None)
    assert short["collapsed"] is None, "nothing is known of it"
    assert short["early"][0] <= short["early"][1] < short["late"][0] <= short["late"][1] == 69
