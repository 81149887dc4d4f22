"""Quality where it is hard: on what is unusual in a picture, and at the moments when something happens.

A monster fills a hundredth of a frame, so a mean over frames says nothing of it. What is unusual is found in the real
frames alone, by :class:`gamengen.rarity.Rarity` on the colours of blocks, so that it is the same for every model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from gamengen.evaluation.similarity import HUD_TOP
from gamengen.evaluation.subject import Subject
from gamengen.rarity import Rarity
from recorder.episodes import EpisodeInfo, read_episode

BLOCK = 16  # pixels
CHUNK = 64  # frames at once
LEARN_FRAMES = 1200  # spread over the episodes
LEAST_POSITIONS = 2  # of a latent, of 240 to 300: a monster that is far away
# What a game variable says of a moment when it changes this way: the events that are told apart.
WEAPON = "SELECTED_WEAPON"
EVENTS = {"shot": ("SELECTED_WEAPON_AMMO", -1), "hurt": ("HEALTH", -1), "kill": ("KILLCOUNT", 1)}


class RareBlocks:
    """Finds the blocks of real frames whose colours are unusual where they stand."""

    def __init__(self, frames: np.ndarray) -> None:
        features = block_features(frames)
        self._scale = features.std(dim=(0, 2, 3), keepdim=True).clamp(min=1e-6)
        self._rarity = Rarity(features / self._scale)

    @classmethod
    def learn(cls, episodes: Sequence[EpisodeInfo]) -> RareBlocks:
        """From frames evenly spread over ``episodes``."""
        return cls(spread_frames(episodes))

    def mask(self, frame: np.ndarray) -> np.ndarray:
        """Which pixels of ``frame`` (H, W, 3) uint8 lie in unusual blocks, (H, W) bool."""
        rare = self._rarity.rare(block_features(frame[None]) / self._scale)[0].numpy()
        return np.kron(rare, np.ones((BLOCK, BLOCK), bool))

    def shares(self, frames: np.ndarray) -> np.ndarray:
        """The share of each frame (N, H, W, 3) uint8 that lies in unusual blocks, (N,)."""
        found = [
            self._rarity.rare(block_features(part) / self._scale).float().mean(dim=(1, 2)) for part in _chunks(frames)
        ]
        return torch.cat(found).numpy() if found else np.zeros(0, np.float32)


class RareSights:
    """Tells of real and of generated frames alike whether something unusual, such as a monster, is in view.

    By the latents that the checkpoint's encoder makes of them, without the score bar of a Doom picture. Colours of
    blocks are too coarse for that: a blurred floor is unusual to them, and a far monster is not.

    Args:
        subject: the checkpoint.
        frames: real ones (N, H, W, 3) uint8, to learn from what is usual.
    """

    def __init__(self, subject: Subject, frames: np.ndarray) -> None:
        self._subject = subject
        self._rarity = Rarity(torch.cat([subject.encode(part) for part in _chunks(frames)]))

    @classmethod
    def learn(cls, subject: Subject, episodes: Sequence[EpisodeInfo]) -> RareSights:
        """From frames evenly spread over ``episodes``."""
        return cls(subject, spread_frames(episodes))

    def seen(self, frames: np.ndarray) -> np.ndarray:
        """Whether something unusual is in view in each of frames (N, H, W, 3) uint8, (N,) bool."""
        found = [self._rarity.rare(self._subject.encode(part)).cpu() for part in _chunks(frames)]
        if not found:
            return np.zeros(0, bool)
        rare = torch.cat(found)
        rows = int(HUD_TOP * rare.shape[1]) if self._subject.config.spec.startswith("doom/") else rare.shape[1]
        return (rare[:, :rows].sum(dim=(1, 2)) >= LEAST_POSITIONS).numpy()


def spread_frames(episodes: Sequence[EpisodeInfo]) -> np.ndarray:
    """At most ``LEARN_FRAMES`` frames and a few, evenly spread over ``episodes``."""
    stride = max(1, -(-sum(info.frames for info in episodes) // LEARN_FRAMES))
    return np.concatenate([read_episode(info.path).frames[::stride] for info in episodes])


def _chunks(frames: np.ndarray) -> list[np.ndarray]:
    return [frames[first : first + CHUNK] for first in range(0, len(frames), CHUNK)]


def block_features(frames: np.ndarray) -> torch.Tensor:
    """The mean colour and its spread in each block of frames (N, H, W, 3) uint8, (N, 6, H/16, W/16)."""
    height, width = frames.shape[1:3]
    found = []
    for chunk in _chunks(frames):
        part = chunk.astype(np.float32) / 255
        blocks = part.reshape(len(part), height // BLOCK, BLOCK, width // BLOCK, BLOCK, 3)
        found.append(np.concatenate([blocks.mean(axis=(2, 4)), blocks.std(axis=(2, 4))], axis=-1))
    return torch.from_numpy(np.concatenate(found)).permute(0, 3, 1, 2)


def events_at(variables: np.ndarray, names: tuple[str, ...]) -> dict[str, bool]:
    """Which events show in the last of two or more frames with ``variables`` (N, V); of a game without them none."""
    found = {}
    for event, (name, sign) in EVENTS.items():
        if name in names:
            before, after = variables[-2:, names.index(name)]
            found[event] = bool(sign * (after - before) > 0)
    if "shot" in found and WEAPON in names:  # another weapon has other ammunition
        found["shot"] &= bool(np.ptp(variables[-2:, names.index(WEAPON)]) == 0)
    return found
