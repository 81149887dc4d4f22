"""Episodes on disk: the alignment law, a lossless round trip, and files that cannot be read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import pytest

from agents.actions import ActionSet
from agents.errors import DataError
from recorder.episodes import EpisodeWriter, play_episode, read_episode, read_info
from recorder.recording import Recording, RecordingHeader, split_held_out

HEIGHT, WIDTH = 24, 32
ACTIONS = ActionSet(("LEFT", "RIGHT", "FIRE"), ("TURN",))


class MirrorEnvironment:
    """A game whose picture is the action that made it; the first shows -1 everywhere, as 255."""

    metadata: ClassVar[dict[str, Any]] = {}
    spec_name, action_set, frame_skip, fps = "test/mirror", ACTIONS, 1, 35.0
    variable_names: tuple[str, ...] = ("STEP", "LAST")

    def __init__(self, length: int, truncates: bool = False) -> None:
        self._length, self._truncates = length, truncates

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self._step = 0
        return self._show(np.full(ACTIONS.size, 2.55)), {"variables": {"STEP": 0.0, "LAST": -1.0}}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._step += 1
        ended = self._step == self._length
        info = {"variables": {"STEP": float(self._step), "LAST": float(action[0])}}
        return self._show(action), float(action[2]), ended and not self._truncates, ended and self._truncates, info

    def close(self) -> None:
        pass

    def _show(self, action: np.ndarray) -> np.ndarray:
        frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        frame[: ACTIONS.size, 0, 0] = np.round(action * 100)
        return frame


class ReusingAgent:
    """Answers with one array that it changes in place, as a careless agent may."""

    name, sensors = "reusing", frozenset[str]()

    def reset(self, seed: int) -> None:
        self._rng, self._action = np.random.default_rng(seed), np.zeros(ACTIONS.size, np.float32)

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        self._action[:] = self._rng.integers(0, 2, ACTIONS.size)
        return self._action


def make_writer(path: Path, seed: int = 7) -> EpisodeWriter:
    return EpisodeWriter(path, HEIGHT, WIDTH, ACTIONS.size, MirrorEnvironment.variable_names, seed, "reusing")


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    path = tmp_path / "episodes" / "0000" / "000003.h5"
    with make_writer(path) as writer:
        assert play_episode(MirrorEnvironment(21), ReusingAgent(), writer, 7)
    return path


def test_actions_make_the_next_frame(episode: Path) -> None:
    found = read_episode(episode)
    assert len(found.frames) == 21
    assert len(np.unique(found.actions, axis=0)) > 4
    shown = found.frames[:, : ACTIONS.size, 0, 0] / 100
    np.testing.assert_array_equal(shown[1:], found.actions[:-1])
    assert (shown[0] == 2.55).all()
    np.testing.assert_array_equal(found.rewards, found.actions[:, 2])
    # Variables are those of the moment the frame is on screen.
    np.testing.assert_array_equal(found.variables[:, 0], np.arange(21))
    np.testing.assert_array_equal(found.variables[1:, 1], found.actions[:-1, 0])


def test_info_and_parts(episode: Path) -> None:
    info = read_info(episode)
    assert (info.frames, info.height, info.width, info.actions) == (21, HEIGHT, WIDTH, 4)
    assert (info.terminated, info.truncated, info.seed, info.agent) == (True, False, 7, "reusing")
    assert info.variable_names == ("STEP", "LAST")
    whole, part = read_episode(episode), read_episode(episode, 6, 19)
    np.testing.assert_array_equal(part.frames, whole.frames[6:19])
    np.testing.assert_array_equal(part.actions, whole.actions[6:19])


def test_truncated_is_not_terminated(tmp_path: Path) -> None:
    with make_writer(tmp_path / "0.h5") as writer:
        play_episode(MirrorEnvironment(5, truncates=True), ReusingAgent(), writer, 1)
    assert (read_info(tmp_path / "0.h5").terminated, read_info(tmp_path / "0.h5").truncated) == (False, True)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 300])
def test_round_trip_is_lossless(tmp_path: Path, length: int) -> None:
    rng = np.random.default_rng(length)
    frames = rng.integers(0, 256, (length, HEIGHT, WIDTH, 3), dtype=np.uint8)
    actions = rng.uniform(-1, 1, (length, ACTIONS.size)).astype(np.float32)
    with make_writer(tmp_path / "0.h5") as writer:
        for i in range(length):
            writer.append(frames[i], actions[i], i / 2, {"STEP": i})
        writer.finish(terminated=False, truncated=True)
    found = read_episode(tmp_path / "0.h5")
    np.testing.assert_array_equal(found.frames, frames)
    np.testing.assert_array_equal(found.actions, actions)
    np.testing.assert_array_equal(found.rewards, np.arange(length) / 2)
    np.testing.assert_array_equal(found.variables[:, 0], np.arange(length))
    assert np.isnan(found.variables[:, 1]).all()  # a variable that the game did not tell


def write_and_fail(path: Path) -> None:
    with make_writer(path) as writer:
        for _ in range(40):
            writer.append(np.zeros((HEIGHT, WIDTH, 3), np.uint8), ACTIONS.rest, 0, {})
        assert not list(path.parent.glob("*.h5"))
        raise ZeroDivisionError


def test_nothing_is_visible_until_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_and_fail(tmp_path / "0.h5")
    assert not list(tmp_path.iterdir())


def test_an_episode_given_up_leaves_nothing(tmp_path: Path) -> None:
    steps = iter(range(30))
    with make_writer(tmp_path / "0.h5") as writer:
        assert not play_episode(MirrorEnvironment(100), ReusingAgent(), writer, 1, lambda: next(steps) == 20)
    assert not list(tmp_path.iterdir())


def test_an_episode_is_never_written_over(episode: Path) -> None:
    before = episode.read_bytes()
    with pytest.raises(DataError, match="there already"), make_writer(episode):
        pass
    assert episode.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_file(episode: Path, share: float) -> None:
    whole = episode.read_bytes()
    episode.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"000003\.h5"):
        read_episode(episode)


def test_damaged_middle(episode: Path) -> None:
    with h5py.File(episode, "r") as file:
        at = file["frames"].id.get_chunk_info(1).byte_offset
    data = bytearray(episode.read_bytes())
    data[at + 4 : at + 40] = bytes(36)
    episode.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        read_episode(episode)


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    foreign = tmp_path / "0.h5"
    foreign.write_text("not HDF5 at all")
    for path in (foreign, tmp_path / "1.h5", tmp_path):
        with pytest.raises(DataError) as error:
            read_info(path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)


def change(path: Path, name: str, data: np.ndarray | None) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if data is not None:
            file[name] = data


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("frames", np.zeros((21, HEIGHT, WIDTH), np.uint8)),
        ("frames", np.zeros((21, HEIGHT, WIDTH, 3), np.float32)),
        ("frames", np.zeros((20, HEIGHT, WIDTH, 3), np.uint8)),
        ("frames", np.zeros((), np.uint8)),
        ("actions", np.zeros(21, np.float32)),
        ("rewards", np.zeros((21, 1), np.float32)),
        ("variables", np.zeros((21, 5), np.float32)),
        ("rewards", None),
    ],
)
def test_wrong_arrays(episode: Path, name: str, data: np.ndarray | None) -> None:
    change(episode, name, data)
    with pytest.raises(DataError, match=r"000003\.h5"):
        read_info(episode)


def test_group_in_place_of_an_array(episode: Path) -> None:
    change(episode, "frames", None)
    with h5py.File(episode, "r+") as file:
        for i in range(21):
            file.create_group(f"frames/{i}")
    with pytest.raises(DataError, match="damaged"):
        read_info(episode)


def test_other_versions_are_refused(episode: Path) -> None:
    with h5py.File(episode, "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(DataError, match="version 99"):
        read_info(episode)


def test_version_1_files_of_any_writer_are_read(tmp_path: Path) -> None:
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file["frames"] = np.ones((4, HEIGHT, WIDTH, 3), np.uint8)
        file["actions"] = np.zeros((4, 2), np.float32)
        file["rewards"], file["variables"] = np.zeros(4, np.float32), np.zeros((4, 0), np.float32)
        attributes = {"format_version": 1, "variable_names": [], "terminated": True, "truncated": False}
        file.attrs.update({**attributes, "seed": 3, "agent": "me"})
    (tmp_path / "0.h5").write_bytes(image.getvalue())
    info = read_info(tmp_path / "0.h5")
    assert (info.frames, info.variable_names, info.agent) == (4, (), "me")


def make_header(**changes: Any) -> RecordingHeader:
    values: dict[str, Any] = {
        "spec": "test/mirror", "action_set": ACTIONS, "height": HEIGHT, "width": WIDTH, "frame_skip": 1,
        "fps": 35.0, "variable_names": ("STEP", "LAST"), "agents": {"reusing": ""}, "seed": 0, "packages": {},
    }  # fmt: skip
    return RecordingHeader(**{**values, **changes})


def record(folder: Path, *lengths: int) -> Recording:
    recording = Recording.create_or_resume(folder, make_header())
    for number, length in enumerate(lengths):
        with make_writer(recording.episode_path(number), number) as writer:
            play_episode(MirrorEnvironment(length), ReusingAgent(), writer, number)
    return recording


def test_recording_round_trip(tmp_path: Path) -> None:
    record(tmp_path / "a", 5, 9)
    recording = Recording.open(tmp_path / "a")
    assert recording.header == make_header()
    assert [info.frames for info in recording.episodes()] == [5, 9]
    assert "2 episodes" in repr(recording)


@pytest.mark.parametrize(
    "changes",
    [{"spec": "test/other"}, {"action_set": ActionSet(("A", "B"))}, {"height": 48}, {"width": 48}, {"frame_skip": 2}],
)
def test_another_game_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    record(tmp_path / "a", 5)
    before = (tmp_path / "a" / "recording.json").read_text()
    with pytest.raises(DataError, match=next(iter(changes))):
        Recording.create_or_resume(tmp_path / "a", make_header(**changes))
    assert (tmp_path / "a" / "recording.json").read_text() == before


def test_a_recording_without_episodes_may_become_another(tmp_path: Path) -> None:
    record(tmp_path / "a")
    assert Recording.create_or_resume(tmp_path / "a", make_header(width=48)).header.width == 48
    assert Recording.open(tmp_path / "a").header.width == 48


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("")
    for folder in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError):
            Recording.create_or_resume(folder, make_header())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine.txt"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format_version": 7}', '{"format_version": 1, "spec": "x"}', "\x00\x01", "null"],
)
def test_damaged_headers(tmp_path: Path, text: str) -> None:
    record(tmp_path / "a", 5)
    (tmp_path / "a" / "recording.json").write_text(text)
    with pytest.raises(DataError, match=r"recording\.json"):
        Recording.open(tmp_path / "a")


def test_header_values_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "a" / "recording.json"
    record(tmp_path / "a", 5)
    whole = path.read_text()
    for old, new in (('"height": 24', '"height": "24"'), ('"fps": 35.0', '"fps": -1'), ('"width": 32', '"width": 0')):
        path.write_text(whole.replace(old, new))
        with pytest.raises(DataError, match="damaged"):
            Recording.open(tmp_path / "a")


def test_an_episode_of_another_recording_is_named(tmp_path: Path) -> None:
    recording = record(tmp_path / "a", 5)
    with EpisodeWriter(recording.episode_path(1), 48, 64, 4, ("STEP", "LAST"), 0, "x") as writer:
        writer.append(np.zeros((48, 64, 3), np.uint8), np.zeros(4), 0, {})
        writer.finish(terminated=True, truncated=False)
    with pytest.raises(DataError, match=r"000001\.h5"):
        recording.episodes()


def test_episodes_are_in_order_of_number(tmp_path: Path) -> None:
    recording = record(tmp_path / "a", 5)
    for number in (1_000_000, 999_999, 1_001):
        with make_writer(recording.episode_path(number)) as writer:
            play_episode(MirrorEnvironment(3), ReusingAgent(), writer, 0)
    (tmp_path / "a" / "episodes" / "0000" / "notes.h5").write_text("")
    assert [int(path.stem) for path in recording.episode_paths()] == [0, 1_001, 999_999, 1_000_000]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    recording = record(tmp_path / "a", 5)
    left = tmp_path / "a" / "episodes" / "0000" / "000009.h5.123.partial"
    left.write_text("")
    with recording.lock():
        assert not left.exists()
        with pytest.raises(DataError, match="another process"), Recording.open(tmp_path / "a").lock():
            pass
    with recording.lock():
        pass


def test_held_out_is_by_episode_number() -> None:
    paths = [Path(f"{number:06d}.h5") for number in range(25)]
    train, held_out = split_held_out(paths)
    assert [int(path.stem) for path in held_out] == [0, 10, 20]
    assert len(train) == 22
    with pytest.raises(DataError, match="too few"):
        split_held_out(paths[:1])
