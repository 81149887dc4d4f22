"""Pictures and videos of recordings, and what info, verify and export say of them."""

from __future__ import annotations

import csv
import errno
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import h5py
import numpy as np
import pytest
from PIL import Image

from agents.actions import ActionSet
from agents.errors import DataError, OptionError, UnreadableError
from recorder.coverage import measure_coverage
from recorder.episodes import EpisodeWriter, read_episode
from recorder.export import export_recording
from recorder.pictures import VideoWriter, contact_sheet, draw_held_keys, save_png
from recorder.preview import describe_recording, preview_recording
from recorder.recording import Recording, RecordingHeader
from recorder.verify import verify_recording

DOOM = ActionSet(
    ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT", "ATTACK", "USE", "SPEED")
)
WITH_AXIS = ActionSet(("ATTACK",), ("TURN",))
HEIGHT, WIDTH, FPS = 120, 160, 17.5
LENGTHS = (40, 9, 70)


def scene(length: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A bright square that moves over a gradient: (N, H, W, 3)."""
    y, x = np.mgrid[:height, :width]
    frames = np.stack([np.stack([40 + x // 2, 60 + y // 2, 90 + 0 * x], -1)] * length).astype(np.uint8)
    for i in range(length):
        frames[i, height // 2 : height // 2 + 8, i % width : i % width + 8] = (250, 240, 60)
    return frames


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    header = RecordingHeader(
        "doom/test", WITH_AXIS, HEIGHT, WIDTH, 2, FPS, ("HEALTH", "ARMOR"), {"random": ""}, 5, {}, "notice"
    )
    recording = Recording.create_or_resume(tmp_path / "recording", header)
    for number, length in enumerate(LENGTHS):
        writer = EpisodeWriter(
            recording.episode_path(number), HEIGHT, WIDTH, 2, header.variable_names, 5 + number,
            "random" if number else "scripted",
        )  # fmt: skip
        with writer:
            for i, frame in enumerate(scene(length)):
                writer.append(frame, np.array([i % 2, -0.5]), i, {"HEALTH": 100 - i})
            writer.finish(terminated=number == 0, truncated=number != 0)
    return recording


def decode(path: Path) -> tuple[list[np.ndarray], Fraction]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return frames, stream.average_rate


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def test_contact_sheet() -> None:
    rows = [scene(3), scene(2), scene(1, 60, 40)]
    sheet = contact_sheet(rows, gap=2)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 + 2 * (HEIGHT + 2) + 60 + 2, 2 + 3 * (WIDTH + 2), 3)
    np.testing.assert_array_equal(sheet[2 : 2 + HEIGHT, 2 + WIDTH + 2 :][:, :WIDTH], rows[0][1])
    np.testing.assert_array_equal(sheet[-62:-2, 2:42], rows[2][0])
    labelled = contact_sheet(rows, labels=["first", "", "third"])
    assert labelled.shape[0] > sheet.shape[0]
    assert labelled[2:18].max() > 150  # the text


def test_save_png(tmp_path: Path) -> None:
    save_png(tmp_path / "new" / "a.png", scene(1)[0])
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), scene(1)[0])
    for path in (tmp_path / "new", tmp_path / "new" / "a.png" / "b.png", Path("/proc/a.png")):
        with pytest.raises(DataError, match=str(path)):
            save_png(path, scene(1)[0])
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("size", [(240, 320), (120, 160), (48, 64), (480, 640), (10, 12)])
def test_each_key_changes_the_picture(size: tuple[int, int]) -> None:
    frame = scene(1, *size)[0]
    before = frame.copy()
    drawn = [draw_held_keys(frame, DOOM, DOOM.encode([name])) for name in DOOM.buttons]
    drawn.append(draw_held_keys(frame, DOOM, DOOM.rest))
    np.testing.assert_array_equal(frame, before)
    assert all(picture.shape == frame.shape and picture.dtype == np.uint8 for picture in drawn)
    if size[0] >= 120:
        assert len({picture.tobytes() for picture in drawn}) == len(drawn)
        for picture in drawn:  # in the corner only
            np.testing.assert_array_equal(picture[size[0] // 4 :], frame[size[0] // 4 :])
    np.testing.assert_array_equal(drawn[0], draw_held_keys(frame, DOOM, DOOM.encode(["MOVE_FORWARD"])))


def test_lit_caps_are_brighter() -> None:
    frame = scene(1, 240, 320)[0]
    rest = draw_held_keys(frame, DOOM, DOOM.rest).astype(int)
    fire = draw_held_keys(frame, DOOM, DOOM.encode(["ATTACK"])).astype(int)
    changed = (rest != fire).any(-1)
    assert fire[changed].sum() > 2 * rest[changed].sum()


@pytest.mark.parametrize(
    "action_set",
    [
        ActionSet(tuple(f"ACTION_{i}" for i in range(18)), exclusive=True),
        ActionSet((), ("AXIS_0", "AXIS_1")),
        ActionSet(("TURN_LEFT", "TURN_RIGHT", "ATTACK")),
        ActionSet((*(f"SELECT_WEAPON{i}" for i in range(10)), "A_VERY_LONG_NAME_OF_A_BUTTON", "ZOOM")),
        WITH_AXIS,
    ],
)
def test_any_action_set_can_be_drawn(action_set: ActionSet) -> None:
    frame = scene(1)[0]
    pictures = {draw_held_keys(frame, action_set, action_set.rest).tobytes()}
    for name in action_set.buttons:
        pictures.add(draw_held_keys(frame, action_set, action_set.encode([name])).tobytes())
    for name in action_set.axes:
        for value in (-1.0, -0.4, 1.0):
            pictures.add(draw_held_keys(frame, action_set, action_set.encode(**{name: value})).tobytes())
    at_rest_is_a_button = int(action_set.exclusive)
    assert len(pictures) == 1 + len(action_set.buttons) + 3 * len(action_set.axes) - at_rest_is_a_button


@pytest.mark.parametrize(("fps", "size"), [(17.5, (120, 160)), (35, (119, 161)), (Fraction(35, 3), (240, 320))])
def test_video_decodes(tmp_path: Path, fps: float | Fraction, size: tuple[int, int]) -> None:
    path, frames = tmp_path / "new" / "a.mp4", scene(12, *size)
    with VideoWriter(path, fps, *size) as video:
        for frame in frames:
            assert not path.exists()
            video.append(frame)
    decoded, rate = decode(path)
    assert rate == Fraction(fps)
    assert len(decoded) == video.frames == 12
    assert decoded[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    for real, shown in zip(frames, decoded, strict=True):
        assert np.abs(shown[: size[0], : size[1]].astype(int) - real).mean() < 4
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("name", ["a.avi", "a", "folder.mp4", "file/a.mp4"])
def test_unusable_video_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=name), VideoWriter(tmp_path / name, 35, HEIGHT, WIDTH):
        pass
    assert not leftovers(tmp_path)


def write_some(path: Path, frames: np.ndarray, error: type[Exception] | None = None) -> None:
    with VideoWriter(path, 35, HEIGHT, WIDTH) as video:
        for frame in frames:
            video.append(frame)
        if error is not None:
            raise error


def test_a_broken_off_video_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_some(tmp_path / "a.mp4", scene(5), ZeroDivisionError)
    with pytest.raises(DataError, match="no frames"):
        write_some(tmp_path / "a.mp4", scene(1)[:0])
    assert not list(tmp_path.iterdir())
    write_some(tmp_path / "a.mp4", scene(5))
    before = (tmp_path / "a.mp4").read_bytes()
    with pytest.raises(ZeroDivisionError):
        write_some(tmp_path / "a.mp4", scene(9), ZeroDivisionError)
    assert (tmp_path / "a.mp4").read_bytes() == before


def test_video_without_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Container:
        def add_stream(self, name: str, **_: Any) -> None:
            raise av.codec.codec.UnknownCodecError(name)

        def close(self) -> None:
            pass

    monkeypatch.setattr(av, "open", lambda *_, **__: Container())
    with pytest.raises(DataError, match=r"H\.264"):
        write_some(tmp_path / "a.mp4", scene(1))
    assert not list(tmp_path.iterdir())


def test_info(recording: Recording) -> None:
    found = describe_recording(recording.folder)
    assert (found.spec, found.buttons, found.axes) == ("doom/test", ("ATTACK",), ("TURN",))
    assert (found.episodes, found.frames, found.terminated, found.truncated) == (3, 119, 1, 2)
    assert (found.shortest_episode, found.median_episode, found.longest_episode) == (9, 40.0, 70)
    assert found.hours == pytest.approx(119 / FPS / 3600)
    assert found.agents == pytest.approx({"random": 79 / 119, "scripted": 40 / 119})
    assert found.held == pytest.approx({"ATTACK": 59 / 119, "TURN": 0.5})
    assert found.bytes == sum(path.stat().st_size for path in recording.episode_paths())
    assert (found.held_out_episodes, found.damaged) == (1, ())


def damage(recording: Recording) -> None:
    path = recording.episode_path(1)
    path.write_bytes(path.read_bytes()[:2000])


def test_info_names_damaged_files(recording: Recording) -> None:
    damage(recording)
    found = describe_recording(recording.folder)
    assert (found.episodes, found.frames, len(found.damaged)) == (2, 110, 1)
    assert "000001.h5" in found.damaged[0]


def test_info_of_an_empty_recording(tmp_path: Path, recording: Recording) -> None:
    empty = Recording.create_or_resume(tmp_path / "empty", recording.header)
    assert describe_recording(empty.folder).frames == 0
    with pytest.raises(DataError, match="no recording here"):
        describe_recording(tmp_path)


def test_preview(recording: Recording, tmp_path: Path) -> None:
    summary = preview_recording(recording.folder, tmp_path / "out", seed=1, rows=2, columns=4, seconds=2)
    frames, rate = decode(Path(summary.video))
    assert (len(frames), rate, summary.episodes) == (summary.frames, Fraction(35, 2), 2)
    assert summary.frames <= 36
    assert frames[0].shape == (HEIGHT, WIDTH, 3)
    plain = scene(1)[0]
    assert np.abs(frames[0][:12, :30].astype(int) - plain[:12, :30]).mean() > 10  # the keys
    sheet = np.array(Image.open(summary.sheet))
    assert sheet.shape[1] == 2 + 4 * (WIDTH + 2)
    again = preview_recording(recording.folder, tmp_path / "again", seed=1, rows=2, columns=4, seconds=2)
    assert Path(again.sheet).read_bytes() == Path(summary.sheet).read_bytes()


def test_preview_of_less_than_asked_for(recording: Recording, tmp_path: Path) -> None:
    summary = preview_recording(recording.folder, tmp_path / "out", rows=9, columns=50, seconds=1000)
    assert (summary.episodes, summary.frames) == (3, 119)


def walk(folder: Path, places: list[tuple[float, float, float]]) -> Recording:
    names = ("POSITION_X", "POSITION_Y", "ANGLE")
    header = RecordingHeader("doom/test", WITH_AXIS, 32, 48, 2, FPS, names, {"random": ""}, 0, {}, "notice")
    recording = Recording.create_or_resume(folder, header)
    with EpisodeWriter(recording.episode_path(0), 32, 48, 2, names, 0, "random") as writer:
        for place in places:
            writer.append(np.zeros((32, 48, 3), np.uint8), np.zeros(2), 0.0, dict(zip(names, place, strict=True)))
        writer.finish(terminated=False, truncated=True)
    return recording


def test_coverage_counts_places_and_directions(tmp_path: Path) -> None:
    # Two cells side by side, from which two directions of eight and one are seen, and one cell far away.
    walked = walk(tmp_path / "walk", [(-1, 5, 0), (-60, 60, 359), (-1, 5, 92), (1, 5, 180), (130, -1, 45)])
    coverage = measure_coverage(walked.episodes())
    assert coverage is not None
    assert coverage.corner == (-64, -64)
    assert coverage.frames.shape == (4, 2, 8)
    assert coverage.frames[0, 1].tolist() == [2, 0, 1, 0, 0, 0, 0, 0]
    assert coverage.frames[1, 1, 4] == coverage.frames[3, 0, 1] == 1
    assert (coverage.cells, coverage.directions) == (3, pytest.approx((2 + 1 + 1) / 24))
    summary = preview_recording(walked.folder, tmp_path / "out", rows=1)
    assert (summary.cells, summary.coverage) == (3, str(tmp_path / "out" / "coverage.png"))
    assert Image.open(summary.coverage).width > 400


def test_no_coverage_of_who_cannot_walk(recording: Recording, tmp_path: Path) -> None:
    assert measure_coverage(recording.episodes()) is None
    assert measure_coverage(walk(tmp_path / "turret", [(1, 1, 0), (1, 1, 90), (1, 1, float("nan"))]).episodes()) is None


def test_preview_refusals(recording: Recording, tmp_path: Path) -> None:
    for option in ("rows", "columns", "seconds"):
        for value in (0, -1):
            with pytest.raises(OptionError, match=f"--{option}"):
                preview_recording(recording.folder, tmp_path / "out", **{option: value})
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        preview_recording(recording.folder, tmp_path / "file")
    empty = Recording.create_or_resume(tmp_path / "empty", recording.header)
    with pytest.raises(DataError, match="no episodes"):
        preview_recording(empty.folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_verify_a_good_recording(recording: Recording) -> None:
    found = verify_recording(recording.folder)
    assert (found.episodes, found.frames, found.bad, found.ok) == (3, 119, (), True)


def rewrite(path: Path, name: str, at: tuple[int, ...], value: float) -> None:
    with h5py.File(path, "r+") as file:
        file[name][at] = value


@pytest.mark.parametrize(
    ("name", "at", "value", "reason"),
    [
        ("actions", (7, 0), np.nan, "action at frame 7"),
        ("actions", (7, 0), 0.5, "action at frame 7"),
        ("actions", (7, 1), 1.5, "action at frame 7"),
        ("rewards", (3,), np.inf, "reward at frame 3"),
        ("variables", (3, 0), np.inf, "variable at frame 3"),
        ("variables", (4, 0), np.nan, "variable at frame 4"),
        ("frames", (8,), 0, "frame 8 is all black"),
    ],
)
def test_verify_finds_bad_values(
    recording: Recording, name: str, at: tuple[int, ...], value: float, reason: str
) -> None:
    rewrite(recording.episode_path(1), name, at, value)
    found = verify_recording(recording.folder)
    assert (found.episodes, found.ok) == (2, False)
    assert [(Path(bad.path).name, reason in bad.reason) for bad in found.bad] == [("000001.h5", True)]


def test_verify_of_a_variable_lost_at_the_very_end(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes are read in parts, and the last may be of one frame."""
    monkeypatch.setattr("recorder.verify.FRAMES_AT_ONCE", 4)
    assert verify_recording(recording.folder).ok
    rewrite(recording.episode_path(1), "variables", (8, 0), np.nan)
    assert "variable at frame 8" in verify_recording(recording.folder).bad[0].reason


def test_what_cannot_be_read_is_not_called_damaged(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "permission denied")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(UnreadableError, match=r"cannot read the episode \(permission denied\)"):
        verify_recording(recording.folder, repair=True)
    assert len(recording.episode_paths()) == 3


def test_verify_finds_one_button_too_many(tmp_path: Path, recording: Recording) -> None:
    header = RecordingHeader(**{**vars(recording.header), "action_set": ActionSet(("A", "B"), exclusive=True)})
    other = Recording.create_or_resume(tmp_path / "other", header)
    with EpisodeWriter(other.episode_path(0), HEIGHT, WIDTH, 2, header.variable_names, 0, "x") as writer:
        writer.append(scene(1)[0], np.array([0, 1]), 0, {})
        writer.append(scene(1)[0], np.array([1, 1]), 0, {})
        writer.finish(terminated=True, truncated=False)
    assert "frame 1" in verify_recording(other.folder).bad[0].reason


def test_verify_repairs(recording: Recording) -> None:
    damage(recording)
    rewrite(recording.episode_path(2), "rewards", (0,), np.nan)
    left = recording.episode_path(9).with_suffix(".h5.12.partial")
    left.write_text("")
    found = verify_recording(recording.folder)
    assert (len(found.bad), found.partial_files, found.repaired) == (2, 1, False)
    assert len(recording.episode_paths()) == 3  # nothing is touched unless asked for

    repaired = verify_recording(recording.folder, repair=True)
    assert repaired.ok
    assert [path.name for path in recording.episode_paths()] == ["000000.h5"]
    assert {Path(bad.moved_to).name for bad in repaired.bad} == {"000001.h5", "000002.h5"}
    assert all(Path(bad.moved_to).is_file() for bad in repaired.bad)
    assert not left.exists()
    after = verify_recording(recording.folder)
    assert (after.bad, after.frames) == ((), 40)


def test_verify_of_a_misplaced_episode(recording: Recording) -> None:
    path = recording.folder / "episodes" / "0007" / "000001.h5"
    path.parent.mkdir()
    recording.episode_path(1).rename(path)
    assert "wrong folder" in verify_recording(recording.folder).bad[0].reason


@pytest.mark.parametrize("form", ["mp4", "png", "npz"])
def test_export(recording: Recording, tmp_path: Path, form: Any) -> None:
    out = tmp_path / "new" / "out"
    summary = export_recording(recording.folder, out, form)
    assert (summary.episodes, summary.frames) == (3, 119)
    assert summary.bytes == sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert (out / "recording.json").is_file()
    assert not leftovers(out)
    episode = read_episode(recording.episode_path(1))
    if form == "npz":
        with np.load(out / "000001.npz", allow_pickle=False) as data:
            np.testing.assert_array_equal(data["frames"], episode.frames)
            np.testing.assert_array_equal(data["actions"], episode.actions)
            assert data["action_names"].tolist() == ["ATTACK", "TURN"]
            assert (bool(data["truncated"]), int(data["seed"]), str(data["agent"])) == (True, 6, "random")
        return
    with (out / "000001.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["ATTACK"]) for line in lines] == episode.actions[:, 0].tolist()
    assert (lines[3]["frame"], lines[3]["TURN"], lines[3]["reward"]) == ("3", "-0.5", "3")
    assert (lines[3]["HEALTH"], lines[3]["ARMOR"]) == ("97", "")
    if form == "mp4":
        frames, rate = decode(out / "000001.mp4")
        assert (len(frames), rate) == (9, Fraction(35, 2))
    else:
        frames = [np.array(Image.open(path)) for path in sorted((out / "000001").iterdir())]
        np.testing.assert_array_equal(np.stack(frames), episode.frames)


def test_export_refusals(recording: Recording, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="gif"):
        export_recording(recording.folder, tmp_path / "out", "gif")  # type: ignore[arg-type]
    (tmp_path / "file").write_text("")
    for out in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError):
            export_recording(recording.folder, out, "npz")
    damage(recording)
    with pytest.raises(DataError, match=r"000001\.h5"):
        export_recording(recording.folder, tmp_path / "out", "npz")
    assert not (tmp_path / "out").exists()
