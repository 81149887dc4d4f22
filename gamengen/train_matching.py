"""Distribution matching: a student learns to make in one step what its teacher would, as often as that would.

A student that is asked for the end of its teacher's path of a few steps can be no better than that path, and a few
steps fade what is uncertain: a monster, the digit that follows. Here no path is walked. What the student makes is
noised, and two networks say what they would make of that: the teacher, which knows the game's frames, and a critic,
which learns the student's. Where they differ the student's frames are too many or too few, and it moves the way that
the teacher moves away from the critic (distribution matching distillation, Yin et al., arXiv 2311.18828 and 2405.14867;
GameNGen distils with a variant of it). Contexts are of recorded play and of the student's own.

Of a context that holds grain the teacher may say that grain goes on, and so what is unlikely breeds in long plays. A
patch discriminator, which sees no context, tells what was made from what the game showed at the same moments.

A difference of two guesses is a noisy thing to learn from, and what can be known, such as the gun in one's hand, is
worn away. With LPIPS weights some of what follows real frames should also look like the recorded frame, as the first of
these papers has a regression beside. After own frames it should not: play has gone another way.

The teacher must be a faithful one, which was not asked for what is rare more strongly than for what is not; see
:class:`gamengen.train_denoiser.DenoiserTask`.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from gamengen import processes
from gamengen.autoencoder import Autoencoder, normalise
from gamengen.balance import balanced
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import CONTEXT_NOISE_MAX, LOW_SHARE, SamplerConfig, draw_sigma
from gamengen.discriminator import Critic, LatentDiscriminator
from gamengen.free_plays import FreePlays
from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes
from gamengen.looks import Looks
from gamengen.muon import MuonAdamW
from gamengen.processes import share
from gamengen.train_denoiser import UNROLL_SHARE, DenoiserTask
from gamengen.train_student import STUDENT_STEPS
from gamengen.training import load_moments, moments, step_generator

CRITIC_RATES = (0.01, 5e-4)  # learning rates of Muon and AdamW: it must follow a student that changes
CRITIC_ALONE = 0.04  # share of the budget in which the critic learns what the student makes before it moves
NOISE_SHARE = 0.5  # of the context's noise in the denoiser's training
LONGEST_PLAY = 160  # frames: what breeds slowly must be seen to be unlearned, and no recorded frame is asked for here
SIGMA_RANGE = (0.01, 0.98)
JUDGE_SHARE = 0.3  # of the gradient's length, that the discriminator's is
SEEN_SHARE = 1.0  # of that length, that the gradient of what is seen has
SEEN = 1 / 8  # of a batch is looked at
JUDGE_NOISE = 0.5  # most of the noise that is mixed into what the discriminator sees, so that it is not too sure


class MatchingTask(DenoiserTask):
    """Make next latents in one step that ``teacher`` cannot tell from the game's; see :class:`gamengen.training.Task`.

    Contexts are those of the denoiser's training; three in eight are of free plays of the student's own, with one step.

    Args:
        model: the student; it begins as something that plays with one step.
        teacher: a denoiser, good at all noise levels, which stays as it is.
        autoencoder, train, held_out, seed, batch, mover: as of :class:`gamengen.train_denoiser.DenoiserTask`.
        eyes: tells how far pictures (B, 3, H, W) are from others, (B,): LPIPS of VGG; without them nothing is seen.
    """

    name = "matched"

    def __init__(
        self,
        model: Denoiser,
        teacher: Denoiser,
        autoencoder: Autoencoder,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        batch: int = 24,
        mover: Mover | None = None,
        eyes: nn.Module | None = None,
    ) -> None:
        super().__init__(model, autoencoder, train, held_out, seed, batch, mover=mover, faithful=True)
        self._plays = FreePlays(self._train, int(batch * UNROLL_SHARE), model.config.context, LONGEST_PLAY, mover=mover)
        self._teacher = place(copy.deepcopy(teacher), self._device).eval().requires_grad_(False)
        self._critic = place(copy.deepcopy(teacher), self._device).train().requires_grad_(True)
        self._critic_optimizer = MuonAdamW(self._critic, *CRITIC_RATES)
        self._judge = Critic(LatentDiscriminator(model.config.channels), self._device)
        self._looks = Looks(autoencoder, eyes, self._device, int(SEEN * batch)) if eyes is not None else None

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Half the squared distance of what the student makes from that, moved from the critic's to the teacher's.

        Its gradient is the difference between the two, a share of how far the teacher is from what was made; to it
        comes the discriminator's, and that of what is seen. Critic and discriminator take a step of their own on the
        same batch.
        """
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        unrolled = int(self._batch * UNROLL_SHARE)
        context, held, recorded, drawn = self._draw(rng, unrolled)
        draw = torch.rand(self._batch, generator=generator, device=self._device)
        level = NOISE_SHARE * CONTEXT_NOISE_MAX * draw.square()
        on_context = torch.randn(context.shape, generator=generator, device=self._device)
        context = context + level[:, None, None, None, None] * on_context
        noise = torch.randn(2, *context[:, 0].shape, generator=generator, device=self._device)
        sigma = draw_sigma(self._batch, generator, LOW_SHARE).clamp(*SIGMA_RANGE)
        given = tuple(share(part) for part in (context, held, level))
        start, added, sigma, weight, real = (share(part) for part in (*noise, sigma, drawn, recorded))

        made = normalise(self._denoiser(start, torch.ones_like(sigma), *given).float())
        shown, at = made.detach(), sigma[:, None, None, None]
        noisy = (1 - at) * shown + at * added
        like_student = self._follow(noisy, sigma, given, shown, weight)
        self._advance_plays(SamplerConfig(STUDENT_STEPS), generator)
        mixed = JUDGE_NOISE * share(draw)[:, None, None, None]
        self._judge.learn((1 - mixed) * real + mixed * added, (1 - mixed) * shown + mixed * added)
        if progress < CRITIC_ALONE:
            return made.sum() * 0
        with torch.no_grad():
            like_game = self._teacher(noisy, sigma, *given).float()
            size = (shown - like_game).abs().mean(dim=(1, 2, 3), keepdim=True)
            wanted = shown - (like_student - like_game) / (size + 1e-3)
            weight = torch.maximum(weight, self._rarity.weight(shown) * self._steady)
        matched = ((made - wanted).square().mean(dim=1) * weight).mean() / 2
        loss = matched + self._judge.loss(made, matched, JUDGE_SHARE)
        if self._looks is not None:
            unusual = drawn / self._steady  # not where the score bar is
            seen = self._looks.distance(made, recorded, unusual, rng, self._batch - unrolled)
            loss = loss + balanced(seen, matched, made, SEEN_SHARE)
        return loss

    def _follow(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        given: tuple[torch.Tensor, ...],
        shown: torch.Tensor,
        weight: torch.Tensor,
    ) -> torch.Tensor:
        """What the critic makes of ``noisy``; then it learns that it was ``shown``."""
        guess = self._critic(noisy, sigma, *given).float()
        error = ((guess - shown).square().mean(dim=1) * weight).mean(dim=(1, 2))
        self._critic_optimizer.zero_grad(set_to_none=True)
        (error / (sigma.square() + 0.05)).mean().backward()
        processes.average_gradients(self._critic)
        self._critic_optimizer.step()
        return guess.detach()

    def state(self) -> dict[str, torch.Tensor]:
        """The free plays that go on from step to step, the critic, the discriminator and their optimizers."""
        critic = {f"critic.{name}": value for name, value in self._critic.state_dict().items()}
        judge = {f"judge.{name}": value for name, value in self._judge.state().items()}
        return {**super().state(), **critic, **judge, **moments(self._critic_optimizer, self._critic)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
        super().load_state(state)
        critic, judge = (
            {name.removeprefix(head): value for name, value in state.items() if name.startswith(head)}
            for head in ("critic.", "judge.")
        )
        self._critic.load_state_dict(critic)
        self._judge.load_state(judge)
        load_moments(self._critic_optimizer, self._critic, state)
