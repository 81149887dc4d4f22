"""Rectified flow with x-prediction on latents: the objective and the Euler sampler.

A latent x and noise e are mixed as z = (1 - sigma) x + sigma e (Liu et al., arXiv 2209.03003); the
denoiser predicts x. Context latents are noised too, at a random level that the denoiser is told
(GameNGen, arXiv 2408.14837, section 3.2.1, where free play collapses within 20 frames without it).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from agents.errors import OptionError
from gamengen.autoencoder import normalise
from gamengen.denoiser import Denoiser
from gamengen.processes import count, share

SIGMA_MEAN, SIGMA_STD = 0.3, 1.2
PURE_NOISE_SHARE = 0.25  # of training samples: the first sampling step always starts there
LOW_SHARE, LOW_MEDIAN = 0.4, 0.1  # of all others, where a model must be right there too: a digit is decided there
CONTEXT_NOISE_MAX = 0.6
LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class SamplerConfig:
    """How a next latent is sampled: Euler ``steps``, and the noise level put on the context."""

    steps: int = 4
    context_noise: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 64:
            raise OptionError(f"steps must be 1 to 64, got {self.steps}", "--steps", "1, 2 and 4 are usual")
        if not 0 <= self.context_noise <= CONTEXT_NOISE_MAX:
            what = f"context noise must be in [0, {CONTEXT_NOISE_MAX}], got {self.context_noise}"
            raise OptionError(what, "sampler", "0 to 0.2 is usual")


def check_seed(seed: int) -> None:
    """Raise OptionError unless ``seed`` is one that every generator takes."""
    if not 0 <= seed <= LARGEST_SEED:
        raise OptionError(f"must be 0 to {LARGEST_SEED}, got {seed}", "--seed", "give another seed")


def denoising_loss(
    denoiser: Denoiser,
    context: torch.Tensor,
    actions: torch.Tensor,
    target: torch.Tensor,
    generator: torch.Generator,
    metric: torch.Tensor | None = None,
    context_noise: float = CONTEXT_NOISE_MAX,
    weight: torch.Tensor | None = None,
    low_share: float = 0.0,
) -> torch.Tensor:
    """Weighted squared error of the predicted next latent, one value a sample (B,).

    Where several processes train together, the batch is this one's share, and the noise its share of all noise.

    Args:
        denoiser: the model.
        context: past latents (B, K, C, h, w), oldest first, clean.
        actions: (B, K, A).
        target: next latent (B, C, h, w).
        generator: the only source of randomness.
        metric: (C, C), applied to the channels of the error before it is squared; see
            :func:`gamengen.train_denoiser.visible_metric`.
        context_noise: highest noise level of the context; 0 leaves the augmentation out.
        weight: of each position (B, h, w); see :class:`gamengen.rarity.Rarity`.
        low_share: as of :func:`draw_sigma`.
    """
    batch, device = len(target) * count(), target.device

    def rand() -> torch.Tensor:
        return share(torch.rand(batch, generator=generator, device=device))

    def randn(like: torch.Tensor) -> torch.Tensor:
        return share(torch.randn((batch, *like.shape[1:]), generator=generator, device=device))

    sigma = share(draw_sigma(batch, generator, low_share))
    sigma = torch.where(rand() < PURE_NOISE_SHARE, 1.0, sigma)
    level = context_noise * rand().square()  # low levels, which play uses, are seen more often
    noised = context + level[:, None, None, None, None] * randn(context)
    at = sigma[:, None, None, None]
    predicted = denoiser((1 - at) * target + at * randn(target), sigma, noised, actions, level)
    error = predicted.float() - target
    if metric is not None:
        error = torch.einsum("dc,bchw->bdhw", metric, error)
    squared = error.square().mean(dim=1)
    if weight is not None:
        squared = squared * weight
    return squared.mean(dim=(1, 2)) / (sigma.square() + 0.05)


def draw_sigma(number: int, generator: torch.Generator, low_share: float) -> torch.Tensor:
    """Noise levels to train at, (number,) in (0, 1); ``low_share`` of them low, 0.1 in the median."""
    normal = torch.randn(number, generator=generator, device=generator.device)
    sigma = torch.sigmoid(SIGMA_MEAN + SIGMA_STD * normal)
    if not low_share:
        return sigma
    kind, uniform = torch.rand(2, number, generator=generator, device=generator.device)
    odds = LOW_MEDIAN / (1 - LOW_MEDIAN)
    return torch.where(kind < low_share, odds * uniform / (1 - (1 - odds) * uniform), sigma)


@torch.no_grad()
def sample_next(
    denoiser: Denoiser,
    context: torch.Tensor,
    actions: torch.Tensor,
    noise: torch.Tensor,
    config: SamplerConfig,
    each: Sequence[int] | None = None,
) -> torch.Tensor:
    """Sample the next latent by Euler steps at evenly spaced noise levels.

    Args:
        denoiser: the model.
        context: past latents (B, K, C, h, w), oldest first.
        actions: (B, K, A); the last is held now.
        noise: standard normal (1 or 2, B, C, h, w): the start, then, where the context is noised, its noise.
        config: number of steps and context noise.
        each: steps of each sample (B,), where they differ; then those of ``config`` do not count.

    Returns:
        The next latent (B, C, h, w), normalised.
    """
    level = context.new_full((len(context),), config.context_noise)
    if config.context_noise:
        context = context + config.context_noise * noise[1][:, None]
    encoded = denoiser.encode_context(context, actions, level)
    if each is not None:
        return normalise(_sample_each(denoiser, noise[0], encoded, each))
    return normalise(euler_path(denoiser, noise[0], encoded, config.steps)[-1])


def euler_path(
    denoiser: Denoiser,
    noise: torch.Tensor,
    encoded: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    steps: int,
) -> list[torch.Tensor]:
    """The points that Euler steps at evenly spaced noise levels visit from ``noise`` (B, C, h, w) on.

    Args:
        denoiser: the model.
        noise: standard normal, at level 1.
        encoded: of the context, as from :meth:`Denoiser.encode_context`.
        steps: N, how many.

    Returns:
        N + 1 latents, the point n at level 1 - n / N; the last is clean, not yet normalised.
    """
    path = [noise]
    for step in range(steps):
        sigma, following = 1 - step / steps, 1 - (step + 1) / steps
        clean = denoiser.denoise(path[-1], noise.new_full((len(noise),), sigma), encoded)
        path.append(clean + (following / sigma) * (path[-1] - clean))
    return path


def _sample_each(
    denoiser: Denoiser,
    noise: torch.Tensor,
    encoded: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    each: Sequence[int],
) -> torch.Tensor:
    """The end of :func:`euler_path` for samples of so many steps ``each``: one that has arrived costs nothing more."""
    z, steps = noise.clone(), torch.tensor(each, dtype=torch.float32, device=noise.device)
    for step in range(max(each)):
        going = torch.tensor([n for n, count in enumerate(each) if count > step], device=noise.device)
        sigma = (1 - step / steps[going]).to(z.dtype)
        share = (1 - 1 / (steps[going] - step)).to(z.dtype)[:, None, None, None]  # following sigma over this one
        features, embedding, base = (part[going] for part in encoded)
        clean = denoiser.denoise(z[going], sigma, (features, embedding, base))
        z[going] = clean + share * (z[going] - clean)
    return z
