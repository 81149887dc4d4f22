"""Training a student on by what is seen: its predictions, decoded, are compared by a network that sees as people do.

A squared error of latents asks for the mean of all futures that are left open, and what a teacher's sample adds to that
fits no frame before it. LPIPS (Zhang et al., arXiv 1801.03924) forgives a brick that is a little off and does not
forgive one that is missing; consistency models were distilled with it (Song et al., arXiv 2303.01469, section 5). The
network here is VGG, which is not the one that ``gamengen evaluate`` measures with.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gamengen import processes
from gamengen.autoencoder import FACTOR, Autoencoder, normalise
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import CONTEXT_NOISE_MAX, SamplerConfig, sample_next
from gamengen.free_plays import FreePlays
from gamengen.latents import LatentEpisodes, gather_steps, window_starts
from gamengen.processes import share
from gamengen.train_autoencoder import crop_offset
from gamengen.train_denoiser import UNROLL_SHARE, DenoiserTask
from gamengen.training import step_generator

SEEN_SHARE = 5.0  # of the latents' error's gradient, where both reach the predicted latents
CROP = (8, 10)  # positions of a latent that are decoded and compared
LONGEST_PLAY = 12  # frames; later, what should be seen is no longer the recorded frame
NOISE_SHARE = 0.5  # of the context's noise in the denoiser's training
HELD_OUT_FRAMES = 16
RATES = (0.003, 1.5e-4)  # learning rates of Muon and AdamW


class PerceptualTask(DenoiserTask):
    """Predict the next latent in one step so that it looks right; see :class:`gamengen.training.Task`.

    Contexts are those of the denoiser's training; three in eight are of free plays of the student's own, with one step.

    Args:
        model: the student; it begins as what plays now.
        autoencoder: whose decoder, without the last frame in view, makes what is compared.
        train, held_out, seed, batch: as of :class:`gamengen.train_denoiser.DenoiserTask`.
        eyes: tells how far pictures (B, 3, H, W) are from others, (B,): LPIPS of VGG.
    """

    name = "perceptual"

    def __init__(
        self,
        model: Denoiser,
        autoencoder: Autoencoder,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        eyes: nn.Module,
        batch: int = 12,
    ) -> None:
        super().__init__(model, autoencoder, train, held_out, seed, batch)
        self._autoencoder.requires_grad_(False)
        self._seen = place(eyes, self._device)
        self._plays = FreePlays(self._train, int(batch * UNROLL_SHARE), model.config.context, LONGEST_PLAY)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Weighted squared error of the predicted latents, and the distance of what they show from what they should."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        whole = self._draw(rng, int(self._batch * UNROLL_SHARE))
        context, held, target, weight = (share(part) for part in whole)
        draw = torch.rand(self._batch, generator=generator, device=self._device)
        level = NOISE_SHARE * CONTEXT_NOISE_MAX * share(draw).square()
        noise = [share(torch.randn(part.shape, generator=generator, device=self._device)) for part in whole[::2]]
        noised = context + level[:, None, None, None, None] * noise[0]
        predicted = normalise(self._denoiser(noise[1], torch.ones_like(level), noised, held, level).float())
        error = torch.einsum("dc,bchw->bdhw", self._metric, predicted - target)
        plain = (error.square().mean(dim=1) * weight).mean()
        seen = self._distance(predicted, target, rng)
        squares = [
            float(torch.autograd.grad(part, predicted, retain_graph=True)[0].square().sum()) for part in (plain, seen)
        ]
        errors, seeing = (processes.average(square, self._device) ** 0.5 for square in squares)
        self._advance_plays(SamplerConfig(1), generator)
        return plain + seen * (SEEN_SHARE * errors / (seeing + 1e-8))

    def _distance(self, predicted: torch.Tensor, target: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """LPIPS of crops of latents (B, C, h, w), decoded alone, the mean over the batch."""
        sizes = [min(most, size) for most, size in zip(CROP, target.shape[2:], strict=True)]
        offsets = [
            crop_offset(rng, FACTOR * size, FACTOR * crop) // FACTOR
            for size, crop in zip(target.shape[2:], sizes, strict=True)
        ]
        rows, columns = (slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
        with torch.no_grad():
            wanted = self._autoencoder.decode(target[:, :, rows, columns]).float()
        shown = self._autoencoder.decode(predicted[:, :, rows, columns]).float()
        return self._seen(wanted, shown).mean()

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """As the denoiser's; and ``seen``, the distance of frames predicted in one step, by the network in training."""
        figures, pictures = super().evaluate(model)
        context = self._denoiser.config.context
        starts = window_starts(self._held_out.lengths, context + 1)
        picks = starts[np.linspace(0, len(starts) - 1, min(HELD_OUT_FRAMES, len(starts))).astype(int)]
        past, held, target = (part.to(self._device) for part in gather_steps(self._held_out, picks, context))
        generator = step_generator(self._seed, 0, self._device)
        noise = torch.randn(1, *target.shape, generator=generator, device=self._device)
        predicted = sample_next(self._denoiser, past, held, noise, SamplerConfig(1)).float()
        pairs = [(self._autoencoder.decode(part).float() for part in pair) for pair in zip(
            target.float().split(4), predicted.split(4), strict=True
        )]  # fmt: skip
        figures["seen"] = float(torch.cat([self._seen(*pair) for pair in pairs]).mean())
        return figures, pictures
