"""Latent cache: every recorded frame encoded once, so that training never decodes a frame twice.

A cache is a folder with ``cache.json`` (the encoder's hash and the game) and one safetensors
file an episode, so that encoding can be stopped anywhere and go on.
"""

from __future__ import annotations

import hashlib
import json
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
    """

    latents: torch.Tensor
    actions: torch.Tensor
    lengths: tuple[int, ...]

    def to(self, device: torch.device) -> LatentEpisodes:
        """The same on ``device``."""
        return LatentEpisodes(self.latents.to(device), self.actions.to(device), self.lengths)


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
    header = {
        "format_version": FORMAT_VERSION,
        "spec": recording.header.spec,
        "encoder": weights_hash(autoencoder.encoder),
    }
    path = folder / "cache.json"
    if path.is_file():
        found = _read_header(path)
        if found.get("spec") != header["spec"]:
            raise DataError(f"the latent cache is of {found.get('spec')}", folder, "delete the folder")
        if found != header:
            raise DataError("the latent cache was made by another autoencoder", folder, "delete the folder")
    else:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, header)
        except OSError as error:
            raise DataError(f"cannot write the cache ({error.strerror})", folder, "choose another folder") from error
    infos = recording.episodes()
    _check_same_episodes(infos, folder)
    total, done = sum(info.frames for info in infos), 0
    with progress("encoding frames", total, "frames") as show:
        for info in infos:
            target = folder / f"{info.path.stem}.safetensors"
            if not target.is_file():
                _encode_episode(info.path, autoencoder, target)
            done += info.frames
            show(done, "")


def _encode_episode(path: Path, autoencoder: Autoencoder, target: Path) -> None:
    episode = read_episode(path)
    tensors = {
        "latents": encode_frames(autoencoder, episode.frames).contiguous(),
        "actions": torch.from_numpy(episode.actions),
    }
    partial = target.with_suffix(".partial")
    try:
        save_file(tensors, partial)
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write latents ({error})", target, "free some space, then run again") from error


def load_latents(folder: Path, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Read the whole cache into memory: (train, held out), split by episode.

    Raises:
        DataError: the cache is missing, damaged, or of another autoencoder.
    """
    path = folder / "cache.json"
    if not path.is_file():
        raise DataError("no latent cache here", folder, "encode the recording first")
    header = _read_header(path)
    if header.get("format_version") != FORMAT_VERSION or header.get("encoder") != weights_hash(autoencoder.encoder):
        raise DataError("the latent cache was made by another autoencoder", folder, "delete the folder, encode again")
    train, held_out = split_held_out(sorted(folder.glob("*.safetensors")))
    return _load(train), _load(held_out)


def _check_same_episodes(infos: list[EpisodeInfo], folder: Path) -> None:
    """See that what is encoded already is of these episodes, and not of another recording."""
    frames = {info.path.stem: info.frames for info in infos}
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "pt") as file:
                length = file.get_slice("actions").get_shape()[0]
        except (OSError, SafetensorError) as error:
            raise DataError(f"the latents are damaged ({error})", path, "delete the file, encode again") from error
        if frames.get(path.stem) != length:
            raise DataError("the latent cache is of another recording", path, "delete the folder, encode again")


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"the latent cache is damaged ({error})", path, "delete the folder, encode again") from error
    if not isinstance(header, dict):
        raise DataError("the latent cache is damaged", path, "delete the folder, encode again")
    return header


def _load(paths: list[Path]) -> LatentEpisodes:
    latents, actions = [], []
    for path in paths:
        try:
            tensors = load_file(path)
            latents.append(tensors["latents"])
            actions.append(tensors["actions"])
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"the latents are damaged ({error})", path, "delete the file, encode again") from error
    return LatentEpisodes(torch.cat(latents), torch.cat(actions), tuple(len(part) for part in latents))


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
