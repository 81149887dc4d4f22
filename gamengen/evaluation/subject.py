"""The checkpoint under test: its networks on their device, whole frames in and whole frames out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gamengen.autoencoder import Before
from gamengen.checkpoints import Checkpoint
from gamengen.devices import place
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.flow import Mover, settle_flow
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
        network = place(checkpoint.flow, device) if checkpoint.flow is not None else None
        self._mover = Mover(network, self._autoencoder) if network is not None else None

    def weights(self) -> list[str]:
        """Hashes of the weights of all networks that make frames."""
        moving = [self._mover.network] if self._mover is not None else []
        return [weights_hash(part) for part in (self._autoencoder, self._denoiser, *moving)]

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (N, H, W, 3) uint8 -> latents (N, C, h, w) float32 on the device."""
        return encode_frames(self._autoencoder, frames).float().to(self.device)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (B, C, h, w) -> frames (B, H, W, 3) uint8."""
        with autocast(self.device):
            return self._autoencoder.decode_frames(latents).cpu().numpy()

    @torch.inference_mode()
    def settle(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor | None:
        """By which flow the newest frame came (B, 2, 2 h, 2 w), from latents (B, K, C, h, w) and actions (B, K, A)."""
        if self._mover is None:
            return None
        with autocast(self.device):
            return settle_flow(self._mover.network, latents, actions.to(self.device))

    @torch.inference_mode()
    def look(
        self, latents: torch.Tensor, actions: torch.Tensor, last: np.ndarray, flow: torch.Tensor | None
    ) -> tuple[torch.Tensor, Before]:
        """What the denoiser and the decoder are given.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now.
            last: frames on screen (B, H, W, 3) uint8.
            flow: by which those came, of :meth:`settle` or of the look before.

        Returns:
            The context for :meth:`predict`, and what came before for :meth:`decode_next`.
        """
        shown, held = torch.from_numpy(np.ascontiguousarray(last)).to(self.device), actions.to(self.device)
        context = latents
        if self._mover is not None:
            assert flow is not None
            with autocast(self.device):
                context, flow = self._mover(latents, held, shown, flow)
        return context, Before(latents[:, -1], shown, held, flow)

    @torch.inference_mode()
    def decode_next(self, latents: torch.Tensor, before: Before) -> np.ndarray:
        """Latents (B, C, h, w) -> frames (B, H, W, 3) uint8, with what came before in view."""
        with autocast(self.device):
            return self._autoencoder.decode_frames(latents, before).cpu().numpy()

    @torch.inference_mode()
    def predict(
        self, context: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor, steps: int | None = None
    ) -> torch.Tensor:
        """Sample the next latents.

        Args:
            context: of :meth:`look`.
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
        newest, generator, flow = frames[:, -1], step_generator(seed, 1), None
        for step in range(count):
            now = torch.from_numpy(np.array(choose(step, newest), np.float32)).to(self.device)
            held = torch.cat([held, now[:, None]], dim=1)
            context, before = self.look(past, held, newest, flow if flow is not None else self.settle(past, held))
            latents = self.predict(context, held, self.noise(past[:, 0], generator))
            newest, flow = self.decode_next(latents, before), before.flow
            past, held = torch.cat([past[:, 1:], latents[:, None]], dim=1), held[:, 1:]
            yield newest


def follow(actions: np.ndarray) -> Choose:
    """Hold recorded actions (B, T, A), one after the other."""
    return lambda step, newest: actions[:, step]
