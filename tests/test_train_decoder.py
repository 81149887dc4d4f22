"""The decoder's refinement: which frames it sees, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gamengen.checkpoints import Checkpoint
from gamengen.latents import encode_recording, load_latents, weights_hash
from gamengen.train_autoencoder import encode_frames
from gamengen.train_decoder import DecoderTask, PredictedFrames, predict_frames
from gamengen.training import Trainer, TrainOptions
from recorder.recording import Recording

Predicted = tuple[PredictedFrames, PredictedFrames]


@pytest.fixture
def checkpoint(made_up: Callable[..., Checkpoint]) -> Checkpoint:
    return made_up()


@pytest.fixture
def predicted(checkpoint: Checkpoint, make_recording: Callable[..., Recording], tmp_path: Path) -> Predicted:
    recording = make_recording(tmp_path / "data", (12, 9, 3, 14), height=48, width=80)
    encode_recording(recording, checkpoint.autoencoder, tmp_path / "latents")
    latents = load_latents(tmp_path / "latents", checkpoint.autoencoder)
    return predict_frames(recording, *latents, checkpoint.denoiser, 0, limit=100)


def test_frames_and_latents_belong_together(checkpoint: Checkpoint, predicted: Predicted) -> None:
    train, held_out = predicted
    assert len(train.frames) == (9 - 4) + (14 - 4), "an episode of 3 frames has no window"
    assert len(held_out.frames) == 12 - 4
    for part in predicted:
        assert part.latents.shape == part.predicted.shape == (len(part.frames), 8, 3, 5)
        again = encode_frames(checkpoint.autoencoder, part.frames)
        assert torch.allclose(again.float(), part.latents.float(), atol=0.1)
        assert not torch.allclose(part.predicted.float(), part.latents.float(), atol=0.1)


def test_refinement_helps_and_leaves_the_encoder(checkpoint: Checkpoint, predicted: Predicted, tmp_path: Path) -> None:
    encoder, decoder = (weights_hash(part) for part in (checkpoint.autoencoder.encoder, checkpoint.autoencoder.decoder))
    task = DecoderTask(checkpoint.autoencoder, *predicted, 0, batch=4)
    before, _ = task.evaluate(task.model)
    figures = Trainer(task, TrainOptions(steps=30, evaluate_seconds=1000), tmp_path / "decoder").run()
    assert figures["psnr"] > before["psnr"] + 1
    assert figures["predicted_psnr"] > before["predicted_psnr"]
    assert weights_hash(checkpoint.autoencoder.encoder) == encoder
    assert weights_hash(checkpoint.autoencoder.decoder) != decoder


def test_the_loss_depends_on_seed_and_step_alone(checkpoint: Checkpoint, predicted: Predicted) -> None:
    losses = [float(DecoderTask(checkpoint.autoencoder, *predicted, 3).loss(step, 0.0)) for step in (5, 5, 6)]
    assert losses[0] == losses[1] != losses[2]
    assert np.isfinite(losses).all()
