"""The judge, on a game that is nothing but moving stripes: what it reads is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from agents.actions import ActionSet
from agents.errors import CheckpointError, DataError, OptionError
from gamengen.evaluation.action_reading import action_f1, shift_test
from gamengen.evaluation.frame_pool import gather_frames, shrink
from gamengen.evaluation.judge import Judge, fit_judge
from recorder.episodes import Episode, EpisodeInfo, EpisodeWriter, read_episode, read_info
from recorder.recording import Recording

KEYS = ActionSet(("LEFT", "RIGHT"))
NAMES = KEYS.names
Sequences = list[tuple[np.ndarray, np.ndarray]]


@pytest.fixture(scope="module")
def stripes(make_recording: Callable[..., Recording], tmp_path_factory: pytest.TempPathFactory) -> list[Episode]:
    recording = make_recording(tmp_path_factory.mktemp("judge") / "stripes", lengths=[120] * 6)
    return [read_episode(path) for path in recording.episode_paths()]


@pytest.fixture(scope="module")
def judge(stripes: list[Episode]) -> Judge:
    return fit_judge([episode.info for episode in stripes[:4]], KEYS, steps=120)


def read(judge: Judge, episodes: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """What was held in each sequence of (frames, actions), as read and as it was, and the lengths."""
    found = [judge.read(frames).held for frames, _ in episodes]
    held = [actions[: len(reading)] for reading, (_, actions) in zip(found, episodes, strict=True)]
    return np.concatenate(found), np.concatenate(held), [len(reading) for reading in found]


@pytest.fixture(scope="module")
def unseen(stripes: list[Episode]) -> Sequences:
    return [(episode.frames, episode.actions) for episode in stripes[4:]]


# --- actions ---


def test_real_frames_are_read(judge: Judge, unseen: Sequences) -> None:
    readings, held, _ = read(judge, unseen)
    scores = action_f1(readings, held, NAMES)
    assert list(scores) == ["LEFT", "RIGHT", "mean"]
    assert min(score for score in scores.values() if score is not None) > 0.9


@pytest.mark.parametrize("late", [0, 1, 2])
def test_late_frames_move_the_peak(late: int, judge: Judge, unseen: Sequences) -> None:
    """Frame t of the late game shows what frame t - late of the real one does."""
    real, held, lengths = read(judge, unseen)
    shifted = [(np.concatenate([frames[:1]] * late + [frames[: len(frames) - late]]), keys) for frames, keys in unseen]
    found = shift_test(real, read(judge, shifted)[0], held, lengths)
    assert (found["real_peak"], found["neural_peak"]) == (0, -late)
    assert max(found["neural"]) > 0.9
    assert found["offsets"] == [-2, -1, 0, 1, 2]


def test_early_frames_move_the_peak_the_other_way(judge: Judge, unseen: Sequences) -> None:
    real, held, lengths = read(judge, unseen)
    early, _, _ = read(judge, [(np.concatenate([frames[1:], frames[-1:]]), keys) for frames, keys in unseen])
    assert shift_test(real, early, held, lengths)["neural_peak"] == 1


def test_shuffled_actions_are_read_by_chance(judge: Judge, unseen: Sequences) -> None:
    readings, held, _ = read(judge, unseen)
    shuffled = np.random.default_rng(0).permutation(held)
    assert action_f1(readings, shuffled, NAMES)["mean"] == pytest.approx(0.5, abs=0.12)


def test_frozen_frames_show_nothing(judge: Judge, unseen: Sequences) -> None:
    frozen, held, _ = read(judge, [(np.repeat(frames[:1], len(frames), 0), keys) for frames, keys in unseen])
    real, _, _ = read(judge, unseen)
    mean, ceiling = (action_f1(part, held, NAMES)["mean"] for part in (frozen, real))
    assert mean is not None and ceiling is not None
    assert mean < ceiling - 0.2


def test_f1_by_hand() -> None:
    held = np.array([[1, 0, -1.0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0.2, 0]])
    read = np.array([[0.9, 0.1, -0.8, 0.9], [0.2, 0.9, 0.7, 0.9], [0.6, 0.2, 0.9, 0.9], [0.1, 0.0, -0.1, 0.9]])
    assert action_f1(read, held, ("A", "B", "AXIS", "C")) == {
        "A": 0.5, "B": None, "AXIS+": 0.6667, "AXIS-": 1.0, "C": None, "mean": pytest.approx(0.7222, abs=1e-4)
    }  # fmt: skip


def test_nothing_is_ever_held() -> None:
    nothing = np.zeros((20, 2))
    assert action_f1(nothing, nothing, NAMES) == {"LEFT": None, "RIGHT": None, "mean": None}
    found = shift_test(nothing, nothing, nothing, [12, 8])
    assert found["real_peak"] is found["neural_peak"] is None


def test_no_row_is_compared_with_one_of_another_sequence() -> None:
    held = np.zeros((24, 1))
    held[7] = 1  # the last frame of the first sequence
    late = np.roll(held, 1, axis=0)  # read in the first frame of the second one
    assert shift_test(held, late, held, [24])["neural_peak"] == -1
    assert shift_test(held, late, held, [8, 16])["neural_peak"] is None


# --- what it is ---


def test_the_same_seed_gives_the_same_judge(stripes: list[Episode]) -> None:
    infos = [episode.info for episode in stripes[:2]]
    first, again, other = (fit_judge(infos, KEYS, steps=3, seed=seed) for seed in (0, 0, 1))
    frames = stripes[4].frames[:10]
    assert np.array_equal(first.read(frames).held, again.read(frames).held)
    assert not np.array_equal(first.read(frames).held, other.read(frames).held)


def test_saved_and_loaded(judge: Judge, stripes: list[Episode], tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    loaded = Judge.load(tmp_path / "judge.safetensors")
    assert loaded.config == judge.config
    before, after = (one.read(stripes[4].frames) for one in (judge, loaded))
    assert np.array_equal(before.held, after.held)
    assert np.array_equal(before.features, after.features)
    assert [path.name for path in tmp_path.iterdir()] == ["judge.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "foreign", "truncated"])
def test_a_file_that_is_no_judge(damage: str, judge: Judge, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "judge.safetensors"
    if damage == "foreign":
        save_file({"x": np.zeros(3)}, path)
    elif damage != "missing":
        judge.save(path)
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -500])
    with pytest.raises(CheckpointError, match="trained anew") as caught:
        Judge.load(path)
    assert str(path) in str(caught.value)


def test_it_cannot_be_saved(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot save the judge"):
        judge.save(tmp_path / "nowhere" / "judge.safetensors")


def test_shapes(judge: Judge, stripes: list[Episode]) -> None:
    reading = judge.read(stripes[0].frames)
    rows = len(stripes[0].frames) - 3
    assert reading.held.shape == reading.next_action.shape == (rows, 2)
    assert reading.features.shape == (rows, 128)
    assert reading.ends.shape == (rows,)
    assert (reading.variables, reading.kills) == ({}, None), "this game has none"
    window = judge.shrink(stripes[0].frames[:4])
    assert judge.next_action(window) == pytest.approx(reading.next_action[0], abs=0.02)
    assert judge.read(stripes[0].frames[:3]).held.shape == (0, 2)


def test_progress_is_told(stripes: list[Episode]) -> None:
    told: list[float] = []
    fit_judge([stripes[0].info], KEYS, steps=3, show=lambda done, note: told.append(done))
    assert told == [3]
    fit_judge([stripes[0].info], KEYS, seconds=0.01, show=lambda done, note: told.append(done))
    assert told[-1] >= 0.01


@pytest.mark.parametrize("budget", [{}, {"steps": 1, "seconds": 1}, {"steps": 0}, {"seconds": -1}])
def test_a_budget_that_is_none(budget: dict[str, int], stripes: list[Episode]) -> None:
    with pytest.raises(OptionError, match="either seconds or steps"):
        fit_judge([stripes[0].info], KEYS, **budget)


def test_too_little_to_learn_from(make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    recording = make_recording(tmp_path / "data", lengths=[3, 2])
    with pytest.raises(DataError, match="no episode has 4 frames"):
        fit_judge(recording.episodes(), KEYS, steps=1)
    with pytest.raises(DataError, match="no episode has 4 frames"):
        fit_judge([], KEYS, steps=1)


# --- the frames it learns from ---


def test_windows_lie_within_one_run(stripes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gamengen.evaluation.frame_pool.POOL_FRAMES", 200)
    pool = gather_frames([episode.info for episode in stripes], 4, 4)
    assert pool.frames.shape == (200, 32, 48, 3), "five runs of 40"
    assert len(pool.starts) == 5 * 37
    colours = pool.frames[:, :, :, 2].amax((1, 2))  # each episode has its own
    for start in pool.starts.tolist():
        assert len(colours[start : start + 4].unique()) == 1
    assert len(colours.unique()) >= 4, "spread over the episodes"


def test_shrink() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 240, 320, 3), np.uint8)
    small = shrink(frames)
    assert small.shape == (2, 120, 160, 3)
    assert small[1, 3, 5, 2] == round(float(frames[1, 6:8, 10:12, 2].mean()) + 1e-6)
    assert np.array_equal(shrink(frames[:, :50, :70]), frames[:, :50, :70]), "small enough"
    padded = shrink(frames[:, :50, :70], 4)
    assert padded.shape == (2, 52, 72, 3)
    assert not padded[:, 50:].any() and not padded[:, :, 70:].any()


# --- players ---


def write_still(folder: Path, number: int, agent: str, action: Sequence[float]) -> EpisodeInfo:
    """An episode in which nothing moves, and one thing is always held."""
    path = folder / f"{number}.h5"
    with EpisodeWriter(path, 32, 48, 2, (), number, agent) as writer:
        for _ in range(30):
            writer.append(np.zeros((32, 48, 3), np.uint8), np.array(action), 0.0, {})
        writer.finish(terminated=True, truncated=False)
    return read_info(path)


def test_random_players_are_not_cloned(tmp_path: Path) -> None:
    infos = [write_still(tmp_path, 0, "random", (1, 0)), write_still(tmp_path, 1, "scripted", (0, 1))]
    reading = fit_judge(infos, KEYS, steps=40).read(np.zeros((4, 32, 48, 3), np.uint8))
    assert reading.next_action[0, 0] < 0.3
    assert reading.next_action[0, 1] > 0.7
    assert reading.held[0] == pytest.approx([0.5, 0.5], abs=0.2), "but read"


def test_random_players_are_cloned_where_there_are_no_others(tmp_path: Path) -> None:
    infos = [write_still(tmp_path, 0, "random", (1, 0))]
    assert fit_judge(infos, KEYS, steps=40).read(np.zeros((4, 32, 48, 3), np.uint8)).next_action[0, 0] > 0.7
