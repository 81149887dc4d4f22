"""The checkpoint under test: its networks on their device, whole frames in and whole frames out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gamengen.autoencoder import Before
from gamengen.checkpoints import Checkpoint
from gamengen.devices import place
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.geometry import Mover
from gamengen.latents import weights_hash
from gamengen.motion_reading import read_motions
from gamengen.train_autoencoder import encode_frames
from gamengen.training import autocast, step_generator

Choose = Callable[[int, np.ndarray], np.ndarray]
# Called with the step and the numbers of the games that it lost; frames (n, K, H, W, 3) and actions (n, K - 1, A), as
# of :meth:`Subject.play`, from which those start anew, or None to play them on.
Lose = Callable[[int, list[int]], tuple[np.ndarray, np.ndarray] | None]


@dataclass(frozen=True)
class Beside:
    """What a model knows of the newest frames beside their latents.

    Args:
        motions: by which they came (B, HISTORY, 4), where the model tells that.
        tally: what their score bar counts (B, frames, L), where it counts.
    """

    motions: torch.Tensor | None = None
    tally: torch.Tensor | None = None

    def put(self, games: list[int], other: Beside) -> Beside:
        """The same, but for ``games``, of which ``other`` knows."""
        parts = []
        for mine, theirs in ((self.motions, other.motions), (self.tally, other.tally)):
            if mine is not None and theirs is not None:
                mine = mine.clone()
                mine[games] = theirs.to(mine)
            parts.append(mine)
        return Beside(*parts)


def short_hash(weights: Sequence[str]) -> str:
    """Of what :meth:`Subject.weights` gives: by which people and files name the model that they saw."""
    return hashlib.sha256("".join(weights).encode()).hexdigest()[:16]


class Subject:
    """A checkpoint's autoencoder and denoiser, ready to be measured on ``device``."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.config, self.device = checkpoint.config, device
        self.context = checkpoint.config.denoiser.context
        self._autoencoder = place(checkpoint.autoencoder, device)
        self._denoiser = place(checkpoint.denoiser, device)
        geometry = place(checkpoint.geometry, device) if checkpoint.geometry is not None else None
        self._mover = Mover(geometry, self._autoencoder) if geometry is not None else None
        self._tally = place(checkpoint.tally, device) if checkpoint.tally is not None else None

    def weights(self) -> list[str]:
        """Hashes of the weights of all networks that make frames."""
        beside: list[nn.Module] = [self._mover.geometry] if self._mover is not None else []
        if self._tally is not None:
            beside.append(self._tally)
        return [weights_hash(part) for part in (self._autoencoder, self._denoiser, *beside)]

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        """Frames (N, H, W, 3) uint8 -> latents (N, C, h, w) float32 on the device."""
        return encode_frames(self._autoencoder, frames).float().to(self.device)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> np.ndarray:
        """Latents (B, C, h, w) -> frames (B, H, W, 3) uint8."""
        with autocast(self.device):
            return self._autoencoder.decode_frames(latents).cpu().numpy()

    @torch.inference_mode()
    def settle(self, latents: torch.Tensor, actions: torch.Tensor) -> Beside:
        """What goes with the newest frame, from latents (B, K, C, h, w) and actions (B, K, A); the last is held now."""
        motions = tally = None
        with autocast(self.device):
            if self._mover is not None:
                motions = read_motions(self._mover, latents, actions.to(self.device))
            if self._tally is not None:
                tally = self._tally.settle(latents, actions.to(self.device))
        return Beside(motions, tally)

    @torch.inference_mode()
    def look(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        last: np.ndarray,
        beside: Beside,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, Before, Beside]:
        """What the denoiser and the decoder are given.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now.
            last: frames on screen (B, H, W, 3) uint8.
            beside: what goes with those, of :meth:`settle` or of the look before.
            generator: of the CPU, by which is drawn what changes in the score.

        Returns:
            The context for :meth:`predict`, what came before for :meth:`decode_next`, and what goes with the
            next frame.
        """
        shown, held = torch.from_numpy(np.ascontiguousarray(last)).to(self.device), actions.to(self.device)
        context, flow, motions, tally = latents, None, beside.motions, beside.tally
        with autocast(self.device):
            if self._mover is not None:
                assert motions is not None
                context, flow, motions = self._mover(latents, held, shown, motions)
            if self._tally is not None:
                assert tally is not None
                draws = torch.rand(len(latents), tally.shape[2], generator=generator).to(self.device)
                tally = self._tally.advance(latents, held, tally, draws)
                context = self._tally.tell(context, tally)
        return context, Before(latents[:, -1], shown, held, flow), Beside(motions, tally)

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

    def lost(self, beside: Beside) -> list[int]:
        """The numbers of the games that are lost with such frames."""
        if self._tally is None or beside.tally is None:
            return []
        return self._tally.lost(beside.tally).nonzero()[:, 0].tolist()

    def play(
        self,
        frames: np.ndarray,
        actions: np.ndarray,
        choose: Choose,
        count: int,
        seed: int,
        lose: Lose = lambda step, games: None,
    ) -> Iterator[np.ndarray]:
        """Free play of B games side by side: ``count`` new frames of each, all the model's own.

        Args:
            frames: K real frames to start from (B, K, H, W, 3) uint8.
            actions: what was held during all of them but the last, (B, K - 1, A) float32.
            choose: called with the step and the newest frames (B, H, W, 3) before a frame is made; returns
                the actions (B, A) that are held now.
            count: new frames.
            seed: of the sampling noise.
            lose: called when games are lost, where the model tells that; without, they are played on.

        Yields:
            The newest frames (B, H, W, 3) uint8.
        """
        assert frames.shape[1] == self.context, (frames.shape, self.context)
        past = torch.stack([self.encode(part) for part in frames])
        held = torch.from_numpy(np.array(actions, np.float32)).to(self.device)
        newest, generator = frames[:, -1], step_generator(seed, 1)
        beside: Beside | None = None
        started: list[int] = []
        for step in range(count):
            now = torch.from_numpy(np.array(choose(step, newest), np.float32)).to(self.device)
            held = torch.cat([held, now[:, None]], dim=1)
            if beside is None:
                beside = self.settle(past, held)
            elif started:
                beside = beside.put(started, self.settle(past[started], held[started]))
            context, before, beside = self.look(past, held, newest, beside, generator)
            latents = self.predict(context, held, self.noise(past[:, 0], generator))
            newest = self.decode_next(latents, before)
            past, held = torch.cat([past[:, 1:], latents[:, None]], dim=1), held[:, 1:]
            yield newest
            started = self.lost(beside)
            starts = lose(step, started) if started else None
            if starts is None:
                started = []
                continue
            newest, past, held = newest.copy(), past.clone(), held.clone()
            newest[started] = starts[0][:, -1]
            past[started] = torch.stack([self.encode(part) for part in starts[0]])
            held[started] = torch.from_numpy(np.array(starts[1], np.float32)).to(self.device)


def follow(actions: np.ndarray) -> Choose:
    """Hold recorded actions (B, T, A), one after the other."""
    return lambda step, newest: actions[:, step]
