"""What geometry is learned from, and frames moved by what it has learned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from gamengen.geometry import HISTORY, Mover, motions_between
from gamengen.latents import LatentEpisodes, fill_cache, load_cache, weights_hash
from gamengen.training import autocast
from recorder.episodes import read_episode
from recorder.recording import Recording
from recorder.replay import Replay

BATCH = 16
MADE_BY = {"views": "1"}


@dataclass(frozen=True)
class Scenes:
    """Episodes, and how far things were in each of their frames.

    Args:
        episodes: with the motions.
        distances: (N, H/4, W/4) float16, in units of the map; 0 where something stands on the screen itself.
    """

    episodes: LatentEpisodes
    distances: torch.Tensor


def see_recording(recording: Recording, folder: Path) -> None:
    """Play every episode once more whose distances and motions are not in the cache yet.

    Raises:
        DataError: the game tells no distances, it goes another way now, or the cache cannot be written.
    """
    with Replay(recording.header) as replay:

        def see(path: Path) -> dict[str, torch.Tensor]:
            views = replay(path)
            motions = motions_between(torch.from_numpy(views.cameras))
            return {"distances": torch.from_numpy(views.distances), "motions": torch.cat([motions, motions[:1] * 0])}

        fill_cache(recording, folder, MADE_BY, "seeing how far things are", see)


def load_motions(folder: Path, latents: tuple[LatentEpisodes, LatentEpisodes]) -> tuple[LatentEpisodes, LatentEpisodes]:
    """``latents`` (train, held out) with the motions of the camera.

    Raises:
        DataError: the cache is missing or damaged.
    """
    train, held_out = (torch.cat(part["motions"]) for part in load_cache(folder, MADE_BY, ("motions",)))
    return replace(latents[0], motions=train), replace(latents[1], motions=held_out)


def load_scenes(folder: Path, latents: tuple[LatentEpisodes, LatentEpisodes]) -> tuple[Scenes, Scenes]:
    """``latents`` (train, held out) with motions and distances.

    Raises:
        DataError: the cache is missing or damaged.
    """
    train, held_out = (torch.cat(part["distances"]) for part in load_cache(folder, MADE_BY, ("distances",)))
    moving = load_motions(folder, latents)
    return Scenes(moving[0], train), Scenes(moving[1], held_out)


def move_recording(recording: Recording, mover: Mover, caches: Path, folder: Path) -> None:
    """Move every frame to the next as the camera really moved, and encode it, where that is not done yet.

    Args:
        recording: whose frames.
        mover: the geometry and the encoder.
        caches: the folder with the caches of latents and views.
        folder: of the cache to fill.

    Raises:
        DataError: the cache is of other networks, or cannot be written.
    """
    seen = mover.geometry.config.seen

    @torch.inference_mode()
    def move(path: Path) -> dict[str, torch.Tensor]:
        episode = read_episode(path)
        latents = load_file(caches / "latents" / f"{path.stem}.safetensors")["latents"]
        motions = load_file(caches / "views" / f"{path.stem}.safetensors")["motions"]
        device = next(mover.geometry.parameters()).device
        before = torch.cat([motions.new_zeros(HISTORY, motions.shape[1]), motions])
        actions = torch.from_numpy(episode.actions)
        moved = []
        with autocast(device):
            for part in torch.arange(len(latents)).split(BATCH):
                past = latents[(part[:, None] - torch.arange(seen - 1, -1, -1)).clamp(min=0)]
                history = before[part[:, None] + torch.arange(HISTORY)]
                given = (
                    past.float(), actions[part, None], torch.from_numpy(episode.frames)[part], history, motions[part],
                )  # fmt: skip
                context, _, _ = mover(*(tensor.to(device) for tensor in given))
                moved.append(context[:, -1].half().cpu())
        return {"moved": torch.cat(moved)}

    fill_cache(recording, folder, _mover_hashes(mover), "moving frames", move)


def load_moved(
    folder: Path, mover: Mover, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> tuple[LatentEpisodes, LatentEpisodes]:
    """``latents`` (train, held out) with those of the frames moved.

    Raises:
        DataError: the cache is missing, damaged, or of other networks.
    """
    train, held_out = (torch.cat(part["moved"]) for part in load_cache(folder, _mover_hashes(mover), ("moved",)))
    return replace(latents[0], moved=train), replace(latents[1], moved=held_out)


def _mover_hashes(mover: Mover) -> dict[str, str]:
    return {"geometry": weights_hash(mover.geometry.distance), "encoder": weights_hash(mover.autoencoder.encoder)}
