"""Episodes on disk, and the alignment law.

**The alignment law.** ``actions[t]`` is what is held while ``frames[t]`` is on screen and what
produces ``frames[t+1]``; ``rewards[t]`` is what that step earned. It is written once, in
:func:`play_episode`.

One HDF5 file holds one episode: ``frames`` (N, H, W, 3) u8 and ``actions`` (N, A) f32, ``rewards``
(N,) f32, ``variables`` (N, V) f32, with ``variable_names``, ``terminated``, ``truncated``, ``seed``
and ``agent`` as attributes. It is written under a temporary name, synced, then renamed: a file with
its final name is whole.

An episode is gathered in memory, compressed (about 30 kB a frame of Doom), and reaches the disk in one
plain write: the HDF5 library itself does not survive a full disk, it crashes the process.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import hdf5plugin
import numpy as np

from agents.agent import Agent
from agents.environments import Environment
from agents.errors import DataError, UnreadableError

FORMAT_VERSION = 1
CHUNK_FRAMES = 8
UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENOLCK)  # says nothing of what is in the file
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class EpisodeInfo:
    """What an episode file says of itself, without its arrays."""

    path: Path
    frames: int
    height: int
    width: int
    actions: int
    variable_names: tuple[str, ...]
    terminated: bool
    truncated: bool
    seed: int
    agent: str


@dataclass(frozen=True)
class Episode:
    """A whole episode in memory: frames (N, H, W, 3) u8, actions (N, A) f32, rewards (N,), variables (N, V)."""

    info: EpisodeInfo
    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    variables: np.ndarray


class EpisodeWriter:
    """Writes one episode step by step; use it as a context manager.

    Leaving the block without :meth:`finish`, or by an error, removes the partial file.

    Raises:
        DataError: the file cannot be written; nothing already recorded is harmed.
    """

    def __init__(
        self, path: Path, height: int, width: int, actions: int, variable_names: tuple[str, ...], seed: int, agent: str
    ) -> None:
        self.path = path
        self.frames = 0
        # The process is part of the name: two of them never write into one another's file.
        self._partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_SUFFIX}")
        self._shape = (height, width, 3)
        self._actions, self._variable_names = actions, variable_names
        self._attributes = {"seed": seed, "agent": agent}
        self._pending: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]] = []
        self._image = io.BytesIO()
        self._file: h5py.File | None = None

    def __enter__(self) -> EpisodeWriter:
        with self._disk_errors():
            self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            raise DataError("the episode is there already", self.path, "record into another folder")
        self._file = h5py.File(self._image, "w")
        compressed: Any = hdf5plugin.Zstd(clevel=3)
        self._file.create_dataset(
            "frames", (0, *self._shape), "u1", maxshape=(None, *self._shape),
            chunks=(CHUNK_FRAMES, *self._shape), compression=compressed,
        )  # fmt: skip
        for name, width in (("actions", self._actions), ("variables", len(self._variable_names))):
            self._file.create_dataset(name, (0, width), "f4", maxshape=(None, width or None), chunks=(256, width or 1))
        self._file.create_dataset("rewards", (0,), "f4", maxshape=(None,), chunks=(256,))
        return self

    def append(self, frame: np.ndarray, action: np.ndarray, reward: float, variables: dict[str, float]) -> None:
        """Add one step: the frame on screen, the action held during it, what it earned."""
        assert frame.shape == self._shape, (frame.shape, self._shape)
        assert frame.dtype == np.uint8, frame.dtype
        values = np.array([variables.get(name, np.nan) for name in self._variable_names], np.float32)
        self._pending.append((frame.copy(), np.array(action, np.float32), reward, values))
        self.frames += 1
        if len(self._pending) == CHUNK_FRAMES:
            self._flush()

    def finish(self, *, terminated: bool, truncated: bool) -> None:
        """Make the episode whole and give it its final name."""
        assert self._file is not None
        assert self.frames > 0, "an episode has at least one frame"
        self._flush()
        self._file.attrs.update(
            {
                "format_version": FORMAT_VERSION,
                "variable_names": list(self._variable_names),
                "terminated": terminated,
                "truncated": truncated,
                **self._attributes,
            }
        )
        self._close()
        with self._disk_errors():
            with self._partial.open("wb") as file:
                file.write(self._image.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            self._partial.rename(self.path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        with contextlib.suppress(OSError):
            self._partial.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _flush(self) -> None:
        if not self._pending:
            return
        assert self._file is not None
        start, stop = self.frames - len(self._pending), self.frames
        columns = zip(*self._pending, strict=True)
        for name, column in zip(("frames", "actions", "rewards", "variables"), columns, strict=True):
            dataset = self._file[name]
            dataset.resize(stop, axis=0)
            dataset[start:stop] = np.stack(column)
        self._pending.clear()

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = "free some space or choose another --out; finished episodes are safe"
            raise DataError(f"cannot write the episode ({_reason(error)})", self.path, remedy) from error


def play_episode(
    environment: Environment,
    agent: Agent,
    writer: EpisodeWriter,
    seed: int,
    stopped: Callable[[], bool] = lambda: False,
) -> bool:
    """Play one episode and write it, by the alignment law; whether it was played to its end.

    The frame of a terminal step is never written: the game has none. ``stopped`` is asked before each
    step; once it says yes the episode is given up.
    """
    agent.reset(seed)
    frame, info = environment.reset(seed=seed)
    ended = terminated = truncated = False
    while not ended:
        if stopped():
            return False
        action = agent.act(frame, info)
        next_frame, reward, terminated, truncated, next_info = environment.step(action)
        writer.append(frame, action, reward, info["variables"])
        frame, info = next_frame, next_info
        ended = terminated or truncated
    writer.finish(terminated=terminated, truncated=truncated)
    return True


def read_info(path: Path) -> EpisodeInfo:
    """Read and check what an episode says of itself.

    Raises:
        DataError: the file is missing, truncated, foreign or of another version.
    """
    with _open(path) as file:
        return _info(path, file)


def read_episode(path: Path, start: int = 0, stop: int | None = None) -> Episode:
    """Read steps ``start`` to ``stop`` of an episode, or all of it.

    Raises:
        DataError: the file is missing, truncated, foreign or of another version.
    """
    with _open(path) as file:
        info = _info(path, file)
        arrays = [np.asarray(file[name][start:stop]) for name in ("frames", "actions", "rewards", "variables")]
    return Episode(info, *arrays)


def read_actions(path: Path) -> np.ndarray:
    """Read the actions (N, A) of an episode, and no frame.

    Raises:
        DataError: the file is missing, truncated, foreign or of another version.
    """
    with _open(path) as file:
        _info(path, file)
        return np.asarray(file["actions"][:])


def read_results(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the rewards (N,) and variables (N, V) of an episode, and no frame.

    Raises:
        DataError: the file is missing, truncated, foreign or of another version.
    """
    with _open(path) as file:
        _info(path, file)
        return np.asarray(file["rewards"][:]), np.asarray(file["variables"][:])


@contextlib.contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    remedy = "delete this file, then record again into the same folder; gamengen data verify finds all such files"
    if not path.is_file():
        raise DataError("no such episode", path, "check the path")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError, AttributeError, TypeError, ValueError) as error:
        if _number(error) in UNREADABLE:
            remedy = "check its permissions and the disk, then run this again"
            raise UnreadableError(f"cannot read the episode ({_reason(error)})", path, remedy) from error
        raise DataError(f"the episode is damaged or truncated ({_reason(error)})", path, remedy) from error


def _info(path: Path, file: h5py.File) -> EpisodeInfo:
    version = file.attrs.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"the episode has format version {version}, not {FORMAT_VERSION}", path, "record it again")
    frames = file["frames"]
    lengths = {name: len(file[name]) for name in ("frames", "actions", "rewards", "variables")}
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise DataError(f"frames must be (N, H, W, 3) uint8, got {frames.shape}", path, "record it again")
    if len(set(lengths.values())) != 1 or not lengths["frames"]:
        raise DataError(f"the episode's arrays differ in length or are empty ({lengths})", path, "record it again")
    variable_names = tuple(str(name) for name in file.attrs["variable_names"])
    actions, rewards, variables = (file[name].shape for name in ("actions", "rewards", "variables"))
    if (len(actions), len(rewards), len(variables)) != (2, 1, 2) or variables[1] != len(variable_names):
        what = f"actions, rewards and variables have shapes {actions}, {rewards} and {variables}"
        raise DataError(what, path, "record it again")
    return EpisodeInfo(
        path,
        len(frames),
        frames.shape[1],
        frames.shape[2],
        actions[1],
        variable_names,
        bool(file.attrs["terminated"]),
        bool(file.attrs["truncated"]),
        int(file.attrs["seed"]),
        str(file.attrs["agent"]),
    )


def _reason(error: BaseException) -> str:
    """The system's own words where it has any."""
    number = _number(error)
    return os.strerror(number).lower() if number else str(error).strip().split("\n")[0][:120]


def _number(error: BaseException) -> int:
    """The system's number of the error, or 0; h5py hides it in a message of several lines."""
    found = re.findall(r"errno = (\d+)", str(error).strip().split("\n")[0]) or [0]
    return int(getattr(error, "errno", None) or found[0])
