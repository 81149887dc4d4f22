"""The checkpoint under test: its networks on their device, whole frames in and whole frames out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gamengen.autoencoder import Before
from gamengen.checkpoints import Checkpoint
from gamengen.devices import place
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.latents import weights_hash
from gamengen.train_autoencoder import encode_frames
from gamengen.training import autocast, step_generator

Choose = Callable[[int, np.ndarray], np.ndarray]


class Subject:
    """A checkpoint's autoencoder and denoiser, ready to be measured on ``device``."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.config, self.device = checkpoint.config, device
        self.context = checkpoint.config.denoiser.context
        self._autoencoder = place(checkpoint.autoencoder, device)
        self._denoiser = place(checkpoint.denoiser, device)

    def weights(self) -> list[str]:
        """Hashes of the autoencoder's and the denoiser's weights."""
        return [weights_hash(self._autoencoder), weights_hash(self._denoiser)]

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (N, H, W, 3) uint8 -> latents (N, C, h, w) float32 on the device."""
        return encode_frames(self._autoencoder, frames).float().to(self.device)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (B, C, h, w) -> frames (B, H, W, 3) uint8."""
        with autocast(self.device):
            return self._autoencoder.decode_frames(latents).cpu().numpy()

    @torch.inference_mode()
    def decode_next(
        self, latents: torch.Tensor, last_latents: torch.Tensor, last: np.ndarray, actions: torch.Tensor
    ) -> np.ndarray:
        """Latents (B, C, h, w) -> frames (B, H, W, 3) uint8, with those before and the actions (B, K, A) in view."""
        shown = torch.from_numpy(np.ascontiguousarray(last)).to(self.device)
        with autocast(self.device):
            before = Before(last_latents, shown, actions.to(self.device))
            return self._autoencoder.decode_frames(latents, before).cpu().numpy()

    @torch.inference_mode()
    def predict(
        self, context: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor, steps: int | None = None
    ) -> torch.Tensor:
        """Sample the next latents.

        Args:
            context: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now.
            noise: standard normal (2, B, C, h, w).
            steps: sampling steps; None takes the checkpoint's own.

        Returns:
            (B, C, h, w) float32.
        """
        own = self.config.sampler
        with autocast(self.device):
            config = SamplerConfig(steps or own.steps, own.context_noise)
            return sample_next(self._denoiser, context, actions.to(self.device), noise.to(self.device), config).float()

    def noise(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Noise for :meth:`predict` (2, B, C, h, w), for latents (B, C, h, w); ``generator`` is the CPU's."""
        return torch.randn(2, *latents.shape, generator=generator)

    def play(
        self, frames: np.ndarray, actions: np.ndarray, choose: Choose, count: int, seed: int
    ) -> Iterator[np.ndarray]:
        """Free play of B games side by side: ``count`` new frames of each, all the model's own.

        Args:
            frames: K real frames to start from (B, K, H, W, 3) uint8.
            actions: what was held during all of them but the last, (B, K - 1, A) float32.
            choose: called with the step and the newest frames (B, H, W, 3) before a frame is made; returns
                the actions (B, A) that are held now.
            count: new frames.
            seed: of the sampling noise.

        Yields:
            The newest frames (B, H, W, 3) uint8.
        """
        assert frames.shape[1] == self.context, (frames.shape, self.context)
        past = torch.stack([self.encode(part) for part in frames])
        held = torch.from_numpy(np.array(actions, np.float32)).to(self.device)
        newest, generator = frames[:, -1], step_generator(seed, 1)
        for step in range(count):
            now = torch.from_numpy(np.array(choose(step, newest), np.float32)).to(self.device)
            held = torch.cat([held, now[:, None]], dim=1)
            latents = self.predict(past, held, self.noise(past[:, 0], generator))
            newest = self.decode_next(latents, past[:, -1], newest, held)
            past, held = torch.cat([past[:, 1:], latents[:, None]], dim=1), held[:, 1:]
            yield newest


def follow(actions: np.ndarray) -> Choose:
    """Hold recorded actions (B, T, A), one after the other."""
    return lambda step, newest: actions[:, step]
