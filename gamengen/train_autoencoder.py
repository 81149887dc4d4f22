"""Training an autoencoder on random crops of recorded frames."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gamengen.autoencoder import FACTOR, Autoencoder, pixels_of
from gamengen.devices import place
from gamengen.processes import check_batch, share
from gamengen.training import Task, autocast, step_generator
from recorder.episodes import read_episode
from recorder.progress import progress
from recorder.recording import Recording, split_held_out

POOL_FRAMES = 12_000  # 2.8 GB at 320x240
HELD_OUT_FRAMES = 64
SQUARE_WEIGHT = 5.0  # of the squared error, beside the absolute one
LATENT_NOISE = 0.1  # at most, on the decoder's input in training
CROP = (128, 160)  # height and width in pixels


@dataclass(frozen=True)
class FramePool:
    """Frames held in memory: ``train`` and ``held_out``, (N, H, W, 3) uint8."""

    train: np.ndarray
    held_out: np.ndarray


def load_frame_pool(recording: Recording, limit: int = POOL_FRAMES) -> FramePool:
    """Read evenly spaced frames of every episode, at most about ``limit`` of them."""
    infos = recording.episodes()
    train, held_out = split_held_out([info.path for info in infos])
    frames = {info.path: info.frames for info in infos}
    pools = []
    for paths, most in ((train, limit), (held_out, HELD_OUT_FRAMES)):
        stride = max(1, -(-sum(frames[path] for path in paths) // most))
        ends = np.cumsum([len(range(done % stride, frames[path], stride)) for done, path in enumerate(paths)])
        # Filled in place: the pool is gigabytes, and episodes kept beside it would be several times that.
        pool = np.empty((ends[-1], recording.header.height, recording.header.width, 3), np.uint8)
        with progress("reading frames", len(paths), "episodes") as show:
            for done, path in enumerate(paths):
                picked = read_episode(path).frames[done % stride :: stride]
                pool[ends[done] - len(picked) : ends[done]] = picked
                show(done + 1, "")
        pools.append(pool)
    return FramePool(*pools)


class AutoencoderTask(Task):
    """Reconstruct random crops; see :class:`gamengen.training.Task`."""

    name = "autoencoder"

    def __init__(
        self, model: Autoencoder, pool: FramePool, seed: int, batch: int = 16, crop: tuple[int, int] = CROP
    ) -> None:
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self._autoencoder, self._pool, self._seed, self._batch = model, pool, seed, batch
        check_batch(batch)
        height, width = pool.train.shape[1:3]
        self._crop = (min(crop[0], height), min(crop[1], width))

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Absolute plus weighted squared error of the batch's crops."""
        pixels = share(self.draw(step))
        generator = step_generator(self._seed, step, self._device)
        latents = self._autoencoder.encode(pixels)
        shape = (self._batch, *latents.shape[1:])
        scale = LATENT_NOISE * share(torch.rand(self._batch, 1, 1, 1, generator=generator, device=self._device))
        noise = share(torch.randn(shape, generator=generator, device=self._device))
        return reconstruction_loss(self._autoencoder.decode(latents + scale * noise), pixels)

    def draw(self, step: int) -> torch.Tensor:
        """Pixels (B, 3, H, W) of random crops."""
        rng = np.random.default_rng([self._seed, step])
        return pixels_of(torch.from_numpy(self._crops(rng)).to(self._device))

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out PSNR, and originals above reconstructions."""
        frames = torch.from_numpy(self._pool.held_out)
        rebuilt = torch.cat(
            [self._autoencoder.decode_frames(self._autoencoder.encode(pixels_of(part.to(self._device)))).cpu()
             for part in frames.split(8)]
        )  # fmt: skip
        psnr = frame_psnr(frames, rebuilt)
        picks = np.linspace(0, len(frames) - 1, 6).astype(int)
        rows = [np.concatenate(list(part[picks].numpy()), axis=1) for part in (frames, rebuilt)]
        return {"psnr": float(psnr.mean())}, {"original_above_reconstruction": np.concatenate(rows)}

    def _crops(self, rng: np.random.Generator) -> np.ndarray:
        frames = self._pool.train
        crops = []
        for index in rng.integers(len(frames), size=self._batch):
            top, left = (crop_offset(rng, size, crop) for size, crop in zip(frames.shape[1:3], self._crop, strict=True))
            crops.append(frames[index, top : top + self._crop[0], left : left + self._crop[1]])
        return np.stack(crops)


def reconstruction_loss(
    decoded: torch.Tensor, pixels: torch.Tensor, weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Absolute plus weighted squared error of ``decoded`` (B, 3, H, W) against ``pixels``.

    ``weight`` (B, h, w) is what an error counts at each position of the latents; 1 where it is not given.
    """
    error = decoded.float() - pixels
    cost = (error.abs() + SQUARE_WEIGHT * error.square()).mean(dim=1)
    if weight is not None:
        cost = F.avg_pool2d(cost, FACTOR) * weight
    return cost.mean()


def crop_offset(rng: np.random.Generator, size: int, crop: int) -> int:
    """Where a crop begins, on the latent grid.

    Offsets run past the edges before they are clamped: else the HUD, at the very bottom, would hardly be seen.
    """
    steps = (size - crop) // FACTOR
    reach = crop // FACTOR // 2
    return FACTOR * int(np.clip(rng.integers(-reach, steps + reach + 1), 0, steps))


def frame_psnr(real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of each frame (N,), for frames (N, H, W, 3) uint8; at most 60 dB, for equal ones."""
    error = (real.float() - other.float()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error.clamp(min=255**2 * 1e-6))


def encode_frames(autoencoder: Autoencoder, frames: np.ndarray, batch: int = 16) -> torch.Tensor:
    """Frames (N, H, W, 3) uint8 -> latents (N, C, h, w) float16 on the CPU."""
    device = next(autoencoder.parameters()).device
    parts = []
    with torch.inference_mode(), autocast(device):
        for part in torch.from_numpy(frames).split(batch):
            parts.append(autoencoder.encode(pixels_of(part.to(device))).half().cpu())
    return torch.cat(parts)
