"""Training the decoder on, with encoder and denoiser as they are.

The decoder bounds every frame's quality, and it goes on learning when the latents are long made. It sees
the autoencoder's latents and the denoiser's predictions of them, from which a played frame is decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gamengen.autoencoder import FACTOR, Autoencoder, pixels_of
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.latents import LatentEpisodes, gather_windows, window_starts
from gamengen.train_autoencoder import CROP, HELD_OUT_FRAMES, LATENT_NOISE, crop_offset, frame_psnr, reconstruction_loss
from gamengen.training import autocast, step_generator
from recorder.episodes import read_episode
from recorder.progress import progress
from recorder.recording import Recording, split_held_out

PREDICTED_FRAMES = 4_000
PREDICTED_SHARE = 0.5  # of a batch
STEPS = (1, 2, 4)
PREDICT_BATCH = 16


@dataclass(frozen=True)
class PredictedFrames:
    """Frames (N, H, W, 3) uint8, their latents (N, C, h, w) float16, and what the denoiser predicts of them."""

    frames: np.ndarray
    latents: torch.Tensor
    predicted: torch.Tensor


def predict_frames(
    recording: Recording,
    train: LatentEpisodes,
    held_out: LatentEpisodes,
    denoiser: Denoiser,
    seed: int,
    limit: int = PREDICTED_FRAMES,
) -> tuple[PredictedFrames, PredictedFrames]:
    """Teacher-forced predictions, with 1, 2 or 4 sampling steps, of evenly spaced frames: (train, held out)."""
    parts = split_held_out([info.path for info in recording.episodes()])
    return (
        _predict(parts[0], train, denoiser, seed, limit),
        _predict(parts[1], held_out, denoiser, seed, min(limit, HELD_OUT_FRAMES)),
    )


@torch.no_grad()
def _predict(
    paths: Sequence[Path], episodes: LatentEpisodes, denoiser: Denoiser, seed: int, limit: int
) -> PredictedFrames:
    context = denoiser.config.context
    starts = window_starts(episodes.lengths, context + 1)
    found = starts[np.unique(np.linspace(0, len(starts) - 1, limit).astype(int))]
    frames, first = [], 0
    with progress("reading frames", len(paths), "episodes") as show:
        for done, (path, length) in enumerate(zip(paths, episodes.lengths, strict=True)):
            picks = found[(found >= first) & (found < first + length)] - first + context
            if len(picks):
                frames.append(read_episode(path).frames[picks])
            first += length
            show(done + 1, "")
    device = next(denoiser.parameters()).device
    predicted = []
    with progress("predicting frames", len(found), "frames") as show:
        for number, first in enumerate(range(0, len(found), PREDICT_BATCH)):
            latents, actions = gather_windows(episodes, found[first : first + PREDICT_BATCH], context)
            shape = (2, len(latents), *latents.shape[2:])
            noise = torch.randn(shape, generator=step_generator(seed, number, device), device=device)
            config = SamplerConfig(STEPS[number % len(STEPS)])
            with autocast(device):
                predicted.append(sample_next(denoiser, latents.to(device), actions.to(device), noise, config).half())
            show(first + len(latents), "")
    index = torch.from_numpy(found + context).to(episodes.latents.device)
    return PredictedFrames(np.concatenate(frames), episodes.latents[index].cpu(), torch.cat(predicted).cpu())


class DecoderTask:
    """Decode crops of true and of predicted latents; see :class:`gamengen.training.Task`."""

    name = "decoder"

    def __init__(
        self, model: Autoencoder, train: PredictedFrames, held_out: PredictedFrames, seed: int, batch: int = 16
    ) -> None:
        model.encoder.requires_grad_(False)
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self._autoencoder, self._train, self._held_out = model, train, held_out
        self._seed, self._batch = seed, batch
        height, width = train.frames.shape[1:3]
        self._crop = (min(CROP[0], height), min(CROP[1], width))

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Reconstruction loss of the batch's crops."""
        rng = np.random.default_rng([self._seed, step])
        frames, latents = [], []
        for number, index in enumerate(rng.integers(len(self._train.frames), size=self._batch)):
            top, left = (
                crop_offset(rng, size, crop)
                for size, crop in zip(self._train.frames.shape[1:3], self._crop, strict=True)
            )
            height, width = self._crop
            frames.append(self._train.frames[index, top : top + height, left : left + width])
            source = self._train.predicted if number < PREDICTED_SHARE * self._batch else self._train.latents
            rows = slice(top // FACTOR, (top + height) // FACTOR)
            latents.append(source[index, :, rows, left // FACTOR : (left + width) // FACTOR].float())
        pixels = pixels_of(torch.from_numpy(np.stack(frames)).to(self._device))
        taken = torch.stack(latents).to(self._device)  # autocast stacks no float16
        generator = step_generator(self._seed, step, self._device)
        scale = LATENT_NOISE * torch.rand(len(taken), 1, 1, 1, generator=generator, device=self._device)
        noise = torch.randn(taken.shape, generator=generator, device=self._device)
        return reconstruction_loss(self._autoencoder.decode(taken + scale * noise), pixels)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out PSNR from true and from predicted latents, and both below the originals."""
        frames = torch.from_numpy(self._held_out.frames)
        decoded = {
            "psnr": self._decode(self._held_out.latents),
            "predicted_psnr": self._decode(self._held_out.predicted),
        }
        figures = {name: float(frame_psnr(frames, part).mean()) for name, part in decoded.items()}
        picks = np.linspace(0, len(frames) - 1, 6).astype(int)
        rows = [np.concatenate(list(part[picks].numpy()), axis=1) for part in (frames, *decoded.values())]
        return figures, {"original_decoded_predicted": np.concatenate(rows)}

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        parts = [part.to(self._device).float() for part in latents.split(8)]
        return torch.cat([self._autoencoder.decode_frames(part).cpu() for part in parts])
