"""Recordings in formats that other programs read."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np

from agents.errors import DataError, OptionError
from recorder.episodes import PARTIAL_SUFFIX, Episode, EpisodeInfo, read_episode
from recorder.pictures import VideoWriter, save_png
from recorder.progress import progress
from recorder.recording import Recording, RecordingHeader, write_json

ExportFormat = Literal["mp4", "npz", "png"]
FRAMES_AT_ONCE = 256


@dataclass(frozen=True)
class ExportSummary:
    """What :func:`export_recording` wrote."""

    out: str
    format: str
    episodes: int
    frames: int
    bytes: int


def export_recording(folder: Path, out: Path, format: ExportFormat) -> ExportSummary:
    """Write every episode of a recording into the new folder ``out``, with its ``recording.json``.

    ``mp4``: ``NNNNNN.mp4`` (slightly lossy) and ``NNNNNN.csv``. ``png``: ``NNNNNN/FFFFFF.png`` (lossless) and
    ``NNNNNN.csv``. ``npz``: ``NNNNNN.npz`` (lossless) with the arrays of the episode and its names. A CSV has
    a line a frame: what was held while it was on screen, what that earned, and the game's variables.

    Raises:
        DataError: there is no recording, an episode is damaged, or ``out`` is not empty or cannot be written.
        OptionError: the format is unknown.
    """
    if format not in get_args(ExportFormat):
        raise OptionError("unknown format", format, f"use {', '.join(get_args(ExportFormat))}")
    recording = Recording.open(folder)
    infos = recording.episodes()
    with _write_errors(out):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise DataError("the folder exists and is not empty", out, "choose another --out")
        out.mkdir(parents=True, exist_ok=True)
    frames = 0
    with progress(f"exporting {format}", sum(info.frames for info in infos), "frames") as show:
        for info in infos:
            with _write_errors(out):
                if format == "npz":
                    _export_npz(info, recording.header, out / f"{info.path.stem}.npz")
                else:
                    _export_pictures(info, recording.header, out, format)
            frames += info.frames
            show(frames, "")
    with _write_errors(out):
        write_json(out / "recording.json", recording.header.to_json())
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return ExportSummary(str(out), format, len(infos), frames, size)


def _export_pictures(info: EpisodeInfo, header: RecordingHeader, out: Path, format: str) -> None:
    name = info.path.stem
    with contextlib.ExitStack() as stack:
        video = None
        if format == "mp4":
            video = stack.enter_context(VideoWriter(out / f"{name}.mp4", header.fps, info.height, info.width))
        text = io.StringIO()
        lines = csv.writer(text)
        lines.writerow(["frame", *header.action_set.names, "reward", *info.variable_names])
        for start in range(0, info.frames, FRAMES_AT_ONCE):
            part = read_episode(info.path, start, start + FRAMES_AT_ONCE)
            for i, frame in enumerate(part.frames):
                if video is not None:
                    video.append(frame)
                else:
                    save_png(out / name / f"{start + i:06d}.png", frame)
            lines.writerows(_lines(part, start))
    with _whole_file(out / f"{name}.csv") as file:
        file.write(text.getvalue().encode())


def _lines(part: Episode, start: int) -> Iterator[list[object]]:
    for i in range(len(part.frames)):
        values = (*part.actions[i], part.rewards[i], *part.variables[i])
        yield [start + i, *("" if np.isnan(value) else f"{value:.9g}" for value in values)]


def _export_npz(info: EpisodeInfo, header: RecordingHeader, path: Path) -> None:
    episode = read_episode(info.path)
    with _whole_file(path) as file:
        np.savez_compressed(
            file,
            frames=episode.frames,
            actions=episode.actions,
            rewards=episode.rewards,
            variables=episode.variables,
            action_names=np.array(header.action_set.names),
            variable_names=np.array(info.variable_names, dtype=np.str_),
            terminated=info.terminated,
            truncated=info.truncated,
            seed=info.seed,
            agent=info.agent,
        )


@contextlib.contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name only when all of it is written."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _write_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"cannot write the export ({reason})", out, "choose another --out, with space") from error
