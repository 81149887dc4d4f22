"""The denoiser: shapes, what it depends on, and that it learns the action."""

from __future__ import annotations

import pytest
import torch

from agents.errors import OptionError
from gamengen.autoencoder import normalise
from gamengen.denoiser import Denoiser, DenoiserConfig
from gamengen.diffusion import SamplerConfig, denoising_loss, sample_next
from gamengen.layers import LevelEmbedding, ResidualBlock
from gamengen.muon import MuonAdamW

SMALL = DenoiserConfig(context=3, channels=4, actions=2, widths=(16, 24), context_blocks=(1, 1, 1),
                       noise_blocks=(0, 1, 1), embedding=32)  # fmt: skip


def inputs(batch: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
    """Noisy latent, sigma, context, actions and context level."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, SMALL.channels, height, width)
    return (
        torch.randn(shape, generator=generator),
        torch.rand(batch, generator=generator),
        torch.randn(batch, SMALL.context, *shape[1:], generator=generator),
        torch.randint(0, 2, (batch, SMALL.context, SMALL.actions), generator=generator).float(),
        0.3 * torch.rand(batch, generator=generator),
    )


def shaken() -> Denoiser:
    """A denoiser none of whose weights is zero."""
    torch.manual_seed(0)
    model = Denoiser(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("size", [(15, 20), (4, 6), (3, 5), (1, 1)])
@torch.no_grad()
def test_shapes_odd_ones_too(size: tuple[int, int]) -> None:
    predicted = shaken()(*inputs(2, *size))
    assert predicted.shape == (2, SMALL.channels, *size)
    assert predicted.isfinite().all()


@torch.no_grad()
def test_both_halves_make_the_whole() -> None:
    model, (noisy, sigma, context, actions, level) = shaken(), inputs(2, 3, 5)
    encoded = model.encode_context(context, actions, level)
    assert torch.equal(model.denoise(noisy, sigma, encoded), model(noisy, sigma, context, actions, level))


@torch.no_grad()
def test_a_fresh_denoiser_answers_with_the_newest_frame() -> None:
    torch.manual_seed(0)
    model, (noisy, sigma, context, actions, level) = Denoiser(SMALL), inputs(2, 3, 5)
    model.last.bias.zero_()
    torch.testing.assert_close(model(noisy, sigma, context, actions, torch.zeros(2)), context[:, -1])
    # A noisy context is trusted less, as by the best linear guess.
    shrunk = context[:, -1] / (1 + level.square())[:, None, None, None]
    torch.testing.assert_close(model(noisy, sigma, context, actions, level), shrunk)


@pytest.mark.parametrize("which", range(5))
@torch.no_grad()
def test_the_prediction_depends_on_everything(which: int) -> None:
    model, given = shaken(), inputs(1, 4, 6)
    changed = list(given)
    changed[which] = 1 - given[which]
    assert not torch.allclose(model(*given), model(*changed), atol=1e-4)


@torch.no_grad()
def test_samples_do_not_see_each_other() -> None:
    model, given = shaken(), inputs(3, 4, 6)
    alone = model(*(part[1:2] for part in given))
    torch.testing.assert_close(model(*given)[1:2], alone, rtol=1e-4, atol=1e-4)


def test_overfits_one_batch_and_learns_the_last_action() -> None:
    """Two samples that differ in the last action alone have different next frames, and the model tells them apart."""
    torch.manual_seed(0)
    model = Denoiser(SMALL)
    context = normalise(torch.randn(1, 4, 4, 6)).expand(2, 3, 4, 4, 6).contiguous()
    target = normalise(torch.randn(2, 4, 4, 6))
    actions = torch.zeros(2, 3, 2)
    actions[0, -1, 0] = actions[1, -1, 1] = 1
    optimizer = MuonAdamW(model, adam_lr=3e-3)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(150):
        loss = denoising_loss(model, context, actions, target, generator).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])

    noise = torch.randn(1, 1, 4, 4, 6).expand(1, 2, 4, 4, 6)  # the same for both
    made = sample_next(model.eval(), context, actions, noise, SamplerConfig(2))
    error = (made[:, None] - target[None]).square().mean(dim=(2, 3, 4))  # of each made frame to each target
    assert error.diagonal().max() < 0.5 * error.flip(1).diagonal().min()


@torch.no_grad()
def test_a_fresh_block_changes_nothing() -> None:
    block = ResidualBlock(16, 8)
    block.conv2.bias.zero_()
    x = torch.randn(2, 16, 3, 5)
    torch.testing.assert_close(block(x, torch.randn(2, 8)), x)


@torch.no_grad()
def test_noise_levels_are_as_fine_in_bfloat16() -> None:
    """Play computes in bfloat16 what training computed in float32: the same levels must mean the same."""
    embedding = LevelEmbedding(32)
    embedding.linear.weight.copy_(torch.eye(32))
    embedding.linear.bias.zero_()
    level = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    features = embedding(level)
    torch.testing.assert_close(embedding.bfloat16()(level.bfloat16()).float(), features, rtol=0, atol=0.01)


@pytest.mark.parametrize("values", [{"context": 0}, {"actions": 0}, {"channels": 0}, {"widths": (12, 16)}])
def test_sizes_that_do_not_fit(values: dict) -> None:
    with pytest.raises(OptionError, match="denoiser"):
        DenoiserConfig(**values)
