"""The human test: Wilson's interval, pairs with a known answer, files of killed sessions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.clip_pairs
from agents.errors import DataError, OptionError
from engine.clip_pairs import Pair, check_pairs, prepare_pairs
from engine.raters import check_raters
from engine.rating import (
    RatingSession,
    check_rater,
    print_ratings,
    read_answers,
    side_of,
    summarise_ratings,
    wilson_interval,
)
from gamengen.checkpoints import Checkpoint
from gamengen.evaluation.subject import Choose, Subject
from recorder.episodes import EpisodeInfo, read_episode

HEIGHT, WIDTH, FPS = 48, 80, 5.0
LENGTHS = (1.0, 2.0)


class Copy(Subject):
    """Plays the stripes of ``make_recording`` as the real game does: what the keys say, pixel by pixel."""

    def play(
        self, frames: np.ndarray, actions: np.ndarray, choose: Choose, count: int, seed: int
    ) -> Iterator[np.ndarray]:
        assert actions.shape[1] == frames.shape[1] - 1 == self.context - 1
        newest = frames[:, -1]
        for step in range(count):
            moved = [int(action[1] - action[0]) for action in choose(step, newest)]
            newest = np.stack([np.roll(frame, -by, axis=1) for frame, by in zip(newest, moved, strict=True)])
            yield newest


@pytest.fixture
def checkpoint(made_up: Callable[..., Checkpoint]) -> Checkpoint:
    return made_up(HEIGHT, WIDTH, fps=FPS)


@pytest.fixture
def episodes(tmp_path: Path, make_recording: Callable[..., Any]) -> list[EpisodeInfo]:
    return make_recording(tmp_path / "data", (40, 30, 50), height=HEIGHT, width=WIDTH).episodes()


@pytest.fixture
def copy(checkpoint: Checkpoint) -> Copy:
    return Copy(checkpoint, torch.device("cpu"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def rate(session: RatingSession, side: str) -> None:
    session.show()
    session.answer(side)


def other(side: str) -> str:
    return {"left": "right", "right": "left"}[side]


# --- figures


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    found = wilson_interval(successes, trials)
    assert found == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(trials - successes, trials)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_summary_of_known_answers(pairs: list[Pair], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [replace(pair, length_seconds=1.6 if pair.frames == 5 else 3.2) for pair in pairs]
    folder = tmp_path / "raters"
    for rater, right in (("anna", (True, True, True, False)), ("bob", (False, True))):
        session = RatingSession(pairs, folder, rater)
        for hit in right:
            rate(session, session.side if hit else other(session.side))
    found = summarise_ratings(folder)
    assert (found["checkpoint"], found["checkpoint_hash"], found["answers"]) == ("red", "f00d", 6)
    assert found["raters"] == ["anna", "bob"]
    rows = {(row["rater"], row["length"]): row for row in found["rows"]}
    # The pairs' lengths are 3.2, 1.6, 3.2, 1.6.
    assert {key: (row["picked_real"], row["n"]) for key, row in rows.items()} == {
        (None, 1.6): (2, 3), (None, 3.2): (2, 3), ("anna", 1.6): (1, 2), ("anna", 3.2): (2, 2),
        ("bob", 1.6): (1, 1), ("bob", 3.2): (0, 1),
    }  # fmt: skip
    assert rows[None, 1.6]["rate"] == 0.6667
    assert rows[None, 1.6]["ci95"] == [0.2077, 0.9385]
    assert [rows[None, length]["paper"] for length in (1.6, 3.2)] == [0.58, 0.6]
    print_ratings(found)
    printed = capsys.readouterr().out
    for text in ("2 of 3", "67 %", "21 to 94 %", "58 %", "60 %", "anna", "bob"):
        assert text in printed
    json.dumps(found)


def test_sides_are_a_fair_coin_for_each_rater() -> None:
    ids = [f"abcd-{number:03d}" for number in range(1000)]
    anna, bob = ([side_of(one, rater) == "left" for one in ids] for rater in ("anna", "bob"))
    assert 440 < sum(anna) < 560
    assert 440 < sum(a == b for a, b in zip(anna, bob, strict=True)) < 560
    assert anna == [side_of(one, "anna") == "left" for one in ids]


# --- pairs


def test_a_perfect_copy_gives_equal_clips(copy: Copy, episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    """The neural clip shows the same moments under the same actions: a shift by one frame would show."""
    pairs = prepare_pairs(copy, episodes, tmp_path, 9, LENGTHS, seed=3, wait_seconds=4)
    assert [pair.frames for pair in pairs].count(5) == 5
    assert [pair.frames for pair in pairs].count(10) == 4
    assert len({pair.wait for pair in pairs}) > 3
    assert all(0 <= pair.wait <= 20 for pair in pairs)
    by_name = {info.path.name: info for info in episodes}
    for pair in pairs:
        real, neural = pair.clips()
        assert real.shape == (pair.frames, HEIGHT, WIDTH, 3)
        np.testing.assert_array_equal(real, neural)
        first = pair.start + copy.context + pair.wait
        episode = read_episode(by_name[pair.episode].path, first, first + pair.frames)
        np.testing.assert_array_equal(real, episode.frames)
    moving = [pair for pair in pairs if (np.diff(pair.clips()[0].astype(int), axis=0) != 0).any()]
    assert moving, "or a shift could not be seen"


def test_the_same_seed_gives_the_same_pairs(copy: Copy, episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    def plan(folder: str, **changes: Any) -> list[tuple[object, ...]]:
        pairs = prepare_pairs(copy, episodes, tmp_path / folder, 6, LENGTHS, **changes)
        return [(pair.id, pair.episode, pair.start, pair.wait) for pair in pairs]

    assert plan("a") == plan("b")
    found = plan("c", seed=1)
    assert [one[1:] for one in found] != [one[1:] for one in plan("a")]
    assert not {one[0] for one in found} & {one[0] for one in plan("a")}


def test_preparing_goes_on_after_a_kill(
    checkpoint: Checkpoint, episodes: list[EpisodeInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the networks of a made-up checkpoint: what was made before the kill stays, the rest is the same."""
    subject = Subject(checkpoint, torch.device("cpu"))

    def prepare(folder: str) -> list[Pair]:
        return prepare_pairs(subject, episodes, tmp_path / folder, 3, LENGTHS, wait_seconds=1)

    whole = [pair.clips() for pair in prepare("whole")]
    assert all((real != neural).any() for real, neural in whole)
    save, left = engine.clip_pairs._save, [2]

    def killed_save(*arguments: Any) -> None:
        left[0] -= 1
        if not left[0]:
            arguments[0].with_suffix(".npz.partial").write_bytes(b"PK half")
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(engine.clip_pairs, "_save", killed_save)
    with pytest.raises(KeyboardInterrupt):
        prepare("killed")
    monkeypatch.setattr(engine.clip_pairs, "_save", save)
    clips = tmp_path / "killed" / "raters" / "clips"
    (first,) = clips.glob("*.npz")
    made = first.stat().st_mtime_ns
    resumed = [pair.clips() for pair in prepare("killed")]
    for ours, theirs in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert first.stat().st_mtime_ns == made
    assert not list(clips.glob("*.partial"))

    def never(*arguments: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(engine.clip_pairs, "_play", never)
    prepare("killed")


def test_other_pairs_replace_unanswered_ones_only(copy: Copy, episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    old = prepare_pairs(copy, episodes, tmp_path, 2, LENGTHS)
    pairs = prepare_pairs(copy, episodes, tmp_path, 2, LENGTHS, seed=1)
    assert not any(pair.path.exists() for pair in old)
    folder = tmp_path / "raters"
    rate(RatingSession(pairs, folder, "anna"), "left")
    for seed, count in ((2, 2), (1, 3)):
        with pytest.raises(DataError, match=r"other pairs.*choose another --out"):
            prepare_pairs(copy, episodes, tmp_path, count, LENGTHS, seed=seed)
    assert all(pair.path.exists() for pair in prepare_pairs(copy, episodes, tmp_path, 2, LENGTHS, seed=1))


def test_another_checkpoint_is_refused(
    copy: Copy, made_up: Callable[..., Checkpoint], episodes: list[EpisodeInfo], tmp_path: Path
) -> None:
    pairs = prepare_pairs(copy, episodes, tmp_path, 2, LENGTHS)
    rate(RatingSession(pairs, tmp_path / "raters", "anna"), "left")
    retrained = Copy(made_up(HEIGHT, WIDTH, seed=1, fps=FPS), torch.device("cpu"))
    with pytest.raises(DataError, match=r"about checkpoint made-up \(\w{16}\), what is asked for now about made-up"):
        prepare_pairs(retrained, episodes, tmp_path, 2, LENGTHS)


def test_too_short_episodes_and_zero_pairs(copy: Copy, episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no held-out episode has 104 frames"):
        prepare_pairs(copy, episodes, tmp_path, 2, (20.0,))
    waits = [pair.wait for pair in prepare_pairs(copy, episodes, tmp_path, 4, (9.0,))]
    assert max(waits) <= 1, "the longest episode has 50 frames, 4 + 45 of them taken"
    for count in (0, -1):
        with pytest.raises(OptionError, match="--pairs"):
            prepare_pairs(copy, episodes, tmp_path, count)
        with pytest.raises(OptionError, match="--pairs"):
            check_pairs(count)
    with pytest.raises(OptionError, match="lengths"):
        check_pairs(1, (0.0,))
    with pytest.raises(OptionError, match="--pairs"):
        RatingSession([], tmp_path, "anna")


def test_damaged_and_missing_clips(pairs: list[Pair], tmp_path: Path) -> None:
    whole = pairs[0].path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a file of clips"):
        pairs[0].path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged.*made anew"):
            pairs[0].clips()
    np.savez(pairs[0].path, real=np.zeros((3, 4, 4, 3), np.uint8), neural=np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match="shapes"):
        pairs[0].clips()
    pairs[0].path.unlink()
    with pytest.raises(DataError, match="missing"):
        pairs[0].clips()


def test_clips_that_cannot_be_written(copy: Copy, episodes: list[EpisodeInfo], tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="cannot write the clips"):
        prepare_pairs(copy, episodes, tmp_path / "out", 2, LENGTHS)


# --- answers


def test_answers_are_on_the_disk_at_once_and_are_gone_on_with(pairs: list[Pair], tmp_path: Path, clock: Clock) -> None:
    session = RatingSession(pairs, tmp_path, "anna", clock)
    assert session.pair == pairs[0]
    left, right = session.show()
    assert (left if session.side == "left" else right)[..., 0].any(), "the real one is red"
    clock.now += 2.5
    given = session.answer(other(session.side))
    (line,) = (tmp_path / "anna.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "pair": "abcd-001", "length": 2.0, "side": given.side, "answer": other(given.side), "correct": False,
        "seconds": 2.5, "checkpoint": "red", "checkpoint_hash": "f00d",
    }  # fmt: skip
    again = RatingSession(pairs, tmp_path, "anna", clock)
    assert (again.pair, again.answered) == (pairs[1], 1)
    assert RatingSession(pairs, tmp_path, "bob", clock).pair == pairs[0]
    for _ in range(3):
        rate(again, "left")
    assert again.pair is None
    assert RatingSession(pairs, tmp_path, "anna", clock).pair is None


def test_taking_answers_back(pairs: list[Pair], tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "anna.jsonl"
    session = RatingSession(pairs, tmp_path, "anna", clock)
    assert session.take_back() is None
    contents = [b""]
    for _ in range(3):
        rate(session, "left")
        contents.append(path.read_bytes())
    session = RatingSession(pairs, tmp_path, "anna", clock)  # of an earlier session too
    for number in (2, 1):
        taken = session.take_back()
        assert taken is not None
        assert taken.pair == pairs[number].id
        assert session.pair == pairs[number]
        assert path.read_bytes() == contents[number]
    session.show()
    clock.now += 9
    assert session.answer("right").seconds == 9
    assert [answer.answer for answer in read_answers(path)] == ["left", "right"]
    session.take_back()
    session.take_back()
    assert path.read_bytes() == b""
    assert session.take_back() is None


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_cut_short_by_a_kill(pairs: list[Pair], tmp_path: Path, cut: int) -> None:
    path = tmp_path / "anna.jsonl"
    session = RatingSession(pairs, tmp_path, "anna")
    rate(session, "left")
    one = path.read_bytes()
    rate(session, "right")
    path.write_bytes(path.read_bytes()[:-cut])
    whole = 2 if cut == 1 else 1  # only the end of the line is missing: the answer is there
    assert len(read_answers(path)) == summarise_ratings(tmp_path)["answers"] == whole
    session = RatingSession(pairs, tmp_path, "anna")
    assert session.pair == pairs[whole]
    rate(session, "left")
    assert len(read_answers(path)) == whole + 1
    assert path.read_bytes().endswith(b"}\n")
    for _ in range(whole):
        session.take_back()
    assert path.read_bytes() == one


@pytest.mark.parametrize(
    "line",
    [
        '{"pair": "abcd-0', "[1, 2]", "null", "", '{"pair": "abcd-009"}', "\udcff",
        *(
            json.dumps({"pair": "abcd-009", "length": 1.0, "side": "left", "answer": "left", "correct": True,
                        "seconds": 1.0, "checkpoint": "red", "checkpoint_hash": "f00d", **change})
            for change in ({"correct": False}, {"side": "up"}, {"seconds": -1}, {"length": "long"}, {"pair": 3},
                           {"seconds": float("nan")}, {"more": 1})
        ),
    ],
)  # fmt: skip
def test_a_damaged_line_in_the_middle(pairs: list[Pair], tmp_path: Path, line: str) -> None:
    path = tmp_path / "anna.jsonl"
    session = RatingSession(pairs, tmp_path, "anna")
    rate(session, "left")
    rate(session, "left")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + line.encode(errors="surrogateescape") + b"\n" + second)
    for use in (
        read_answers,
        lambda path: summarise_ratings(path.parent),
        lambda _: session.__init__(pairs, tmp_path, "bob"),
    ):  # type: ignore[misc]
        with pytest.raises(DataError, match=r"damaged.*anna\.jsonl, line 2.*delete this line"):
            use(path)


def test_a_pair_answered_twice(pairs: list[Pair], tmp_path: Path) -> None:
    path = tmp_path / "anna.jsonl"
    rate(RatingSession(pairs, tmp_path, "anna"), "left")
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(DataError, match=r"abcd-001 is answered twice.*line 2"):
        summarise_ratings(tmp_path)


def test_files_of_another_checkpoint_or_other_pairs_do_not_merge(pairs: list[Pair], tmp_path: Path) -> None:
    rate(RatingSession(pairs, tmp_path, "anna"), "left")
    for change, words in (
        ({"checkpoint_hash": "beef"}, r"red \(beef\)"), ({"checkpoint": "blue"}, r"blue \(f00d\)"),
        ({"id": "ffff-001"}, "other pairs"),
    ):  # fmt: skip
        others = [replace(pairs[0], **change)]
        rate(RatingSession(others, tmp_path / "else", "bob"), "left")
        copied = tmp_path / "bob.jsonl"
        (tmp_path / "else" / "bob.jsonl").replace(copied)
        with pytest.raises(DataError, match=words) as caught:
            summarise_ratings(tmp_path)
        assert caught.value.where == str(copied)
        with pytest.raises(DataError, match=words):
            RatingSession(pairs, tmp_path, "anna")
        copied.unlink()
    assert summarise_ratings(tmp_path)["answers"] == 1


def test_no_answers(tmp_path: Path) -> None:
    (tmp_path / "anna.jsonl").touch()
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match="nobody has answered"):
            summarise_ratings(folder)


def test_two_windows_of_one_rater(pairs: list[Pair], tmp_path: Path) -> None:
    first, second = (RatingSession(pairs, tmp_path, "anna") for _ in range(2))
    rate(first, "left")
    second.show()
    with pytest.raises(DataError, match="somebody else is writing"):
        second.answer("left")
    assert len(read_answers(tmp_path / "anna.jsonl")) == 1


def test_answers_that_cannot_be_written(pairs: list[Pair], tmp_path: Path) -> None:
    (tmp_path / "raters").touch()
    session = RatingSession(pairs, tmp_path / "raters", "anna")
    session.show()
    with pytest.raises(DataError, match="cannot write the answer"):
        session.answer("left")


@pytest.mark.parametrize("name", ["", "a b", "../anna", "anna.", "änna", "anna\n", "a/b", "x" * 65])
def test_odd_names(name: str, pairs: list[Pair], tmp_path: Path) -> None:
    for use in (check_rater, lambda name: check_raters(name, 2), lambda name: RatingSession(pairs, tmp_path, name)):
        with pytest.raises(OptionError, match="--raters") as caught:
            use(name)
        assert "\n" not in str(caught.value)
    check_rater("Anna_2-b")
