"""The objective and the sampler, against oracles whose answers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from agents.errors import OptionError
from gamengen.autoencoder import normalise
from gamengen.diffusion import CONTEXT_NOISE_MAX, PURE_NOISE_SHARE, SamplerConfig, denoising_loss, sample_next

SHAPE = (5, 4, 3, 2)  # B, C, h, w


class Oracle:
    """Has the face of a denoiser, answers ``clean`` whatever it is asked, and remembers what that was."""

    def __init__(self, clean: torch.Tensor) -> None:
        self.clean = clean
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.context = self.level = torch.empty(0)

    def encode_context(self, context: torch.Tensor, actions: torch.Tensor, level: torch.Tensor) -> Any:
        self.context, self.level = context, level
        return ()

    def denoise(self, noisy: torch.Tensor, sigma: torch.Tensor, encoded: Any) -> torch.Tensor:
        self.asked.append((noisy, sigma))
        return self.clean

    def __call__(self, noisy: torch.Tensor, sigma: torch.Tensor, *past: torch.Tensor) -> torch.Tensor:
        return self.denoise(noisy, sigma, self.encode_context(*past))


def latents(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CONTEXT, ACTIONS = latents(1, 5, 3, 4, 3, 2), torch.zeros(5, 3, 2)
TARGET, NOISE = normalise(latents(2, *SHAPE)), latents(3, 2, *SHAPE)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_euler_is_exact_with_an_oracle(steps: int) -> None:
    """Along a straight line from noise to the clean latent, each step meets it where it should."""
    oracle: Any = Oracle(TARGET)
    made = sample_next(oracle, CONTEXT, ACTIONS, NOISE, SamplerConfig(steps))
    torch.testing.assert_close(made, TARGET, rtol=1e-4, atol=1e-5)
    assert len(oracle.asked) == steps
    for number, (noisy, sigma) in enumerate(oracle.asked):
        expected = 1 - number / steps
        torch.testing.assert_close(sigma, torch.full((5,), expected))
        torch.testing.assert_close(noisy, (1 - expected) * TARGET + expected * NOISE[0], rtol=1e-4, atol=1e-5)


def test_the_sample_is_normalised() -> None:
    oracle: Any = Oracle(7 * TARGET)
    made = sample_next(oracle, CONTEXT, ACTIONS, NOISE, SamplerConfig(2))
    torch.testing.assert_close(made, TARGET, rtol=1e-4, atol=1e-4)


def test_the_context_noise_level_is_used_and_told() -> None:
    oracle: Any = Oracle(TARGET)
    sample_next(oracle, CONTEXT, ACTIONS, NOISE, SamplerConfig(1, context_noise=0.25))
    torch.testing.assert_close(oracle.level, torch.full((5,), 0.25))
    torch.testing.assert_close(oracle.context, CONTEXT + 0.25 * NOISE[1][:, None])


def test_without_context_noise_the_context_stays_clean() -> None:
    oracle: Any = Oracle(TARGET)
    sample_next(oracle, CONTEXT, ACTIONS, NOISE[:1], SamplerConfig(1))
    assert torch.equal(oracle.level, torch.zeros(5))
    assert torch.equal(oracle.context, CONTEXT)


def test_the_loss_weighs_by_noise_level() -> None:
    oracle: Any = Oracle(TARGET + 0.5)
    loss = denoising_loss(oracle, CONTEXT, ACTIONS, TARGET, torch.Generator().manual_seed(0))
    assert loss.shape == (5,)
    ((noisy, sigma),) = oracle.asked
    torch.testing.assert_close(loss, 0.25 / (sigma.square() + 0.05))
    assert noisy.shape == SHAPE


def test_a_metric_weighs_the_channels_of_the_error() -> None:
    error = latents(5, *SHAPE)
    oracle: Any = Oracle(TARGET + error)
    metric = torch.diag(torch.tensor([2.0, 0.0, 1.0, 0.0]))
    loss = denoising_loss(oracle, CONTEXT, ACTIONS, TARGET, torch.Generator().manual_seed(0), metric)
    ((_, sigma),) = oracle.asked
    expected = (4 * error[:, 0].square() + error[:, 2].square()).mean(dim=(1, 2)) / 4 / (sigma.square() + 0.05)
    torch.testing.assert_close(loss, expected)


def test_a_perfect_answer_costs_nothing() -> None:
    oracle: Any = Oracle(TARGET)
    assert not denoising_loss(oracle, CONTEXT, ACTIONS, TARGET, torch.Generator().manual_seed(0)).any()


def test_training_sees_all_levels() -> None:
    many = 4000
    target, context = torch.zeros(many, 1, 2, 2), torch.zeros(many, 2, 1, 2, 2)
    oracle: Any = Oracle(target)
    loss = denoising_loss(oracle, context, torch.zeros(many, 2, 1), target, torch.Generator().manual_seed(0))
    assert loss.isfinite().all()
    ((noisy, sigma),) = oracle.asked
    assert sigma.min() > 0
    assert sigma.max() == 1
    assert abs(float((sigma == 1).float().mean()) - PURE_NOISE_SHARE) < 0.03
    assert 0 <= oracle.level.min() < 0.01 * CONTEXT_NOISE_MAX
    assert 0.99 * CONTEXT_NOISE_MAX < oracle.level.max() <= CONTEXT_NOISE_MAX
    # The noise is as strong as what the model is told.
    torch.testing.assert_close((noisy / sigma[:, None, None, None]).std(), torch.tensor(1.0), rtol=0.03, atol=0)
    told = oracle.level[:, None, None, None, None]
    torch.testing.assert_close((oracle.context / told).std(), torch.tensor(1.0), rtol=0.03, atol=0)


def test_the_same_generator_gives_the_same_loss() -> None:
    oracle: Any = Oracle(TARGET + 1)
    first, again, other = (
        denoising_loss(oracle, CONTEXT, ACTIONS, TARGET, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("steps", [0, -1, 65])
def test_steps_out_of_range(steps: int) -> None:
    with pytest.raises(OptionError, match=rf"steps must be 1 to 64, got {steps} ; --steps ; "):
        SamplerConfig(steps)


@pytest.mark.parametrize("noise", [-0.1, 0.7, float("nan")])
def test_context_noise_out_of_range(noise: float) -> None:
    with pytest.raises(OptionError, match="sampler"):
        SamplerConfig(2, noise)
