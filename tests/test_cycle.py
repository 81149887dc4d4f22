"""Cycle consistency of the decoder: what it learns, what it leaves alone, going on after a stop, and the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.errors import CheckpointError, OptionError
from engine.game import NeuralGame
from gamengen.autoencoder import Autoencoder
from gamengen.autoencoder_stages import load_autoencoder
from gamengen.checkpoints import Checkpoint, load_checkpoint
from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes, encode_recording, load_latents, weights_hash
from gamengen.single_stages import train_autoencoder, train_cycle, train_denoiser, train_geometry
from gamengen.train_autoencoder import FramePool, load_frame_pool
from gamengen.train_cycle import CycleTask, smooth_flow
from gamengen.training import Trainer, TrainOptions
from gamengen.work_folder import Stage
from recorder.recording import Recording

Make = Callable[..., Recording]
MakeUp = Callable[..., Checkpoint]


@pytest.fixture
def alone(made_up: MakeUp) -> Callable[[], Checkpoint]:
    """A checkpoint that sees the last frame moved, whose decoder sees its latent alone."""

    def make() -> Checkpoint:
        checkpoint = made_up(geometry=True)
        plain = Autoencoder(replace(checkpoint.autoencoder.config, compensation=0, guided=False))
        kept = plain.state_dict()
        plain.load_state_dict(
            {name: part for name, part in checkpoint.autoencoder.state_dict().items() if name in kept}
        )
        config = replace(checkpoint.config, autoencoder=plain.config)
        return replace(checkpoint, config=config, autoencoder=plain.eval())

    return make


@pytest.fixture
def pool(make_recording: Make, tmp_path: Path) -> FramePool:
    return load_frame_pool(make_recording(tmp_path / "frames", (30, 30, 20), 48, 80))


@pytest.fixture
def moving(make_recording: Make, alone: Callable[[], Checkpoint], tmp_path: Path) -> LatentEpisodes:
    """Recorded latents; the camera stood still."""
    autoencoder = alone().autoencoder
    encode_recording(make_recording(tmp_path / "plays", (30, 30, 20), 48, 80), autoencoder, tmp_path / "latents")
    train, _ = load_latents(tmp_path / "latents", autoencoder)
    return replace(train, motions=torch.zeros(len(train.latents), 4), moved=train.latents)


def with_plays(checkpoint: Checkpoint, pool: FramePool, train: LatentEpisodes) -> CycleTask:
    assert checkpoint.geometry is not None
    mover = Mover(checkpoint.geometry, checkpoint.autoencoder)
    return CycleTask(checkpoint.autoencoder, pool, 0, 8, checkpoint.denoiser, mover, train)


def test_what_is_shown_comes_to_encode_to_the_same(
    alone: Callable[[], Checkpoint], pool: FramePool, tmp_path: Path
) -> None:
    checkpoint = alone()
    encoder = weights_hash(checkpoint.autoencoder.encoder)
    task = CycleTask(checkpoint.autoencoder, pool, 0, 8)
    with torch.no_grad():
        before, _ = task.evaluate(task.model)
    after = Trainer(task, TrainOptions(None, 150, 0.02, 1e-3, ema=0.9, evaluate_seconds=1000), tmp_path / "cycle").run()
    assert after["latent_error_1"] < 0.5 * before["latent_error_1"]
    assert after["psnr"] > before["psnr"]
    assert after["psnr_8"] > before["psnr_8"]
    assert weights_hash(checkpoint.autoencoder.encoder) == encoder


def test_first_the_discriminator_learns_alone(alone: Callable[[], Checkpoint], pool: FramePool) -> None:
    task = CycleTask(alone().autoencoder, pool, 0, 8)
    loss = task.loss(0, 0.0)
    loss.backward()
    assert not loss.detach().any()
    assert task.loss(1, 0.5).detach() > 0


def test_eyes_judge_what_is_shown(alone: Callable[[], Checkpoint], pool: FramePool, moving: LatentEpisodes) -> None:
    class Eyes(torch.nn.Module):
        """Of the crops that it sees, the recorded ones are its frames."""

        def forward(self, real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            seen.append((real, other))
            return (real - other).abs().mean((1, 2, 3)) + 1

    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    blind = with_plays(alone(), pool, moving)
    task = with_plays(alone(), pool, moving)
    task._eyes = Eyes()
    assert task.loss(0, 0.5).detach() > blind.loss(0, 0.5).detach() + 0.25 * 1.5 - 1e-6
    recorded, played = seen
    assert len(recorded[0]) == len(played[0]) == 4
    assert not recorded[0].requires_grad and recorded[1].requires_grad
    torch.testing.assert_close(played[0], played[1], atol=1e-4, rtol=0)  # it is the decoder that it was


def test_plays_keep_their_look(
    alone: Callable[[], Checkpoint], pool: FramePool, moving: LatentEpisodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their pictures are asked to stay as they were, and are decoded from the play's own latents."""
    task = with_plays(alone(), pool, moving)
    assert task._recorded == 4
    monkeypatch.setattr("gamengen.train_cycle.CYCLE_WEIGHT", 0.0)
    monkeypatch.setattr("gamengen.train_cycle.CRITIC_SHARE", 0.0)
    played = []
    for weight in (0.0, 0.3):
        monkeypatch.setattr("gamengen.train_cycle.PLAYED_PICTURE", weight)
        played.append(float(with_plays(alone(), pool, moving).loss(0, 0.5).detach()))
    assert played[0] == pytest.approx(played[1]), "it is the decoder that it was"
    with torch.no_grad():
        for parameter in task._before.parameters():
            parameter.mul_(1.5)
    assert float(task.loss(0, 0.5).detach()) > 1.01 * played[0]


def test_resumed_equals_uninterrupted(
    alone: Callable[[], Checkpoint],
    pool: FramePool,
    moving: LatentEpisodes,
    train_until: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    whole, stopped, resumed = (with_plays(alone(), pool, moving) for _ in range(3))
    Trainer(whole, TrainOptions(steps=6), tmp_path / "whole").run()
    train_until(stopped, TrainOptions(steps=6), tmp_path / "parts", 4)
    Trainer(resumed, TrainOptions(steps=6), tmp_path / "parts").run()
    assert weights_hash(resumed.model) == weights_hash(whole.model)
    assert weights_hash(resumed._before) == weights_hash(whole._before) == weights_hash(alone().autoencoder)


def test_flows_are_smooth() -> None:
    flow = smooth_flow(400, 6, 10, torch.Generator().manual_seed(0))
    assert flow.shape == (400, 2, 6, 10)
    shift, grown = flow.mean((2, 3)), flow[:, 0, :, -1] - flow[:, 0, :, 0]
    assert shift[:, 0].std() == pytest.approx(8, rel=0.15)
    assert shift[:, 1].std() == pytest.approx(1.5, rel=0.15)
    assert grown.std() == pytest.approx(12, rel=0.15)
    assert flow.diff(dim=2).diff(dim=2).abs().max() < 1e-4
    assert flow.diff(dim=3).diff(dim=3).abs().max() < 1e-4


def test_the_command(basic_recording: Path, tmp_path: Path) -> None:
    work, data, few = tmp_path / "work", basic_recording, TrainOptions(steps=2)
    train_autoencoder(data, work, "tiny", None, few, "cpu")
    train_geometry(data, work, "tiny", None, few, "cpu")
    train_denoiser(data, work, tmp_path / "game", "tiny", None, few, "cpu")
    given = data, tmp_path / "next", tmp_path / "steady", str(tmp_path / "game"), None, few, "cpu"
    figures = train_cycle(*given)
    before, after = (load_checkpoint(tmp_path / name) for name in ("game", "steady"))
    assert figures["checkpoint"] == str(tmp_path / "steady")
    assert weights_hash(after.autoencoder.encoder) == weights_hash(before.autoencoder.encoder)
    assert weights_hash(after.autoencoder.decoder) != weights_hash(before.autoencoder.decoder)
    assert weights_hash(after.denoiser) == weights_hash(before.denoiser)
    assert after.config.sampler == before.config.sampler
    assert after.config.training["init"] == "game"
    assert list(after.config.training["minutes"]) == ["cycle"]
    assert NeuralGame(after, "cpu").step([0] * after.config.action_set.size).shape == (240, 320, 3)
    train_cycle(*given)  # it is done already
    with pytest.raises(CheckpointError, match="the cycle in the work folder was trained for another autoencoder"):
        train_cycle(data, tmp_path / "next", tmp_path / "again", str(tmp_path / "steady"), None, few, "cpu")


def test_where_it_is_of_no_use(tiny: Path, basic_recording: Path, made_up: MakeUp, tmp_path: Path) -> None:
    few = TrainOptions(steps=1)
    with pytest.raises(OptionError, match="it sees no frame moved"):
        train_cycle(basic_recording, tmp_path / "work", tmp_path / "out", str(tiny), None, few, "cpu")


def test_a_work_folder_gives_the_decoder_that_was_trained_so(basic_recording: Path, tmp_path: Path) -> None:
    from gamengen.autoencoder_stages import fit_autoencoder, fit_cycle

    stage = Stage(Recording.open(basic_recording), tmp_path / "work", "tiny", torch.device("cpu"))
    plain = fit_autoencoder(stage, TrainOptions(steps=2))
    steady = fit_cycle(stage, plain, TrainOptions(steps=40))
    assert weights_hash(steady) != weights_hash(plain)
    assert weights_hash(load_autoencoder(stage)) == weights_hash(steady)
