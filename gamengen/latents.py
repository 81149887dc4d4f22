"""Caches: what training needs of every recorded frame, made once: latents above all, so that no frame is encoded twice.

A cache is a folder with ``cache.json`` (what it was made by, and of which game) and one safetensors file an episode,
so that it can be stopped anywhere and go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from agents.errors import DataError
from gamengen.autoencoder import Autoencoder
from gamengen.geometry import HISTORY
from gamengen.tally import TELLING, Tally
from gamengen.train_autoencoder import encode_frames
from recorder.episodes import EpisodeInfo, read_episode
from recorder.progress import progress
from recorder.recording import Recording, split_held_out, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class LatentEpisodes:
    """Episodes laid end to end.

    Args:
        latents: (N, C, h, w) float16.
        actions: (N, A) float32.
        lengths: frames of each episode, in order; they sum to N.
        motions: of the camera from each frame to the next (N, 4) float32, where they are known; 0 from the last.
        moved: latents of each frame moved to the next (N, C, h, w) float16, where that was done.
        counts: what the score bar counts (N, L) float32, and ``tally``, by which a denoiser is told, where it is.
        lost: whether each episode ended as the tally ends games, by a change that left nothing of its vital level.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    lengths: tuple[int, ...]
    motions: torch.Tensor | None = None
    moved: torch.Tensor | None = None
    counts: torch.Tensor | None = None
    tally: Tally | None = None
    lost: tuple[bool, ...] = ()

    def to(self, device: torch.device) -> LatentEpisodes:
        """The same on ``device``."""
        motions, moved, counts = (
            part.to(device) if part is not None else None for part in (self.motions, self.moved, self.counts)
        )
        latents, actions = self.latents.to(device), self.actions.to(device)
        return LatentEpisodes(latents, actions, self.lengths, motions, moved, counts, self.tally, self.lost)

    def history(self, frames: torch.Tensor) -> torch.Tensor:
        """Counts of ``frames`` (B,) and those before them (B, TELLING + 1, L), none of the episode before."""
        assert self.counts is not None
        index = torch.maximum(frames.cpu()[:, None] + torch.arange(-TELLING, 1), self.begins(frames))
        return self.counts[index.to(self.counts.device)]

    def closes(self, frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether ``frames`` (B,) are the last of their episodes, and whether those were lost, (B,) bool each."""
        ends = torch.tensor(self.lengths).cumsum(0)
        episode = torch.searchsorted(ends, frames.cpu().contiguous(), right=True)
        lost = torch.tensor(self.lost or (False,) * len(self.lengths))
        return frames.cpu() == ends[episode] - 1, lost[episode]

    def moving(self, frames: torch.Tensor) -> torch.Tensor:
        """The motions by which ``frames`` (B,) and those before them came (B, HISTORY, 4); 0 before an episode."""
        assert self.motions is not None
        index = frames.cpu()[:, None] + torch.arange(-HISTORY, 0)
        known = (index >= self.begins(frames))[..., None].to(self.motions.device)
        return self.motions[index.clamp(min=0).to(self.motions.device)] * known

    def begins(self, frames: torch.Tensor) -> torch.Tensor:
        """First frames of the episodes of ``frames`` (B,), as (B, 1)."""
        first = torch.tensor([0, *self.lengths[:-1]]).cumsum(0)
        return first[torch.searchsorted(first, frames.cpu().contiguous(), right=True) - 1][:, None]

    def tell(self, frames: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        """``past`` (B, K, C, h, w), told what the score bar of ``frames`` (B,) shows, where a tally tells it."""
        if self.tally is None:
            return past
        device = self.tally.pictures.device
        return self.tally.tell(past.to(device), self.history(frames).to(device))


def weights_hash(model: nn.Module) -> str:
    """A hash of all weights, rounded to float16."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def encode_recording(recording: Recording, autoencoder: Autoencoder, folder: Path) -> None:
    """Encode every episode that is not in the cache yet.

    Raises:
        DataError: the cache was made by another autoencoder, or cannot be written.
    """

    def encode(path: Path) -> dict[str, torch.Tensor]:
        episode = read_episode(path)
        latents = encode_frames(autoencoder, episode.frames).contiguous()
        return {"latents": latents, "actions": torch.from_numpy(episode.actions)}

    maker = {"encoder": weights_hash(autoencoder.encoder)}
    fill_cache(recording, folder, maker, "encoding frames", encode)


def fill_cache(
    recording: Recording,
    folder: Path,
    maker: dict[str, str],
    text: str,
    make: Callable[[Path], dict[str, torch.Tensor]],
) -> None:
    """Make what is not in the cache yet.

    Args:
        recording: whose episodes.
        folder: of the cache.
        maker: hashes of what makes it, by name.
        text: for the progress bar.
        make: an episode's tensors, by name, each of as many rows as it has frames.

    Raises:
        DataError: the cache was made by something else, or cannot be written.
    """
    header = {"format_version": FORMAT_VERSION, "spec": recording.header.spec, **maker}
    path = folder / "cache.json"
    if path.is_file():
        found = _read_header(path)
        if found.get("spec") != header["spec"]:
            raise DataError(f"the {folder.name} here are of {found.get('spec')}", folder, "delete the folder")
        _check_maker(found, maker, folder)
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, header)
        except OSError as error:
            raise DataError(f"cannot make the cache ({error.strerror})", folder, "choose another folder") from error
    infos = recording.episodes()
    _check_same_episodes(infos, folder)
    total, done = sum(info.frames for info in infos), 0
    with progress(text, total, "frames") as show:
        for info in infos:
            target = folder / f"{info.path.stem}.safetensors"
            if not target.is_file():
                _write_tensors(make(info.path), target)
            done += info.frames
            show(done, "")


def _write_tensors(tensors: dict[str, torch.Tensor], target: Path) -> None:
    partial = target.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write the cache ({error})", target, "free some space, then run again") from error


def load_latents(folder: Path, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Read the whole cache of latents into memory: (train, held out), split by episode.

    Raises:
        DataError: the cache is missing, damaged, or of another autoencoder.
    """
    train, held_out = (
        LatentEpisodes(torch.cat(part["latents"]), torch.cat(part["actions"]), tuple(map(len, part["latents"])))
        for part in load_cache(folder, {"encoder": weights_hash(autoencoder.encoder)}, ("latents", "actions"))
    )
    return train, held_out


def load_cache(folder: Path, maker: dict[str, str], names: tuple[str, ...]) -> list[dict[str, list[torch.Tensor]]]:
    """The tensors called ``names`` of each episode, as lists: of the episodes to train on, and of those held out.

    Raises:
        DataError: the cache is missing, damaged, or was not made by ``maker``.
    """
    path = folder / "cache.json"
    if not path.is_file():
        raise DataError(f"no {folder.name} here", folder, "encode the recording first")
    _check_maker(_read_header(path), maker, folder)
    parts = []
    for paths in split_held_out(sorted(folder.glob("*.safetensors"))):
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for path in paths:
            try:
                tensors = load_file(path)
                for name in names:
                    found[name].append(tensors[name])
            except (OSError, SafetensorError, KeyError) as error:
                raise DataError(f"it is damaged ({error})", path, "delete the file, encode again") from error
        parts.append(found)
    return parts


def _check_maker(header: dict[str, Any], maker: dict[str, str], folder: Path) -> None:
    for name, value in {"format_version": FORMAT_VERSION, **maker}.items():
        if header.get(name) != value:
            what = f"the {folder.name} here were made by another {'program' if name == 'format_version' else name}"
            raise DataError(what, folder, "delete the folder, then run again")


def _check_same_episodes(infos: list[EpisodeInfo], folder: Path) -> None:
    """See that what is encoded already is of these episodes, and not of another recording."""
    frames = {info.path.stem: info.frames for info in infos}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                length = file.get_slice(next(iter(file.keys()))).get_shape()[0]
        except (OSError, SafetensorError) as error:
            raise DataError(f"it is damaged ({error})", path, "delete the file, then run again") from error
        if frames.get(path.stem) != length:
            what = f"the {folder.name} here are of another recording"
            raise DataError(what, path, "delete the folder, then run again")


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"the cache is damaged ({error})", path, "delete the folder, then run again") from error
    if not isinstance(header, dict):
        raise DataError("the cache is damaged", path, "delete the folder, then run again")
    return header


def window_starts(lengths: tuple[int, ...], window: int) -> np.ndarray:
    """First frames of all windows of ``window`` frames; none crosses an episode.

    Raises:
        DataError: every episode is shorter than a window.
    """
    first = np.cumsum([0, *lengths[:-1]])
    spans = [start + np.arange(max(0, length - window + 1)) for start, length in zip(first, lengths, strict=True)]
    starts = np.concatenate(spans)
    if not len(starts):
        what = f"no episode has the {window} frames that a training window takes"
        raise DataError(what, f"longest: {max(lengths)}", "record longer episodes")
    return starts


def gather_windows(episodes: LatentEpisodes, starts: np.ndarray, window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows at ``starts``: latents (B, window, C, h, w) float32 and actions (B, window, A)."""
    index = torch.from_numpy(starts[:, None] + np.arange(window)).to(episodes.latents.device)
    return episodes.latents[index].float(), episodes.actions[index]


def gather_steps(
    episodes: LatentEpisodes, starts: np.ndarray, context: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a denoiser learns from at ``starts``.

    Returns:
        Contexts (B, K, C, h, w), float32, with one latent more each where the moved ones are known and where the score
        is told; actions (B, K, A); the next latents (B, C, h, w).
    """
    latents, actions = gather_windows(episodes, starts, context + 1)
    past = latents[:, :-1]
    if episodes.moved is not None:
        last = torch.from_numpy(starts + context - 1).to(episodes.moved.device)
        past = torch.cat([past, episodes.moved[last].float()[:, None]], dim=1)
    past = episodes.tell(torch.from_numpy(starts + context), past)
    return past, actions[:, :-1], latents[:, -1]
