"""The collapse detector against plays whose collapse is known, and against real play, in which there is none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from agents.errors import DataError, OptionError
from gamengen.evaluation.collapse import STATISTICS, CollapseDetector, frame_statistics

COLLAPSE, PIECE = 200, 48


@dataclass(frozen=True)
class Play:
    """What the tests share: a detector fitted on real episodes, and a play of another one."""

    detector: CollapseDetector
    frames: np.ndarray
    moving: np.ndarray

    def first(self, frames: np.ndarray) -> int | None:
        return self.detector.first_collapse(frame_statistics(frames), self.moving[: len(frames)])


@pytest.fixture(scope="module")
def play(basic_recording: Path) -> Play:
    """The held-out episode forwards and then backwards, as it is not long enough; pieces of the others are learned."""
    from recorder.episodes import read_episode
    from recorder.recording import Recording

    paths = Recording.open(basic_recording).episode_paths()
    episodes = [read_episode(path) for path in paths]
    small = [episode.frames[:, ::2, ::2] for episode in episodes]
    strafes = [(episode.actions[:, 0] > 0.5) != (episode.actions[:, 1] > 0.5) for episode in episodes]
    pieces, moving = [], []
    for frames, held in zip(small[1:], strafes[1:], strict=True):
        statistics, made_by = frame_statistics(frames), np.concatenate([held[:1], held[:-1]])
        for start in range(0, len(frames) - PIECE + 1, PIECE):
            pieces.append(statistics[start : start + PIECE])
            moving.append(made_by[start : start + PIECE])
    there_and_back = np.concatenate([small[0], small[0][::-1]])
    made_by = np.concatenate([strafes[0][:1], strafes[0][:-1], strafes[0][::-1]])
    assert len(there_and_back) >= COLLAPSE + 60
    return Play(CollapseDetector.fit(pieces, moving), there_and_back, made_by)


def statistic(statistics: np.ndarray, name: str) -> np.ndarray:
    return statistics[:, STATISTICS.index(name)]


def blurred(frames: np.ndarray, size: int = 7) -> np.ndarray:
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(pixels, size, 1, size // 2, count_include_pad=False).permute(0, 2, 3, 1).numpy()


def fade(frames: np.ndarray, to: np.ndarray, start: int, length: int) -> np.ndarray:
    share = np.clip((np.arange(len(frames), dtype=np.float32) - start) / length, 0, 1)[:, None, None, None]
    return ((1 - share) * frames + share * to).round().astype(np.uint8)


def test_statistics_of_frames_that_are_known() -> None:
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[0] = 100
    frames[1] = 110
    frames[2] = (255, 0, 0)
    found = frame_statistics(frames)
    assert found.shape == (3, len(STATISTICS))
    assert found.dtype == np.float64
    assert statistic(found, "sharpness_fine_1") == pytest.approx(np.log(0.5))
    assert statistic(found, "brightness_23") == pytest.approx(np.array([100, 110, 85]) / 255)
    assert statistic(found, "contrast_00") == pytest.approx(0, abs=1e-3)
    assert statistic(found, "red_green") == pytest.approx([0, 0, 1])
    assert statistic(found, "yellow_blue") == pytest.approx([0, 0, 0.5])
    assert statistic(found, "colourfulness") == pytest.approx([0, 0, 0.3 * np.hypot(1, 0.5)], abs=1e-3)
    assert statistic(found, "motion") == pytest.approx(np.log([10.1, 10.1, 25.1]))


def test_statistics_see_where_something_is_and_how_sharp() -> None:
    frames = np.full((1, 48, 64, 3), 50, np.uint8)
    frames[:, 32:, 16:32:2] = 200
    found = frame_statistics(frames)
    assert statistic(found, "brightness_21") == pytest.approx(125 / 255)
    assert statistic(found, "contrast_21") == pytest.approx(75 / 255)
    assert statistic(found, "brightness_20") == pytest.approx(50 / 255)
    assert statistic(found, "sharpness_fine_0") == pytest.approx(np.log(0.5))
    assert statistic(found, "sharpness_fine_2") > np.log(40)


def test_statistics_are_those_of_the_frames_however_many(play: Play) -> None:
    frames = play.frames[:40]
    whole = frame_statistics(frames)
    assert np.allclose(whole[20:], frame_statistics(frames[19:])[1:])
    assert frame_statistics(frames[:1]).shape == (1, len(STATISTICS))


def test_real_play_raises_no_alarm(play: Play) -> None:
    assert play.first(play.frames) is None
    statistics = [frame_statistics(play.frames)] * 2
    assert play.detector.false_alarm_rate(statistics, [play.moving] * 2) == 0


@pytest.mark.parametrize("kind", ["noise", "grey", "black", "blur", "negative"])
def test_sudden_collapse_at_frame_200(play: Play, kind: str) -> None:
    frames = play.frames[: COLLAPSE + 60].copy()
    late = frames[COLLAPSE:]
    frames[COLLAPSE:] = {
        "noise": np.random.default_rng(0).integers(0, 256, late.shape),
        "grey": np.full(late.shape, 128),
        "black": np.zeros(late.shape),
        "blur": blurred(late),
        "negative": 255 - late.astype(int),
    }[kind].astype(np.uint8)
    first = play.first(frames)
    assert first is not None
    assert COLLAPSE <= first < COLLAPSE + 32


def test_a_play_that_freezes_while_keys_are_held(play: Play) -> None:
    frames = play.frames[: COLLAPSE + 80].copy()
    frames[COLLAPSE:] = frames[COLLAPSE]
    statistics, moving = frame_statistics(frames), play.moving[: len(frames)]
    found = play.detector.alarms(statistics, moving)
    assert set(found) == {"frozen"}
    assert COLLAPSE < found["frozen"] < COLLAPSE + 32


def test_a_still_picture_in_a_still_scene_is_no_collapse(play: Play) -> None:
    frames = play.frames[: COLLAPSE + 80].copy()
    frames[COLLAPSE:] = frames[COLLAPSE]
    statistics, moving = frame_statistics(frames), play.moving[: len(frames)].copy()
    moving[COLLAPSE:] = False
    assert play.detector.first_collapse(statistics, moving) is None
    assert play.detector.first_collapse(statistics) is None


def test_slow_blur_over_200_frames(play: Play) -> None:
    frames = play.frames[:260]
    first = play.first(fade(frames, blurred(frames), 60, 200))
    assert first is not None
    assert 60 < first < 260


def test_slow_drift_of_colour(play: Play) -> None:
    frames = play.frames[:260]
    redder = np.clip(frames * np.array([1.8, 1.0, 0.4], np.float32), 0, 255)
    first = play.first(fade(frames, redder, 60, 200))
    assert first is not None
    assert 60 < first < 260


def test_frames_that_flicker(play: Play) -> None:
    statistics = frame_statistics(play.frames[: COLLAPSE + 60])
    statistics[COLLAPSE:, -1] = np.log(120)
    found = play.detector.alarms(statistics)
    assert set(found) == {"flicker"}
    assert COLLAPSE <= found["flicker"] < COLLAPSE + 32


def test_a_few_broken_frames_are_no_collapse(play: Play) -> None:
    frames = play.frames[: COLLAPSE + 60].copy()
    frames[COLLAPSE : COLLAPSE + 12] = 255
    assert play.first(frames) is None
    frames[COLLAPSE : COLLAPSE + 30] = 255
    assert play.first(frames) is not None, "but many are, though they pass"


def made_up_play(rng: np.random.Generator, length: int = 120) -> np.ndarray:
    """Statistics that wander slowly about a place of their own, as episodes do."""
    noise = rng.normal(size=(length, len(STATISTICS)))
    for t in range(1, length):
        noise[t] = 0.9 * noise[t - 1] + np.sqrt(1 - 0.9**2) * noise[t]
    return 0.1 * (noise + rng.normal(size=len(STATISTICS))) @ np.tri(len(STATISTICS))


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(0)
    detector = CollapseDetector.fit([made_up_play(rng) for _ in range(30)], false_alarm=0.05)
    unseen = [made_up_play(rng) for _ in range(200)]
    assert detector.false_alarm_rate(unseen) <= 0.05
    shifted = [part.copy() for part in unseen[:20]]
    for part in shifted:
        part[60:] += 3.0
    first = [detector.first_collapse(part) for part in shifted]
    assert all(found is not None and 60 <= found < 92 for found in first), first


def test_few_real_plays_make_it_careful() -> None:
    plays = [made_up_play(np.random.default_rng(seed)) for seed in range(24)]
    few, many = CollapseDetector.fit(plays[:4]), CollapseDetector.fit(plays)
    assert few.sequences == 4
    assert few.thresholds["picture"] > many.thresholds["picture"]
    rarer = CollapseDetector.fit(plays, false_alarm=0.001)
    assert all(rarer.thresholds[name] > many.thresholds[name] for name in many.thresholds)


def test_frozen_pictures_are_looked_for_where_that_was_learned() -> None:
    plays = [made_up_play(np.random.default_rng(seed)) for seed in range(8)]
    moving = [np.ones(len(part), bool) for part in plays]
    assert set(CollapseDetector.fit(plays).thresholds) == {"picture", "flicker"}
    assert set(CollapseDetector.fit(plays, moving).thresholds) == {"picture", "flicker", "frozen"}
    never = [~part for part in moving]
    assert set(CollapseDetector.fit(plays, never).thresholds) == {"picture", "flicker"}


def test_the_same_plays_give_the_same_detector() -> None:
    plays = [made_up_play(np.random.default_rng(seed)) for seed in range(6)]
    first, second = CollapseDetector.fit(plays), CollapseDetector.fit(plays)
    assert first.thresholds == second.thresholds
    assert np.array_equal(first.whitening, second.whitening)


def test_plays_that_are_too_short(play: Play) -> None:
    statistics = frame_statistics(play.frames[:46])
    assert play.detector.first_collapse(statistics) is None
    with pytest.raises(DataError, match="no real episode has 47 frames"):
        play.detector.false_alarm_rate([statistics])
    with pytest.raises(DataError, match="2 real episodes have 47 frames; it takes 3"):
        CollapseDetector.fit([statistics, *(made_up_play(np.random.default_rng(seed)) for seed in range(2))])


@pytest.mark.parametrize("options", [{"window": 1}, {"false_alarm": 0.0}, {"false_alarm": 1.0}])
def test_options_that_make_no_sense(options: dict[str, float]) -> None:
    plays = [made_up_play(np.random.default_rng(seed)) for seed in range(4)]
    with pytest.raises(OptionError):
        CollapseDetector.fit(plays, **options)  # type: ignore[arg-type]
