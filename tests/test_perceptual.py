"""Training by what is seen: it looks nearer to the real game, can be resumed, and makes a checkpoint."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import gamengen.train_perceptual
from engine.game import NeuralGame
from gamengen.checkpoints import Checkpoint, load_checkpoint
from gamengen.cli import main
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.evaluation.lpips import Lpips
from gamengen.latents import LatentEpisodes, encode_recording, load_latents, weights_hash
from gamengen.single_stages import train_autoencoder, train_denoiser
from gamengen.train_perceptual import SEEN_SHARE, PerceptualTask
from gamengen.training import Trainer, TrainOptions, step_generator
from recorder.recording import Recording

Make = Callable[..., Recording]
MakeUp = Callable[..., Checkpoint]


@pytest.fixture
def game(make_recording: Make, made_up: MakeUp, tmp_path: Path) -> tuple[Checkpoint, list[LatentEpisodes]]:
    """A checkpoint, and the latents of a recording: (train, held out)."""
    checkpoint = made_up()
    with torch.no_grad():  # a decoder whose pictures are not all grey
        checkpoint.autoencoder.decoder[-1].last.weight.normal_(std=0.3)
    recording = make_recording(tmp_path / "data", (30, 30, 20))
    encode_recording(recording, checkpoint.autoencoder, tmp_path / "latents")
    return checkpoint, list(load_latents(tmp_path / "latents", checkpoint.autoencoder))


def make_task(game: tuple[Checkpoint, list[LatentEpisodes]], eyes: nn.Module) -> PerceptualTask:
    checkpoint, latents = game
    parts = map(copy.deepcopy, (checkpoint.denoiser, checkpoint.denoiser, checkpoint.autoencoder))
    return PerceptualTask(*parts, *latents, 0, eyes, batch=8)


class Darkness(nn.Module):
    """Sees how bright a picture is, and would have it dark."""

    def forward(self, real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        assert real.shape == other.shape
        return other.mean(dim=(1, 2, 3)) + 1


def test_what_is_seen_counts_beside_the_error(
    game: tuple[Checkpoint, list[LatentEpisodes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for share in (0.0, SEEN_SHARE):
        monkeypatch.setattr(gamengen.train_perceptual, "SEEN_SHARE", share)
        task = make_task(game, Darkness())
        decoder = weights_hash(task._autoencoder)
        found[share] = Trainer(task, TrainOptions(steps=40, ema=0.9), tmp_path / str(share)).run()
        assert weights_hash(task._autoencoder) == decoder, "the decoder stays as it is"
    assert found[SEEN_SHARE]["seen"] < found[0.0]["seen"] - 0.02


def test_the_recorded_frame_is_looked_at_after_real_ones_alone(
    game: tuple[Checkpoint, list[LatentEpisodes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After own frames it is what the teacher samples in four steps."""
    task = make_task(game, Darkness())
    found: list[torch.Tensor] = []

    def note(predicted: torch.Tensor, wanted: torch.Tensor, *_: Any) -> torch.Tensor:
        found.append(wanted)
        return predicted.sum() * 0

    monkeypatch.setattr(task._looks, "distance", note)
    for step in range(3):
        drawn = copy.deepcopy(task)._draw(np.random.default_rng([0, step]), 3)
        task.loss(step, 0.0)
        assert torch.equal(found[-1][:5], drawn[2][:5])
        generator = step_generator(0, step, torch.device("cpu"))
        torch.rand(8, generator=generator)
        noise = [torch.randn(part.shape, generator=generator) for part in (drawn[0], drawn[2])][1]
        told = sample_next(task._teacher, drawn[0], drawn[1], noise[None], SamplerConfig(4))
        torch.testing.assert_close(found[-1][5:], told[5:])


def test_what_is_unusual_is_looked_at(game: tuple[Checkpoint, list[LatentEpisodes]]) -> None:
    seen: list[torch.Tensor] = []

    class Eyes(nn.Module):
        def forward(self, real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            seen.append(other.detach())
            return other.mean(dim=(1, 2, 3))

    task = make_task(game, Eyes())
    task._autoencoder.decode = lambda latents: latents  # type: ignore[method-assign]
    latents = torch.zeros(8, 8, 15, 20)
    latents[:, :, 14, 0] = 1
    weights = torch.zeros(8, 15, 20)
    weights[:, 14, 0] = 1
    task._looks.distance(latents, latents, weights, np.random.default_rng(0))
    assert seen[0].shape == (2, 8, 8, 10)
    assert (seen[0].amax(dim=(1, 2, 3)) == 1).all()


def test_where_it_picks_from(game: tuple[Checkpoint, list[LatentEpisodes]]) -> None:
    class Eyes(nn.Module):
        def forward(self, real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return other.mean(dim=(1, 2, 3))

    looks = make_task(game, Eyes())._looks
    looks._autoencoder.decode = lambda latents: latents  # type: ignore[method-assign]
    latents = torch.arange(8.0)[:, None, None, None].expand(8, 8, 15, 20)
    distances = [
        float(looks.distance(latents, latents, torch.ones(8, 15, 20), np.random.default_rng(seed), 3))
        for seed in range(20)
    ]
    assert set(distances) == {0.5, 1.0, 1.5}, "means of two of the first three"


def test_resumed_equals_uninterrupted(
    game: tuple[Checkpoint, list[LatentEpisodes]],
    lpips_weights: Path,
    train_until: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    whole, stopped, resumed = (make_task(game, Lpips.load(lpips_weights)) for _ in range(3))
    Trainer(whole, TrainOptions(steps=6), tmp_path / "whole").run()
    train_until(stopped, TrainOptions(steps=6), tmp_path / "parts", 4)
    Trainer(resumed, TrainOptions(steps=6), tmp_path / "parts").run()
    assert weights_hash(resumed.model) == weights_hash(whole.model)


def test_where_nothing_is_seen_there_is_a_gradient_too() -> None:
    network = Lpips()
    with torch.no_grad():
        network.trunk[0].bias.fill_(-100.0)  # no feature of the first layer is above 0
    pictures = torch.rand(2, 3, 32, 32, requires_grad=True)
    network(torch.rand(2, 3, 32, 32), pictures).sum().backward()
    assert pictures.grad is not None and pictures.grad.isfinite().all()


def test_the_command(
    make_recording: Make, vgg_weights: Path, lpips_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_recording(tmp_path / "data", (12, 13, 14))
    few = TrainOptions(steps=2)
    train_autoencoder(tmp_path / "data", tmp_path / "work", "tiny", None, few, "cpu")
    train_denoiser(tmp_path / "data", tmp_path / "work", tmp_path / "game", "tiny", None, few, "cpu")

    def train(*more: str, data: str = "data") -> str:
        """What the command says where it refuses; "" where it runs."""
        given = ["--data", data, "--work", "seen", "--steps", "2", "--out", "sharper", "--device", "cpu", *more]
        paths = [str(tmp_path / word) if word in (data, "seen", "sharper", "game") else word for word in given]
        with contextlib.suppress(SystemExit):
            main(["train", "perceptual", *paths])
        return capsys.readouterr().err

    start = ("--init", "game", "--lpips-weights", str(vgg_weights))
    train(*start, "--outcome-minutes", "0.01")
    plain, sharper = load_checkpoint(tmp_path / "game"), load_checkpoint(tmp_path / "sharper")
    assert (plain.config.sampler.steps, sharper.config.sampler.steps) == (4, 1)
    assert weights_hash(plain.autoencoder) == weights_hash(sharper.autoencoder)
    assert weights_hash(plain.denoiser) != weights_hash(sharper.denoiser)
    assert sharper.config.training["init"] == "game"
    assert list(sharper.config.training["minutes"]) == ["perceptual", "outcome"]
    assert NeuralGame(sharper, "cpu").tells_outcome

    assert "no file of LPIPS weights here" in train("--init", "game", "--lpips-weights", "nowhere")
    told = train("--init", "game", "--lpips-weights", str(lpips_weights))
    assert "LPIPS of alex" in told and "gamengen lpips --network vgg" in told
    assert "--outcome-minutes" in train(*start, "--outcome-minutes", "-1")
    make_recording(tmp_path / "other", (12, 13, 14), fps=20.0, frame_skip=2)
    assert "the recording is of another game than the checkpoint" in train(*start, data="other")
    assert "no such checkpoint" in train("--init", "nothing", "--lpips-weights", str(vgg_weights))
