"""A recording: a folder with ``recording.json`` and one file an episode."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from agents.actions import ActionSet
from agents.errors import ActionError, DataError
from recorder.episodes import PARTIAL_SUFFIX, EpisodeInfo, read_info

FORMAT_VERSION = 1
EPISODES_PER_FOLDER = 1000
HELD_OUT_EVERY = 10
PACKAGES = ("numpy", "gymnasium", "h5py", "hdf5plugin", "vizdoom", "stable-baselines3")
FREEDOOM_NOTICE = (
    "Pictures of Doom games show art of the Freedoom project, Copyright (c) 2001-2024 Contributors to the "
    "Freedoom project, BSD-3-Clause; see THIRD_PARTY_NOTICES.md."
)


@dataclass(frozen=True)
class RecordingHeader:
    """What ``recording.json`` says. ``agents`` maps each agent used to a hash of its weights, or ""."""

    spec: str
    action_set: ActionSet
    height: int
    width: int
    frame_skip: int
    fps: float
    variable_names: tuple[str, ...]
    agents: dict[str, str]
    seed: int
    packages: dict[str, str]
    notice: str = ""
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for name in ("height", "width", "frame_skip"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}")
        if not isinstance(self.fps, (int, float)) or not 0 < self.fps < float("inf"):
            raise ValueError(f"fps is {self.fps!r}")
        if type(self.seed) is not int or not isinstance(self.agents, dict) or not isinstance(self.spec, str):
            raise ValueError("spec, seed or agents have the wrong type")

    @classmethod
    def of(cls, environment: Any, height: int, width: int, agents: dict[str, str], seed: int) -> RecordingHeader:
        """The header of a recording of ``environment``, played by these agents."""
        spec = environment.spec_name
        return cls(
            spec, environment.action_set, height, width, environment.frame_skip, environment.fps,
            environment.variable_names, agents, seed, package_versions(),
            FREEDOOM_NOTICE if spec.startswith("doom/") else "",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {**asdict(self), "action_set": self.action_set.to_json()}


class Recording:
    """An existing recording folder."""

    def __init__(self, folder: Path, header: RecordingHeader) -> None:
        self.folder, self.header = folder, header

    def __repr__(self) -> str:
        return f"Recording({str(self.folder)!r}, {self.header.spec}, {len(self.episode_paths())} episodes)"

    @staticmethod
    def exists(folder: Path) -> bool:
        """Whether ``folder`` holds a recording, whole or damaged."""
        try:
            return (folder / "recording.json").is_file()
        except OSError:
            return False

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Open a recording.

        Raises:
            DataError: there is none, or its header is damaged or of another version.
        """
        path = folder / "recording.json"
        if not cls.exists(folder):
            raise DataError("no recording here", folder, "make one with gamengen record SPEC --out DIR")
        try:
            data = json.loads(path.read_text())
            version = data.pop("format_version", None)
            if version != FORMAT_VERSION:
                what = f"the recording has format version {version}, not {FORMAT_VERSION}"
                raise DataError(what, path, "record anew, or use the release that made it")
            data["action_set"] = ActionSet.from_json(data["action_set"])
            data["variable_names"] = tuple(data["variable_names"])
            return cls(folder, RecordingHeader(**data))
        except OSError as error:
            raise DataError(f"cannot read the recording ({error.strerror})", path, "check its permissions") from error
        except (ValueError, KeyError, TypeError, AttributeError, ActionError) as error:
            raise DataError(f"recording.json is damaged ({error})", path, "restore it or record anew") from error

    @classmethod
    def create_or_resume(cls, folder: Path, header: RecordingHeader) -> Recording:
        """Start a recording in ``folder``, or go on with the one that is there.

        Raises:
            DataError: the folder holds something else, or a recording of another game, ActionSet or size; or another
                process is recording into it.
        """
        try:
            there = cls.exists(folder)
            if not there and folder.exists() and (not folder.is_dir() or any(map(_is_foreign, folder.iterdir()))):
                raise DataError("the folder exists and is not a recording", folder, "choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            with cls(folder, header).lock():  # what another process has begun to record into stays as it is
                found = cls.open(folder) if there else None
                if found is not None and found.episode_paths():
                    found.check_same_game(header)
                    header = replace(found.header, agents={**found.header.agents, **header.agents})
                write_json(folder / "recording.json", header.to_json())
        except OSError as error:
            what = f"cannot write the recording ({(error.strerror or str(error)).lower()})"
            raise DataError(what, folder, "choose a folder you can write to, with space") from error
        return cls(folder, header)

    def check_same_game(self, header: RecordingHeader) -> None:
        """See that what ``header`` describes can be recorded into this folder.

        Raises:
            DataError: the spec, ActionSet, frame size or frame_skip differ.
        """
        for name in ("spec", "action_set", "height", "width", "frame_skip"):
            old, new = getattr(self.header, name), getattr(header, name)
            if old != new:
                what = f"the folder holds a recording whose {name} is {_plain(old)}, not {_plain(new)}"
                raise DataError(what, self.folder, "choose another --out")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one who writes into this recording; the system frees it when the process ends.

        What a killed recorder left half-written is removed.

        Raises:
            DataError: another process is recording into this folder.
        """
        descriptor = -1
        if sys.platform != "win32":
            import fcntl

            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                what = "another process is recording into this folder"
                raise DataError(what, self.folder, "wait for it, or choose another --out") from error
            except OSError:
                pass  # some network file systems have no locks
        try:
            self.remove_partials()
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def remove_partials(self) -> None:
        """Remove episodes that nobody will finish; only for who holds the lock."""
        for partial in self.folder.glob(f"episodes/*/*{PARTIAL_SUFFIX}"):
            with contextlib.suppress(OSError):
                partial.unlink()

    def episode_path(self, number: int) -> Path:
        """Where episode ``number`` lies."""
        return self.folder / "episodes" / f"{number // EPISODES_PER_FOLDER:04d}" / f"{number:06d}.h5"

    def episode_paths(self) -> list[Path]:
        """Whole episodes, in order of their number."""
        paths = (path for path in self.folder.glob("episodes/*/*.h5") if path.stem.isdecimal())
        return sorted(paths, key=lambda path: int(path.stem))

    def episodes(self) -> list[EpisodeInfo]:
        """What every episode says of itself.

        Raises:
            DataError: an episode is damaged or does not fit this recording.
        """
        infos = [read_info(path) for path in self.episode_paths()]
        if not infos:
            raise DataError("the recording has no episodes", self.folder, "record some frames into it")
        for info in infos:
            self.check(info)
        return infos

    def check(self, info: EpisodeInfo) -> None:
        """See that an episode fits the header.

        Raises:
            DataError: its frame size, number of actions or variables differ.
        """
        header = self.header
        if info.variable_names != header.variable_names:
            what = "the episode's game variables are not those of the recording"
            raise DataError(what, info.path, "remove the file: it belongs to another recording")
        if (info.height, info.width, info.actions) != (header.height, header.width, header.action_set.size):
            what = (
                f"the episode has frames of {info.width}x{info.height} and {info.actions} actions, the recording "
                f"{header.width}x{header.height} and {header.action_set.size}"
            )
            raise DataError(what, info.path, "remove the file: it belongs to another recording")


def split_held_out(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Split episodes into (train, held out) by their number, so that the split never changes.

    Raises:
        DataError: there are not enough episodes for both.
    """
    train: list[Path] = []
    held_out: list[Path] = []
    for path in paths:
        (held_out if is_held_out(path) else train).append(path)
    if not train or not held_out:
        where = (train + held_out)[0].parent if train or held_out else "the recording"
        raise DataError("too few episodes to hold some out", where, "record more frames: two episodes at least")
    return train, held_out


def is_held_out(path: Path) -> bool:
    """Whether the episode at ``path`` is held out of training."""
    return int(path.stem) % HELD_OUT_EVERY == 0


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a recording, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hash_file(path: str | Path) -> str:
    """16 hexadecimal digits of the SHA-256 of a file; "" where there is none, as for an agent that is no file.

    Raises:
        DataError: it cannot be read.
    """
    path = Path(path)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
    except OSError as error:
        raise DataError(f"cannot read it ({error.strerror})", path, "check the file") from error


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        with partial.open("w") as file:
            json.dump(data, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _is_foreign(path: Path) -> bool:
    """Whether it is something that a killed recorder cannot have left."""
    return not path.name.endswith(PARTIAL_SUFFIX)


def _plain(value: Any) -> str:
    return ", ".join(value.names) if isinstance(value, ActionSet) else str(value)
