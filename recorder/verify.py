"""Reading a recording whole, to see that every byte of it can be trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.errors import DataError, UnreadableError
from recorder.episodes import PARTIAL_SUFFIX, Episode, read_episode, read_info, read_results
from recorder.progress import progress
from recorder.recording import Recording

FRAMES_AT_ONCE = 256
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class BadEpisode:
    """An episode that cannot be used, and why; ``moved_to`` is where a repair put it, or ""."""

    path: str
    reason: str
    moved_to: str = ""


@dataclass(frozen=True)
class VerifySummary:
    """What :func:`verify_recording` found. ``episodes`` and ``frames`` are the good ones."""

    folder: str
    episodes: int
    frames: int
    bytes: int
    bad: tuple[BadEpisode, ...]
    partial_files: int
    repaired: bool

    @property
    def ok(self) -> bool:
        """Whether the recording, as it is now, holds no bad episode."""
        return not self.bad or self.repaired


def verify_recording(folder: Path, repair: bool = False) -> VerifySummary:
    """Read every episode whole and check it.

    Checked: the file opens and decompresses; its shapes and names fit the recording; actions are such that
    its ActionSet could have made them; rewards and variables are finite; no frame of Doom is all black, as
    the one that the engine gives after the last step.

    Args:
        folder: the recording.
        repair: move bad episodes to ``quarantine/`` and remove what a killed recorder left half-written.

    Raises:
        DataError: there is no recording, its header is damaged, or a repair cannot write; or another
            process is recording into it just now, where ``repair`` is asked for.
    """
    recording = Recording.open(folder)
    partials = len(list(folder.glob(f"episodes/*/*{PARTIAL_SUFFIX}")))
    paths = recording.episode_paths()
    episodes = frames = size = 0
    bad: list[BadEpisode] = []
    with progress("verifying", len(paths), "episodes") as show:
        for done, path in enumerate(paths):
            try:
                frames += _check_episode(recording, path)
                episodes, size = episodes + 1, size + path.stat().st_size
            except UnreadableError:  # which says nothing of the episode
                raise
            except DataError as error:
                bad.append(BadEpisode(str(path), error.what))
            show(done + 1, f"{len(bad)} bad" if bad else "")
    if repair:
        with recording.lock():
            bad = [BadEpisode(b.path, b.reason, _quarantine(folder, Path(b.path))) for b in bad]
    return VerifySummary(str(folder), episodes, frames, size, tuple(bad), partials, repair)


def _check_episode(recording: Recording, path: Path) -> int:
    """The number of frames of a good episode.

    Raises:
        DataError: it is not good.
    """
    if path != recording.episode_path(int(path.stem)):
        raise DataError("the episode lies in the wrong folder, or has the wrong name", path, "move it")
    info = read_info(path)
    recording.check(info)
    untold = np.isnan(read_results(path)[1]).all(0)  # a variable that a game does not tell is NaN throughout
    for start in range(0, info.frames, FRAMES_AT_ONCE):
        reason = _fault(recording, read_episode(path, start, start + FRAMES_AT_ONCE), start, untold)
        if reason:
            raise DataError(reason, path, "gamengen data verify --repair moves it away")
    return info.frames


def _fault(recording: Recording, episode: Episode, start: int, untold: np.ndarray) -> str:
    action_set = recording.header.action_set
    buttons = episode.actions[:, : len(action_set.buttons)]
    wrong = ~np.isfinite(episode.actions).all(1) | (np.abs(episode.actions) > 1).any(1)
    wrong |= ((buttons != 0) & (buttons != 1)).any(1)
    if action_set.exclusive:
        wrong |= buttons.sum(1) != 1
    if wrong.any():
        first = int(wrong.argmax())
        return f"the action at frame {start + first} is none of its ActionSet: {episode.actions[first].tolist()}"
    if not np.isfinite(episode.rewards).all():
        return f"the reward at frame {start + int((~np.isfinite(episode.rewards)).argmax())} is not finite"
    not_finite = ~np.isfinite(episode.variables) & ~untold
    if not_finite.any():
        return f"a variable at frame {start + int(not_finite.any(1).argmax())} is not finite"
    black = episode.frames.max(axis=(1, 2, 3)) == 0
    if black.any() and recording.header.spec.startswith("doom/"):
        return f"frame {start + int(black.argmax())} is all black"
    return ""


def _quarantine(folder: Path, path: Path) -> str:
    """Move a bad episode out of the way; where to."""
    target = folder / QUARANTINE / path.name
    for count in range(1, 1000):
        if not target.exists():
            break
        target = folder / QUARANTINE / f"{path.stem}-{count}{path.suffix}"
    try:
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    except OSError as error:
        what = f"cannot move a bad episode ({(error.strerror or str(error)).lower()})"
        raise DataError(what, path, "see that you can write to the recording") from error
    return str(target)
