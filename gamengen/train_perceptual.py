"""Training a student on by what is seen: its predictions, decoded, are compared by a network that sees as people do.

A squared error of latents asks for the mean of what a teacher may mean, so what is small and moves, like a monster,
fades. LPIPS does not let it (:mod:`gamengen.looks`); consistency models were distilled with it (Song et al., arXiv
2303.01469, section 5). The network here is VGG, which is not the one that ``gamengen evaluate`` measures with.

The student is asked for what it would sample in four steps from the same noise, and, where a frame after real ones is
looked at, for the recorded one. After its own frames it is not: play has gone another way, and asking for the recording
there teaches to stand still, and to leave every monster out, while all figures of single pictures get better.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gamengen.autoencoder import Autoencoder, normalise
from gamengen.balance import balanced
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import CONTEXT_NOISE_MAX, SamplerConfig, sample_next
from gamengen.latents import LatentEpisodes, gather_steps, window_starts
from gamengen.looks import Looks
from gamengen.processes import share, spread
from gamengen.train_denoiser import UNROLL_SHARE, DenoiserTask
from gamengen.train_student import STUDENT_STEPS, TEACHER_STEPS
from gamengen.training import step_generator

SEEN_SHARE = 5.0  # of the latents' error's gradient, where both reach the predicted latents
SEEN = 1 / 3  # of a batch is looked at
NOISE_SHARE = 0.5  # of the context's noise in the denoiser's training
HELD_OUT_FRAMES = 16
RATES = (0.003, 1.5e-4)  # learning rates of Muon and AdamW


class PerceptualTask(DenoiserTask):
    """Predict the next latent in one step so that it looks right; see :class:`gamengen.training.Task`.

    Contexts are those of the denoiser's training; three in eight are of free plays of the student's own, with one step.

    Args:
        model: the student; it begins as ``teacher``.
        teacher: what plays now, and stays as it is.
        autoencoder: whose decoder, without the last frame in view, makes what is compared.
        train, held_out, seed, batch: as of :class:`gamengen.train_denoiser.DenoiserTask`.
        eyes: tells how far pictures (B, 3, H, W) are from others, (B,): LPIPS of VGG.
    """

    name = "perceptual"

    def __init__(
        self,
        model: Denoiser,
        teacher: Denoiser,
        autoencoder: Autoencoder,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        eyes: nn.Module,
        batch: int = 24,
    ) -> None:
        super().__init__(model, autoencoder, train, held_out, seed, batch)
        self._teacher = place(teacher, self._device).eval().requires_grad_(False)
        self._looks = Looks(autoencoder, eyes, self._device, int(SEEN * batch))

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Weighted squared error from the teacher's latents, and how far from those, or the recorded, it looks."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        unrolled = int(self._batch * UNROLL_SHARE)
        context, held, recorded, weight = self._draw(rng, unrolled)
        draw = torch.rand(self._batch, generator=generator, device=self._device)
        level = NOISE_SHARE * CONTEXT_NOISE_MAX * draw.square()
        noise = [torch.randn(part.shape, generator=generator, device=self._device) for part in (context, recorded)]
        told = spread(self._tell, context, held, noise[1])
        weight = torch.maximum(weight, self._rarity.weight(told))
        noised = context + level[:, None, None, None, None] * noise[0]
        given = [share(part) for part in (noise[1], torch.ones_like(level), noised, held, level)]
        predicted = normalise(self._denoiser(*given).float())
        error = torch.einsum("dc,bchw->bdhw", self._metric, predicted - share(told))
        plain = (error.square().mean(dim=1) * share(weight)).mean()
        wanted = torch.cat([recorded[: self._batch - unrolled].to(told), told[self._batch - unrolled :]])
        seen = self._looks.distance(predicted, wanted, weight, rng)
        self._advance_plays(SamplerConfig(STUDENT_STEPS), generator)
        return plain + balanced(seen, plain, predicted, SEEN_SHARE)

    def _tell(self, context: torch.Tensor, held: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        return sample_next(self._teacher, context, held, noise[None], SamplerConfig(TEACHER_STEPS)).float()

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """As the denoiser's; and ``seen``, the distance of frames predicted in one step, by the network in training."""
        figures, pictures = super().evaluate(model)
        context = self._denoiser.config.context
        starts = window_starts(self._held_out.lengths, context + 1)
        picks = starts[np.linspace(0, len(starts) - 1, min(HELD_OUT_FRAMES, len(starts))).astype(int)]
        past, held, target = (part.to(self._device) for part in gather_steps(self._held_out, picks, context))
        generator = step_generator(self._seed, 0, self._device)
        noise = torch.randn(1, *target.shape, generator=generator, device=self._device)
        predicted = sample_next(self._denoiser, past, held, noise, SamplerConfig(STUDENT_STEPS)).float()
        figures["seen"] = self._looks.whole(predicted, target)
        return figures, pictures
