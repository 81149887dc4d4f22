"""Distillation: a student learns to reach in one step what its teacher reaches in several.

Along the teacher's path from noise to a clean latent, the student learns to name the path's end from every
point that it visits (trajectory distillation, as in Luhman and Luhman, arXiv 2101.02388, and the consistency
models of Song et al., arXiv 2303.01469). The teacher's path is deterministic, so the end is no mean over many
futures, which one step of an undistilled denoiser gives, but one of them.
"""

from __future__ import annotations

import numpy as np
import torch

from gamengen.autoencoder import Autoencoder, normalise
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import CONTEXT_NOISE_MAX, SamplerConfig, euler_path
from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes
from gamengen.processes import share
from gamengen.train_denoiser import UNROLL_SHARE, DenoiserTask
from gamengen.training import step_generator

TEACHER_STEPS = 4
FIRST_SHARE = 0.6  # of samples that begin at pure noise: all that a play of one step asks for
STUDENT_STEPS = 1  # what a student is meant for
STUDENT_RATES = (0.005, 2e-4)  # learning rates of Muon and AdamW: it begins where its teacher ended


class StudentTask(DenoiserTask):
    """Predict the end of the teacher's path; see :class:`gamengen.training.Task`.

    Contexts are those of the denoiser's training; the free plays among them are the student's own, with one step.

    Args:
        model: the student; begins as the teacher.
        teacher: a trained denoiser, which stays as it is.
        autoencoder, train, held_out, seed, batch, mover: as of :class:`DenoiserTask`.
    """

    name = "student"

    def __init__(
        self,
        model: Denoiser,
        teacher: Denoiser,
        autoencoder: Autoencoder,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        batch: int = 16,
        mover: Mover | None = None,
    ) -> None:
        super().__init__(model, autoencoder, train, held_out, seed, batch, mover=mover)
        self._teacher = place(teacher, self._device).eval().requires_grad_(False)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Mean squared error of what the student predicts against where its teacher arrives."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        whole = self._draw(rng, int(self._batch * UNROLL_SHARE))
        context, held, _, weight = (share(part) for part in whole)
        draw = [share(part) for part in torch.rand(2, self._batch, generator=generator, device=self._device)]
        level = CONTEXT_NOISE_MAX * draw[0].square()
        noise = [share(part) for part in torch.randn(2, *whole[2].shape, generator=generator, device=self._device)]
        context = context + level[:, None, None, None, None] * noise[0][:, None]
        with torch.no_grad():
            encoded = self._teacher.encode_context(context, held, level)
            path = torch.stack([at.float() for at in euler_path(self._teacher, noise[1], encoded, TEACHER_STEPS)])
        # The later points, each as often as the others, share what the first leaves.
        later = (draw[1] - FIRST_SHARE).clamp(min=0) / (1 - FIRST_SHARE)
        point = torch.where(draw[1] < FIRST_SHARE, 0, 1 + (later * (TEACHER_STEPS - 1)).long())
        sigma = 1 - point / TEACHER_STEPS
        start = path[point, torch.arange(len(context), device=self._device)]
        error = self._denoiser(start, sigma, context, held, level).float() - normalise(path[-1])
        error = torch.einsum("dc,bchw->bdhw", self._metric, error)
        self._advance_plays(SamplerConfig(STUDENT_STEPS), generator)
        return (error.square().mean(dim=1) * weight).mean()
