"""Training a student on by what is seen: its predictions, decoded, are compared by a network that sees as people do.

A squared error of latents asks for the mean of all futures that are left open, and what a teacher's sample adds to that
fits no frame before it. LPIPS (Zhang et al., arXiv 1801.03924) forgives a brick that is a little off and does not
forgive one that is missing; consistency models were distilled with it (Song et al., arXiv 2303.01469, section 5). The
network here is VGG, which is not the one that ``gamengen evaluate`` measures with.

What is recorded is asked for, by the squared error of latents and by what is seen of a part of the picture, drawn where
something is unusual more often: after real frames, and after as many of the student's own as a play keeps near the
recording. Where the player walks it soon goes another way, and asking for the recording then teaches to stand still,
which no figure of single pictures tells. From there on the student keeps to what it did before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from agents.errors import OptionError
from gamengen import processes
from gamengen.autoencoder import Autoencoder, normalise
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import CONTEXT_NOISE_MAX, SamplerConfig, sample_next
from gamengen.latents import LatentEpisodes, gather_steps, window_starts
from gamengen.processes import share
from gamengen.train_denoiser import UNROLL_SHARE, DenoiserTask
from gamengen.training import step_generator

SEEN_SHARE = 5.0  # of the latents' error's gradient, where both reach the predicted latents
SEEN = 0.25  # of a batch: to decode and compare a frame takes eight times as long as to predict it
CROP = (8, 10)  # positions of a latent that are decoded and compared
NOISE_SHARE = 0.5  # of the context's noise in the denoiser's training
HELD_OUT_FRAMES = 16
RATES = (0.003, 1.5e-4)  # learning rates of Muon and AdamW


def check_own_frames(count: int) -> None:
    """Raise OptionError where ``count`` is no number of frames."""
    if count < 0:
        raise OptionError(f"must be 0 or more, got {count}", "--own-frames", "for example 16")


class PerceptualTask(DenoiserTask):
    """Predict the next latent in one step so that it looks right; see :class:`gamengen.training.Task`.

    Contexts are those of the denoiser's training; three in eight are of free plays of the student's own, with one step.

    Args:
        model: the student; it begins as ``anchor``.
        anchor: what plays now.
        autoencoder: whose decoder, without the last frame in view, makes what is compared.
        train, held_out, seed, batch: as of :class:`gamengen.train_denoiser.DenoiserTask`.
        eyes: tells how far pictures (B, 3, H, W) are from others, (B,): LPIPS of VGG.
        own_frames: the recorded frame is asked for after at most so many frames of the student's own; after more it is
            what ``anchor`` predicts.
    """

    name = "perceptual"

    def __init__(
        self,
        model: Denoiser,
        anchor: Denoiser,
        autoencoder: Autoencoder,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        eyes: nn.Module,
        batch: int = 32,
        own_frames: int = 0,
    ) -> None:
        super().__init__(model, autoencoder, train, held_out, seed, batch)
        self._autoencoder.requires_grad_(False)
        self._anchor = place(anchor, self._device).eval().requires_grad_(False)
        self._seen = place(eyes, self._device)
        self._own_frames = own_frames

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Weighted squared error of latents, and, where what is recorded is asked for, how far off it looks."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        unrolled = int(self._batch * UNROLL_SHARE)
        whole = self._draw(rng, unrolled)
        context, held, target, weight = (share(part) for part in whole)
        draw = torch.rand(self._batch, generator=generator, device=self._device)
        level = NOISE_SHARE * CONTEXT_NOISE_MAX * share(draw).square()
        noise = [share(torch.randn(part.shape, generator=generator, device=self._device)) for part in whole[::2]]
        noised = context + level[:, None, None, None, None] * noise[0]
        given = (noise[1], torch.ones_like(level), noised, held, level)
        predicted = normalise(self._denoiser(*given).float())
        near = torch.ones(self._batch, dtype=torch.bool)
        near[self._batch - unrolled :] = self._plays.ages <= self._own_frames
        far = share(~near).to(self._device)
        if far.any():
            with torch.no_grad():
                target[far] = normalise(self._anchor(*(part[far] for part in given)).float()).to(target)
        error = torch.einsum("dc,bchw->bdhw", self._metric, predicted - target)
        plain = (error.square().mean(dim=1) * weight).mean()
        picks = rng.permutation(near.nonzero()[:, 0].numpy())[: max(1, int(SEEN * self._batch))]
        seen = self._distance(predicted, target, whole[3], picks, rng)
        squares = [
            float(torch.autograd.grad(part, predicted, retain_graph=True)[0].square().sum()) for part in (plain, seen)
        ]
        errors, seeing = (processes.average(square, self._device) ** 0.5 for square in squares)
        self._advance_plays(SamplerConfig(1), generator)
        return plain + seen * (SEEN_SHARE * errors / (seeing + 1e-8))

    def _distance(
        self,
        predicted: torch.Tensor,
        target: torch.Tensor,
        weights: torch.Tensor,
        picks: np.ndarray,
        rng: np.random.Generator,
    ) -> torch.Tensor:
        """Mean LPIPS of crops of latents (B, C, h, w), decoded alone, of those of the whole batch that are picked.

        A crop holds a position that is drawn by ``weights``, which are of the whole batch.
        """
        height, width = (min(most, size) for most, size in zip(CROP, target.shape[2:], strict=True))
        first = len(target) * processes.rank()
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for pick in picks:
            chances = weights[pick].flatten().double().cpu().numpy()
            at = np.unravel_index(rng.choice(len(chances), p=chances / chances.sum()), target.shape[2:])
            top, left = (
                int(np.clip(middle - rng.integers(crop), 0, size - crop))
                for middle, crop, size in zip(at, (height, width), target.shape[2:], strict=True)
            )
            if first <= pick < first + len(target):
                part = (pick - first, slice(None), slice(top, top + height), slice(left, left + width))
                pairs.append((predicted[part], target[part]))
        if not pairs:
            return predicted.sum() * 0
        shown, wanted = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        with torch.no_grad():
            recorded = self._autoencoder.decode(wanted).float()
        seen = self._seen(recorded, self._autoencoder.decode(shown).float())
        return seen.sum() * processes.count() / len(picks)

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
