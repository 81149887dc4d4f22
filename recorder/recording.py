"""A recording: a folder with ``recording.json`` and one file an episode."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
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

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {**asdict(self), "action_set": self.action_set.to_json()}


class Recording:
    """An existing recording folder."""

    def __init__(self, folder: Path, header: RecordingHeader) -> None:
        self.folder, self.header = folder, header

    def __repr__(self) -> str:
        return f"Recording({str(self.folder)!r}, {self.header.spec}, {len(self.episode_paths())} episodes)"

    @classmethod
    def open(cls, folder: Path) -> Recording:
        """Open a recording.

        Raises:
            DataError: there is none, or its header is damaged or of another version.
        """
        path = folder / "recording.json"
        if not path.is_file():
            raise DataError("no recording here", folder, "make one with gamengen record SPEC --out DIR")
        try:
            data = json.loads(path.read_text())
            version = data.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise DataError(f"the recording has format version {version}, not {FORMAT_VERSION}", path, "record anew")
            data["action_set"] = ActionSet.from_json(data["action_set"])
            data["variable_names"] = tuple(data["variable_names"])
            return cls(folder, RecordingHeader(**data))
        except (ValueError, KeyError, TypeError, AttributeError, ActionError) as error:
            raise DataError(f"recording.json is damaged ({error})", path, "restore it or record anew") from error

    @classmethod
    def create_or_resume(cls, folder: Path, header: RecordingHeader) -> Recording:
        """Start a recording in ``folder``, or go on with the one that is there.

        Raises:
            DataError: the folder holds something else, or a recording of another game, ActionSet or size.
        """
        if (folder / "recording.json").is_file():
            found = cls.open(folder)
            for name in ("spec", "action_set", "height", "width", "frame_skip"):
                old, new = getattr(found.header, name), getattr(header, name)
                if old != new:
                    what = f"the folder holds a recording whose {name} is {_plain(old)}, not {_plain(new)}"
                    raise DataError(what, folder, "choose another --out")
            header = replace(found.header, agents={**found.header.agents, **header.agents})
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise DataError("the folder exists and is not a recording", folder, "choose another --out")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "recording.json", header.to_json())
            for partial in folder.glob(f"episodes/*/*{PARTIAL_SUFFIX}"):
                partial.unlink()
        except OSError as error:
            what = f"cannot write the recording ({error.strerror})"
            raise DataError(what, folder, "choose a folder you can write to") from error
        return cls(folder, header)

    def episode_path(self, number: int) -> Path:
        """Where episode ``number`` lies."""
        return self.folder / "episodes" / f"{number // EPISODES_PER_FOLDER:04d}" / f"{number:06d}.h5"

    def episode_paths(self) -> list[Path]:
        """Whole episodes, in order of their number."""
        return sorted(self.folder.glob("episodes/*/*.h5"))

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
            DataError: its frame size or its number of actions differs.
        """
        header = self.header
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
    train, held_out = [], []
    for path in paths:
        (held_out if int(path.stem) % HELD_OUT_EVERY == 0 else train).append(path)
    if not train or not held_out:
        where = (train + held_out)[0].parent if train or held_out else "the recording"
        raise DataError("too few episodes to hold some out", where, "record more frames: two episodes at least")
    return train, held_out


def package_versions() -> dict[str, str]:
    """Versions of the packages that shape a recording, where installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with partial.open("w") as file:
        json.dump(data, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _plain(value: Any) -> str:
    return ", ".join(value.names) if isinstance(value, ActionSet) else str(value)
