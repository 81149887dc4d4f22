"""What a recording holds, in numbers and in pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.errors import DataError, OptionError
from recorder.coverage import draw_coverage, measure_coverage
from recorder.episodes import EpisodeInfo, read_actions, read_episode, read_info
from recorder.pictures import VideoWriter, contact_sheet, draw_held_keys, save_png
from recorder.progress import progress
from recorder.recording import HELD_OUT_EVERY, Recording


@dataclass(frozen=True)
class RecordingDescription:
    """What a recording holds.

    ``hours`` are at the game's own clock; ``agents`` are shares of frames; ``held`` is the share of frames
    that each button is held, and the mean size of each axis; ``damaged`` tells what is wrong with which file.
    """

    folder: str
    spec: str
    buttons: tuple[str, ...]
    axes: tuple[str, ...]
    height: int
    width: int
    frame_skip: int
    fps: float
    seed: int
    episodes: int
    frames: int
    hours: float
    bytes: int
    bytes_per_frame: float
    agents: dict[str, float]
    shortest_episode: int
    median_episode: float
    longest_episode: int
    held: dict[str, float]
    terminated: int
    truncated: int
    held_out_episodes: int
    damaged: tuple[str, ...]


@dataclass(frozen=True)
class PreviewSummary:
    """What :func:`preview_recording` wrote.

    ``coverage`` is a map of where the player was; None where the game tells no positions or he cannot walk. ``cells``
    are the places of 64x64 map units that he entered, ``directions`` the share of directions seen from them.
    """

    sheet: str
    video: str
    episodes: int
    frames: int
    seconds: float
    coverage: str | None = None
    cells: int | None = None
    directions: float | None = None


def describe_recording(folder: Path) -> RecordingDescription:
    """Read every episode but for its frames; damaged files are told, not counted.

    Raises:
        DataError: there is no recording, or its header is damaged.
    """
    recording = Recording.open(folder)
    header, names = recording.header, recording.header.action_set.names
    infos, damaged = _readable(recording)
    agents: Counter[str] = Counter()
    held = np.zeros(len(names))
    for info in infos:
        agents[info.agent] += info.frames
        held += np.abs(read_actions(info.path)).sum(0)
    lengths = [info.frames for info in infos]
    frames = sum(lengths)
    size = sum(info.path.stat().st_size for info in infos)
    return RecordingDescription(
        folder=str(folder),
        spec=header.spec,
        buttons=header.action_set.buttons,
        axes=header.action_set.axes,
        height=header.height,
        width=header.width,
        frame_skip=header.frame_skip,
        fps=header.fps,
        seed=header.seed,
        episodes=len(infos),
        frames=frames,
        hours=frames / header.fps / 3600,
        bytes=size,
        bytes_per_frame=size / max(1, frames),
        agents={name: count / frames for name, count in agents.most_common()},
        shortest_episode=min(lengths, default=0),
        median_episode=float(np.median(lengths)) if lengths else 0.0,
        longest_episode=max(lengths, default=0),
        held={name: float(value) / max(1, frames) for name, value in zip(names, held, strict=True)},
        terminated=sum(info.terminated for info in infos),
        truncated=sum(info.truncated for info in infos),
        held_out_episodes=sum(int(info.path.stem) % HELD_OUT_EVERY == 0 for info in infos),
        damaged=tuple(damaged),
    )


def preview_recording(
    folder: Path, out: Path, seed: int = 0, rows: int = 4, columns: int = 6, seconds: float = 20.0
) -> PreviewSummary:
    """Write ``preview.png``, frames of several episodes, and ``preview.mp4``, a stretch of each, keys drawn in.

    Where the game tells positions, ``coverage.png`` is a map of where the recording has been.

    Args:
        folder: the recording.
        out: folder for the files; made where it is missing.
        seed: draws the episodes and the stretches.
        rows: episodes shown.
        columns: frames of each on the sheet, evenly spread.
        seconds: length of the video at the game's own clock.

    Raises:
        DataError: there is no recording, it holds no episode, or a file cannot be read or written.
        OptionError: an option is not positive.
    """
    for name, value in (("rows", rows), ("columns", columns), ("seconds", seconds)):
        if not 0 < value < float("inf"):
            raise OptionError(f"must be more than 0, got {value}", f"--{name}", "give a positive number")
    if seed < 0:
        raise OptionError(f"must not be negative, got {seed}", "--seed", "give 0 or more")
    recording = Recording.open(folder)
    infos, damaged = _readable(recording)
    if not infos:
        what = damaged[0] if damaged else "the recording has no episodes"
        raise DataError(what, folder, "record some frames into it")
    rng = np.random.default_rng(seed)
    picks = sorted(rng.choice(len(infos), min(rows, len(infos)), replace=False))
    chosen = [infos[i] for i in picks]
    header = recording.header
    stretch = max(1, round(seconds * header.fps / len(chosen)))
    sheet_rows, written = [], 0
    with (
        progress("preview", len(chosen), "episodes") as show,
        VideoWriter(out / "preview.mp4", header.fps, header.height, header.width) as video,
    ):
        for done, info in enumerate(chosen):
            times = np.unique(np.linspace(0, info.frames - 1, columns).round().astype(int))
            sheet_rows.append(np.concatenate([_with_keys(recording, info, t, t + 1) for t in times]))
            start = int(rng.integers(0, max(1, info.frames - stretch + 1)))
            for frame in _with_keys(recording, info, start, min(info.frames, start + stretch)):
                video.append(frame)
                written += 1
            show(done + 1, "")
    save_png(out / "preview.png", contact_sheet(sheet_rows, labels=[_label(info) for info in chosen]))
    coverage = measure_coverage(infos)
    if coverage is not None:
        draw_coverage(coverage, out / "coverage.png")
    return PreviewSummary(
        str(out / "preview.png"), str(out / "preview.mp4"), len(chosen), written, written / header.fps,
        str(out / "coverage.png") if coverage is not None else None,
        coverage.cells if coverage is not None else None,
        coverage.directions if coverage is not None else None,
    )  # fmt: skip


def _readable(recording: Recording) -> tuple[list[EpisodeInfo], list[str]]:
    """Episodes that can be opened and fit the recording, and what is wrong with the others."""
    infos, damaged = [], []
    for path in recording.episode_paths():
        try:
            info = read_info(path)
            recording.check(info)
            infos.append(info)
        except DataError as error:
            damaged.append(f"{path.name}: {error.what}")
    return infos, damaged


def _with_keys(recording: Recording, info: EpisodeInfo, start: int, stop: int) -> np.ndarray:
    """Frames (N, H, W, 3) of steps ``start`` to ``stop`` with what was held during each."""
    episode = read_episode(info.path, start, stop)
    action_set = recording.header.action_set
    return np.stack([draw_held_keys(f, action_set, a) for f, a in zip(episode.frames, episode.actions, strict=True)])


def _label(info: EpisodeInfo) -> str:
    end = "to its end" if info.terminated else "cut short"
    return f"episode {int(info.path.stem)}   {Path(info.agent).name}   {info.frames} frames, {end}   seed {info.seed}"
