"""What is unusual where it stands weighs more, and the denoiser's training sees it more often."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from test_diffusion import ACTIONS, CONTEXT, SHAPE, TARGET, Oracle

import gamengen.train_denoiser
from gamengen.autoencoder import Autoencoder
from gamengen.denoiser import Denoiser
from gamengen.diffusion import LOW_SHARE, denoising_loss
from gamengen.latents import LatentEpisodes
from gamengen.presets import PRESETS
from gamengen.rarity import GAIN, MOST, Rarity, steady_positions
from gamengen.train_denoiser import DenoiserTask

TINY = PRESETS["tiny"]


def walls(count: int, seed: int = 0) -> torch.Tensor:
    """Latents (count, 8, 2, 3) that vary in their first four channels alone."""
    latents = 0.05 * torch.randn(count, 8, 2, 3, generator=torch.Generator().manual_seed(seed))
    latents[:, :4] *= 20
    return latents


def test_the_distance_of_a_gaussian_is_about_one_and_does_not_depend_on_its_scale() -> None:
    rarity = Rarity(walls(4000))
    distance = rarity.distance(walls(500, seed=1))
    assert distance.shape == (500, 2, 3)
    # Four channels of variance 1; four of 0.0025, which the ridge of 0.02 keeps from counting in full.
    assert distance.mean().item() == pytest.approx((4 / 1.02 + 4 * 0.0025 / 0.0225) / 8, rel=0.05)


def test_what_the_walls_never_look_like_is_rare_just_where_it_stands() -> None:
    rarity, frames = Rarity(walls(4000).half()), walls(4, seed=2)
    frames[1, 6, 0, 2] = 2.0
    found = rarity.rare(frames)
    assert found.nonzero().tolist() == [[1, 0, 2]]
    weight = rarity.weight(frames)
    assert weight[1, 0, 2] == 1 + GAIN * MOST
    assert weight.min() >= 1
    assert rarity.frame_weights(frames).argmax() == 1


def test_the_same_look_elsewhere_is_usual() -> None:
    seen = walls(4000)
    seen[:, 6, 1, 0] += 2.0  # the gun, always there
    frame = walls(1, seed=3)
    frame[:, 6, 1, 0] += 2.0
    assert not Rarity(seen).rare(frame).any()


def test_weights_scale_the_loss_position_by_position() -> None:
    error = torch.randn(SHAPE, generator=torch.Generator().manual_seed(9))
    oracle: Any = Oracle(TARGET + error)
    weight = torch.rand(SHAPE[0], *SHAPE[2:], generator=torch.Generator().manual_seed(10))
    generator = torch.Generator().manual_seed(0)
    loss = denoising_loss(oracle, CONTEXT, ACTIONS, TARGET, generator, weight=weight)
    ((_, sigma),) = oracle.asked
    expected = (error.square().mean(1) * weight).mean(dim=(1, 2)) / (sigma.square() + 0.05)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("faithful", [False, True])
def test_training_draws_rare_frames_more_often_and_weighs_what_was_there_before(
    faithful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A faithful one does not ask more strongly for what comes: it draws what follows."""
    latents = walls(400)
    latents[100::40, 6] = 2.0  # a flash, in one frame of forty
    episodes = LatentEpisodes(latents.half(), torch.zeros(400, 3), (400,))
    torch.manual_seed(0)
    parts = Denoiser(TINY.denoiser), Autoencoder(TINY.autoencoder), episodes, episodes
    task = DenoiserTask(*parts, 0, batch=64, faithful=faithful)
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def spy(denoiser: Any, context: Any, held: Any, target: Any, generator: Any, metric: Any, noise: Any, *more: Any):  # type: ignore[no-untyped-def]
        seen.append((context, target, more[0]))
        assert more[1] == (LOW_SHARE if faithful else 0)
        return torch.zeros(len(target))

    monkeypatch.setattr(gamengen.train_denoiser, "denoising_loss", spy)
    for step in range(10):
        task.loss(step, 0.0)
    context, target, weight = (torch.cat(parts) for parts in zip(*seen, strict=True))
    flash, before = target[:, 6].mean((1, 2)) > 1, context[:, -1, 6].mean((1, 2)) > 1
    usual = 8 / 396
    assert np.isclose(usual, 0.02, rtol=0.05)
    often, seldom = (before, flash) if faithful else (flash, before)
    assert often.float().mean() > 4 * usual
    assert 0 < seldom.float().mean() < 2 * usual
    assert not (flash & before).any()
    heavy = weight.mean(dim=(1, 2)) > 5
    assert torch.equal(heavy, before if faithful else flash | before)


def test_what_stays_while_the_picture_moves_is_steady() -> None:
    latents = torch.randn(400, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    latents[:, :, 2] = latents[0, :, 2]  # the score bar
    latents[100:200] = latents[100]  # nothing moves: that says nothing
    episodes = LatentEpisodes(latents.half(), torch.zeros(400, 3), (150, 250))
    steady = steady_positions(episodes)
    assert steady.tolist() == [[0.0] * 4, [0.0] * 4, [1.0] * 4]
    still = LatentEpisodes(latents[:1].half().expand(20, -1, -1, -1), torch.zeros(20, 3), (20,))
    assert not steady_positions(still).any()
