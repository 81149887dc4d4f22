"""Flow: pictures are measured, the camera is learned from them, and frames are moved as they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import gamengen.flow_cache
from agents.errors import CheckpointError, OptionError
from engine.game import NeuralGame
from gamengen.autoencoder import Autoencoder, pixels_of
from gamengen.checkpoints import Checkpoint, load_checkpoint
from gamengen.compensation import Camera
from gamengen.create import CreateOptions, create_game
from gamengen.denoiser import Denoiser, DenoiserConfig, seeing
from gamengen.flow import FlowConfig, FlowNetwork, Mover, settle_flow
from gamengen.flow_cache import held_actions, learn_camera, measure_flow
from gamengen.latents import LatentEpisodes, gather_steps
from gamengen.presets import PRESETS
from gamengen.single_stages import train_autoencoder, train_decoder, train_denoiser, train_flow
from gamengen.train_flow import FlowTask
from gamengen.training import Trainer, TrainOptions
from recorder.recording import Recording

Make = Callable[..., Recording]


def scenery(shifts: list[int]) -> np.ndarray:
    """Pictures (N, 96, 160, 3) uint8 of one smooth texture, moved right by ``shifts``."""
    noise = torch.randn(1, 3, 14, 60, generator=torch.Generator().manual_seed(0))
    wide = F.interpolate(noise, size=(96, 400), mode="bicubic")[0]
    wide = ((wide - wide.min()) / (wide.max() - wide.min()) * 255).byte().permute(1, 2, 0).numpy()
    return np.stack([wide[:, 120 - shift : 280 - shift] for shift in shifts])


def test_a_shift_is_measured() -> None:
    flows = measure_flow(scenery([0, 3, 3, -4]))
    assert flows.shape == (4, 2, 12, 20)
    inside = flows[:, :, 2:-2, 3:-3].astype(np.float32)
    for found, expected in zip(inside, (-3, 0, 7, 0), strict=True):
        assert np.abs(np.median(found[0]) - expected) < 0.2
        assert np.abs(np.median(found[1])) < 0.2
    assert not flows[3].any(), "after the last frame none is known"


def test_a_large_shift_is_measured_from_where_the_camera_is() -> None:
    frames = scenery([0, 48])
    start = np.zeros((2, 2, 12, 20), np.float32)
    start[0, 0] = -45
    with_camera = measure_flow(frames, start)[0, 0, 2:-2, 8:-2]
    assert np.abs(np.median(with_camera.astype(np.float32)) + 48) < 0.5


def test_held_actions() -> None:
    actions = torch.arange(8.0).view(4, 2)
    held = held_actions(actions, 3)
    assert held.shape == (4, 3, 2)
    assert torch.equal(held[0], actions[[0, 0, 0]])
    assert torch.equal(held[3], actions[1:4])


def test_the_camera_goes_with_the_majority() -> None:
    actions = torch.randint(0, 2, (512, 2, 2), generator=torch.Generator().manual_seed(0)).float()
    flows = torch.zeros(512, 2, 6, 8)
    flows[:, 0] = 10 * (actions[:, -1, 1] - actions[:, -1, 0])[:, None, None]
    flows[:, :, :2] = 30 * torch.randn(512, 2, 2, 8, generator=torch.Generator().manual_seed(1))  # a match that is none
    torch.manual_seed(0)
    camera = Camera(4)
    learn_camera(camera, actions, flows, 0)
    with torch.no_grad():
        told = camera(torch.tensor([[[0.0, 0], [0, 1]], [[0, 0], [1, 1]]]), 6, 8)
    assert (told[0, 0] - 10).abs().mean() < 1.5
    assert told[1].abs().mean() < 1.5


def test_fresh_it_tells_the_camera_alone() -> None:
    network = FlowNetwork(FlowConfig(context=4, channels=8, actions=2, widths=(16, 16), embedding=32))
    torch.nn.init.normal_(network.camera[-1].weight)
    latents, actions = torch.randn(2, 4, 8, 3, 5), torch.rand(2, 4, 2)
    flow = network(latents, actions, torch.randn(2, 2, 6, 10))
    assert flow.shape == (2, 2, 6, 10)
    torch.testing.assert_close(flow, network.camera(actions, 6, 10))
    assert settle_flow(network, latents, actions).shape == (2, 2, 6, 10)


def test_what_it_sees_matters(made_up: Callable[..., Checkpoint]) -> None:
    network = made_up(flow=True).flow
    assert network is not None
    given = (torch.randn(1, 4, 8, 3, 5), torch.rand(1, 4, 2), torch.randn(1, 2, 6, 10))
    with torch.no_grad():
        flow = network(*given)
        for number in range(3):
            other = [part + (number == at) for at, part in enumerate(given)]
            assert not torch.equal(network(*other), flow), number
        older = given[0].clone()
        older[:, 0] += 1  # it sees the three newest
        assert torch.equal(network(older, *given[1:]), flow)


def test_a_mover_adds_the_last_frame_moved(made_up: Callable[..., Checkpoint]) -> None:
    checkpoint = made_up(flow=True)
    assert checkpoint.flow is not None
    torch.nn.init.zeros_(checkpoint.flow.last.weight)
    torch.nn.init.zeros_(checkpoint.flow.camera[-1].weight)
    torch.nn.init.zeros_(checkpoint.flow.camera[-1].bias)
    latents, actions = torch.randn(2, 4, 8, 3, 5), torch.rand(2, 4, 2)
    frames = torch.randint(0, 256, (2, 48, 80, 3), dtype=torch.uint8)
    with torch.no_grad():
        seen, flow = Mover(checkpoint.flow, checkpoint.autoencoder)(latents, actions, frames, torch.zeros(2, 2, 6, 10))
        assert not flow.any()
        assert torch.equal(seen[:, :4], latents)
        torch.testing.assert_close(seen[:, 4], checkpoint.autoencoder.encode(pixels_of(frames)))


def test_steps_with_moved_frames() -> None:
    latents, moved = torch.randn(2, 12, 8, 3, 5)
    episodes = LatentEpisodes(latents, torch.rand(12, 2), (7, 5), None, moved)
    context, actions, target = gather_steps(episodes, np.array([0, 7]), 4)
    assert context.shape == (2, 5, 8, 3, 5)
    assert torch.equal(context[1, -1], moved[10])
    assert torch.equal(context[1, :-1], latents[7:11])
    assert torch.equal(actions[1], episodes.actions[7:11])
    assert torch.equal(target, latents[[4, 11]])


def test_a_denoiser_begins_with_what_another_has_learned() -> None:
    config = DenoiserConfig(context=4, channels=8, actions=2, widths=(16, 24), embedding=32)
    source = Denoiser(config)
    model = seeing(source, moved=True, told=False)
    assert model.config == replace(config, moved=True)
    assert torch.equal(model.context_first.weight[:, : 4 * 8], source.context_first.weight)
    assert not model.context_first.weight[:, 4 * 8 :].any()
    context, actions, level = torch.randn(1, 5, 8, 3, 5), torch.rand(1, 4, 2), torch.zeros(1)
    base = model.encode_context(context, actions, level)[2]
    assert torch.equal(base, context[:, -1]), "what it predicts is added to the last frame moved"


def test_it_learns(tmp_path: Path) -> None:
    """Flows that the action sets, as far as the picture says: told better than none, by itself too."""
    torch.manual_seed(0)
    actions = torch.randint(0, 2, (400, 2)).float()
    latents = torch.randn(400, 8, 2, 3)
    flows = torch.zeros(400, 2, 4, 6)
    near = (latents[:, 0] > 0).float()[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)
    flows[:, :1] = 8 * (actions[:, 1] - actions[:, 0])[:, None, None, None] * (1 + near)
    parts = [LatentEpisodes(latents, actions, (200, 200), flows.half()) for _ in range(2)]
    task = FlowTask(FlowNetwork(FlowConfig(4, 8, 2, 3, (32, 32), (0, 1, 1), 32)), *parts, 0, 16)
    camera = task.model.camera[0].weight.clone()
    figures = Trainer(task, TrainOptions(steps=500, evaluate_seconds=1000), tmp_path / "flow").run()
    assert figures["error"] < 0.5 * figures["none_error"]
    assert figures["chain_error"] < 0.6 * figures["none_error"]
    assert torch.equal(task.model.camera[0].weight, camera), "the camera is learned before"


def quick_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gamengen.flow_cache, "CAMERA_STEPS", 20)


def test_create_with_a_flow_network(make_recording: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_camera(monkeypatch)
    make_recording(tmp_path / "data", (14, 13, 15))
    options = CreateOptions(
        "gym/stripes", tmp_path / "stripes", 1.0, "tiny", from_scratch=True, data=tmp_path / "data",
        work=tmp_path / "work", autoencoder_minutes=0.01, flow_minutes=0.02, denoiser_minutes=0.03,
        distill_minutes=0.01, decoder_minutes=0.02, device="cpu",
    )  # fmt: skip
    summary = create_game(options)
    assert "flow" in summary["stages_seconds"]
    checkpoint = load_checkpoint(tmp_path / "stripes")
    assert checkpoint.flow is not None
    assert checkpoint.spawns.flows is not None
    assert checkpoint.config.denoiser.moved
    assert checkpoint.config.autoencoder.guided
    assert len(checkpoint.metrics["model"]) == 3
    game = NeuralGame(checkpoint, "cpu")
    assert game.step([1, 0]).shape == (32, 48, 3)


def test_stages_by_hand(make_recording: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick_camera(monkeypatch)
    make_recording(tmp_path / "data", (14, 13, 15))
    work, data, few = tmp_path / "work", tmp_path / "data", TrainOptions(steps=2)
    train_autoencoder(data, work, "tiny", None, few, "cpu")
    assert train_flow(data, work, "tiny", None, few, "cpu")["step"] == 2
    camera = (work / "flow" / "camera.safetensors").read_bytes()
    train_denoiser(data, work, tmp_path / "game", "tiny", None, few, "cpu")
    plain = NeuralGame(tmp_path / "game", "cpu")  # whose decoder sees its latent alone
    assert plain.step([0, 1]).shape == (32, 48, 3)
    train_decoder(data, work, tmp_path / "game", "tiny", None, few, "cpu")
    made = load_checkpoint(tmp_path / "game")
    assert list(made.config.training["minutes"]) == ["autoencoder", "flow", "denoiser", "decoder"]
    assert NeuralGame(made, "cpu").step([0, 1]).shape == (32, 48, 3)

    # Trained on, it is another network: what was trained for the one before is told apart.
    train_flow(data, work, "tiny", None, TrainOptions(steps=3), "cpu")
    assert (work / "flow" / "camera.safetensors").read_bytes() == camera
    with pytest.raises(Exception, match="moved here were made by another flow"):
        train_denoiser(data, work, tmp_path / "game", "tiny", None, TrainOptions(steps=3), "cpu")
    for path in (work / "moved").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="the denoiser in the work folder was trained for another flow"):
        train_denoiser(data, work, tmp_path / "game", "tiny", None, TrainOptions(steps=3), "cpu")


def test_sizes_that_cannot_be() -> None:
    for values in ({"context": 0}, {"widths": (12, 16)}, {"seen": 0}):
        with pytest.raises(OptionError):
            FlowConfig(**values)
    with pytest.raises(OptionError):
        replace(Autoencoder(PRESETS["tiny"].autoencoder).config, guided=True)
