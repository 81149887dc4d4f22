"""Training the decoder on: what its plays see, what it leaves alone, and that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import gamengen.train_decoder
import gamengen.training
from gamengen.checkpoints import Checkpoint
from gamengen.compensation import Compensation
from gamengen.latents import encode_recording, load_latents, weights_hash
from gamengen.rarity import Rarity
from gamengen.train_decoder import DecoderTask, Footage, PlayKind, Plays, find_footage
from gamengen.training import Trainer, TrainOptions
from recorder.episodes import read_episode
from recorder.recording import Recording

CONTEXT = 4
LENGTHS = (12, 9, 3, 14)


@pytest.fixture
def checkpoint(made_up: Callable[..., Checkpoint]) -> Checkpoint:
    return made_up()


@pytest.fixture
def footage(
    checkpoint: Checkpoint, make_recording: Callable[..., Recording], tmp_path: Path
) -> tuple[Footage, Footage]:
    recording = make_recording(tmp_path / "data", LENGTHS, height=48, width=80)
    encode_recording(recording, checkpoint.autoencoder, tmp_path / "latents")
    return find_footage(recording, load_latents(tmp_path / "latents", checkpoint.autoencoder))


def make_task(checkpoint: Checkpoint, footage: tuple[Footage, Footage]) -> DecoderTask:
    return DecoderTask(checkpoint.autoencoder, checkpoint.denoiser, *footage, 0, batch=4)


def test_footage_finds_frames_of_episodes_end_to_end(footage: tuple[Footage, Footage]) -> None:
    train = footage[0]
    assert train.episodes.lengths == LENGTHS[1:]
    frames = np.concatenate([read_episode(path).frames for path in train.paths])
    for first, count in ((0, 2), (7, 2), (9, 3), (12, 14)):
        assert np.array_equal(train.frames(first, count), frames[first : first + count])


def test_plays_show_their_own_frames_after_the_first(footage: tuple[Footage, Footage]) -> None:
    train = footage[0]
    every = np.concatenate([read_episode(path).frames for path in train.paths])
    plays, rng = Plays(train, 4, CONTEXT, Rarity(train.episodes.latents)), np.random.default_rng(0)
    made = torch.full((4, 48, 80, 3), 7, dtype=torch.uint8)
    own = torch.full((4, 8, 3, 5), -1.0)
    ages = [0] * 4
    for _ in range(30):
        plays.begin(rng)
        context, actions = plays.contexts()
        targets, latents = plays.targets()
        assert context.shape == (4, CONTEXT, 8, 3, 5)
        assert actions.shape == (4, CONTEXT, 2)
        for number, last in enumerate(plays.last()):
            ages[number] = ages[number] + 1 if torch.equal(last, made[number]) else 0
            same = (train.episodes.latents == latents[number]).flatten(1).all(1).nonzero()[:, 0].tolist()
            assert all(np.array_equal(targets[number], every[position]) for position in same)
            if not ages[number]:
                assert any(np.array_equal(last, every[position - 1]) for position in same)
            mine = (context[number] == -1).flatten(1).all(1)
            follows_own = number in (1, 3)
            assert int(mine.sum()) == (min(ages[number], CONTEXT) if follows_own else 0)
        plays.advance(own, made)
    assert plays.contexts()[0].isfinite().all()


def test_it_helps_and_leaves_the_encoder(
    checkpoint: Checkpoint, footage: tuple[Footage, Footage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an untrained denoiser predicts would teach it nothing but not to trust the last frame.
    monkeypatch.setattr(gamengen.train_decoder, "KINDS", (PlayKind(1, False),))
    config = checkpoint.autoencoder.config
    fresh = Compensation(config.channels, config.widths, 4, config.compensation)
    assert checkpoint.autoencoder.compensation is not None
    checkpoint.autoencoder.compensation.load_state_dict(fresh.state_dict())
    encoder, decoder = (weights_hash(part) for part in (checkpoint.autoencoder.encoder, checkpoint.autoencoder.decoder))
    task = make_task(checkpoint, footage)
    before, _ = task.evaluate(task.model)
    losses, loss = [], task.loss

    def listening(step: int, progress: float) -> torch.Tensor:
        losses.append(loss(step, progress))
        return losses[-1]

    monkeypatch.setattr(task, "loss", listening)
    figures = Trainer(task, TrainOptions(steps=80, evaluate_seconds=1000), tmp_path / "decoder").run()
    assert figures["alone_psnr"] > before["alone_psnr"] + 1
    found = torch.stack(losses).detach()
    assert found[-20:].mean() < 0.7 * found[:20].mean()
    assert weights_hash(checkpoint.autoencoder.encoder) == encoder
    assert weights_hash(checkpoint.autoencoder.decoder) != decoder


def test_compensation_alone_leaves_the_decoder(
    checkpoint: Checkpoint, footage: tuple[Footage, Footage], tmp_path: Path
) -> None:
    plain, seen = checkpoint.autoencoder.decoder, checkpoint.autoencoder.compensation
    assert seen is not None
    before = weights_hash(plain), weights_hash(seen)
    task = DecoderTask(checkpoint.autoencoder, checkpoint.denoiser, *footage, 0, batch=4, compensation_only=True)
    figures = Trainer(task, TrainOptions(steps=12, evaluate_seconds=1000), tmp_path / "decoder").run()
    assert weights_hash(plain) == before[0] and weights_hash(seen) != before[1]
    assert figures["alone_psnr"] == pytest.approx(task.evaluate(task.model)[0]["alone_psnr"], abs=0.01)


def test_an_own_play_shows_its_own_monsters(
    checkpoint: Checkpoint, footage: tuple[Footage, Footage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its latents or the real ones are rare, what it shows is what its latents show alone; elsewhere the real."""
    monkeypatch.setattr(Rarity, "rare", lambda self, latents: latents[:, 0] > 5)
    task = make_task(checkpoint, footage)
    predicted, latents = torch.zeros(2, 8, 3, 5), torch.zeros(2, 8, 3, 5)
    predicted[:, 0, 0, 0] = 9.0
    real = torch.full((2, 3, 48, 80), 0.5)
    shown = task._shown(predicted, latents, real, torch.tensor([False, True]))
    assert torch.equal(shown[0], real[0])
    alone = checkpoint.autoencoder.decode(predicted)[1]
    torch.testing.assert_close(shown[1, :, :32, :32], alone[:, :32, :32])  # there and at its neighbours
    assert torch.equal(shown[1, :, 32:], real[1, :, 32:]) and torch.equal(shown[1, :, :, 32:], real[1, :, :, 32:])
    latents[:, 0, 2, 4] = 9.0
    shown = task._shown(predicted, latents, real, torch.tensor([True, True]))
    torch.testing.assert_close(shown[1, :, 16:, 48:], alone[:, 16:, 48:])
    assert torch.equal(shown[1, :, 32:, :48], real[1, :, 32:, :48])


def test_resumed_equals_uninterrupted(
    made_up: Callable[..., Checkpoint],
    footage: tuple[Footage, Footage],
    train_until: Callable[..., Trainer],
    tmp_path: Path,
) -> None:
    options = TrainOptions(steps=8)
    whole = made_up()
    Trainer(make_task(whole, footage), options, tmp_path / "whole").run()
    train_until(make_task(made_up(), footage), options, tmp_path / "parts", 5)
    resumed = made_up()
    trainer = Trainer(make_task(resumed, footage), options, tmp_path / "parts")
    assert trainer.step == 5
    trainer.run()
    assert weights_hash(resumed.autoencoder) == weights_hash(whole.autoencoder)
