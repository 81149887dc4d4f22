"""Geometry: games are played once more, motions and distances say where pixels were, and frames are moved so."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from agents.errors import CheckpointError, DataError, OptionError
from agents.lens import Lens
from engine.game import NeuralGame
from gamengen.autoencoder import Autoencoder, pixels_of
from gamengen.checkpoints import Checkpoint, load_checkpoint
from gamengen.compensation import warp
from gamengen.create import CreateOptions, create_game
from gamengen.denoiser import Denoiser, DenoiserConfig, seeing
from gamengen.geometry import (
    HISTORY,
    MOTION,
    Geometry,
    GeometryConfig,
    Mover,
    motion_flow,
    motions_between,
    turned,
)
from gamengen.geometry_cache import Scenes
from gamengen.latents import LatentEpisodes, gather_steps, weights_hash
from gamengen.motion_reading import read_motions
from gamengen.presets import PRESETS
from gamengen.single_stages import match, train_autoencoder, train_decoder, train_denoiser, train_geometry
from gamengen.train_geometry import GeometryTask
from gamengen.training import Trainer, TrainOptions
from recorder.episodes import read_episode
from recorder.recording import Recording
from recorder.replay import CELL, Replay

Make = Callable[..., Recording]


def test_a_game_played_once_more(basic_recording: Path) -> None:
    recording = Recording.open(basic_recording)
    path = recording.episodes()[1].path
    with Replay(recording.header) as replay:
        views = replay(path)
    episode = read_episode(path)
    count = len(episode.frames)
    assert views.distances.shape == (count, 240 // CELL, 320 // CELL)
    assert views.cameras.shape == (count, 4)
    names = episode.info.variable_names
    places = episode.variables[:, [names.index(name) for name in ("POSITION_X", "POSITION_Y")]]
    np.testing.assert_allclose(views.cameras[:, :2], places, atol=0.01)
    seen = views.distances.astype(np.float32)
    assert (seen[:, 50, 40] == 0).all(), "the gun stands on the screen"
    assert 100 < np.median(seen[:, 26, 10]) < 600, "and the wall in the world"


def test_moved_as_distances_say_frames_come_near_the_next(basic_recording: Path) -> None:
    """Of a game in which one strafes, by the real distances and motions: what the lens and the scale are for."""
    recording = Recording.open(basic_recording)
    path = recording.episodes()[0].path
    with Replay(recording.header) as replay:
        views = replay(path)
    frames = pixels_of(torch.from_numpy(read_episode(path).frames))
    motions = motions_between(torch.from_numpy(views.cameras))
    distances = torch.from_numpy(views.distances).float()[1:, None]
    flow = (distances > 0) * motion_flow(1 / distances.clamp(min=1), motions, Lens(), CELL)
    going = motions.abs().amax(1) > 2
    assert going.sum() > 3
    view = slice(0, 200)
    copied = (frames[:-1] - frames[1:])[going][:, :, view].square().mean()
    moved = (warp(frames[:-1], flow) - frames[1:])[going][:, :, view].square().mean()
    assert moved < 0.5 * copied


def test_another_game_is_told_apart(basic_recording: Path, make_recording: Make, tmp_path: Path) -> None:
    recording = Recording.open(basic_recording)
    path = recording.episodes()[0].path
    with (
        Replay(replace(recording.header, frame_skip=recording.header.frame_skip + 1)) as replay,
        pytest.raises(DataError, match="played again, the game is another at frame"),
    ):
        replay(path)
    with pytest.raises(DataError, match="only Doom tells how far things are"):
        Replay(make_recording(tmp_path / "stripes").header)


def test_motions_between_cameras() -> None:
    north = math.pi / 2  # the angle grows to the left
    cameras = torch.tensor([[0.0, 0, 41, north], [0, 10, 41, north], [5, 10, 40, north + 0.1], [5, 10, 40, -3.1]])
    told = motions_between(cameras)
    torch.testing.assert_close(told[0], torch.tensor([10.0, 0, 0, 0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(told[1], torch.tensor([0.0, 5, 0.1, -1]), atol=1e-4, rtol=0)
    assert told[2, 2] == pytest.approx(2 * math.pi - 3.1 - north - 0.1, abs=1e-4), "the short way round"


def test_where_pixels_were() -> None:
    lens, far = Lens(), torch.full((1, 1, 30, 40), 1e-6)

    def flow(inverse: torch.Tensor, *motion: float) -> torch.Tensor:
        return motion_flow(inverse, torch.tensor([motion]), lens)[0]

    assert not flow(far, 0, 0, 0, 0).abs().max() > 1e-3
    left = flow(far, 0, 0, 0.1, 0)[0, :, 19:21].mean(1)  # turned to the left, what is ahead was to the left
    torch.testing.assert_close(left, torch.full((30,), -math.tan(0.1) * 160), atol=0.5, rtol=0)
    near = far + 1 / 100
    assert flow(near, 0, 10, 0, 0)[0].mean() == pytest.approx(16, abs=0.1), "a tenth of the distance to the right"
    ahead = flow(near, 20, 0, 0, 0)
    assert ahead[0, :, 0].mean() > 10, "gone ahead, what is at the left edge was nearer the middle"
    assert ahead[0, :, -1].mean() < -10
    assert flow(near, 0, 0, 0, 5)[1].mean() == pytest.approx(-5 / 100 * 0.796 * 240, abs=0.1)


def test_fresh_it_tells_the_usual_distance() -> None:
    geometry = Geometry(GeometryConfig(4, 8, 2, 3, 5, widths=(16, 16), embedding=32)).eval()
    latents, actions = torch.randn(2, 4, 8, 3, 5), torch.rand(2, 4, 2)
    history, motion = torch.zeros(2, HISTORY, MOTION), torch.tensor([[10.0, 0, 0, 0], [0, 0, 0, 0]])
    flow, by = geometry(latents, actions, history, motion)
    assert flow.shape == (2, 2, 6, 10)
    assert torch.equal(by, motion)
    assert flow[0].abs().max() > 1
    assert flow[1].abs().max() < 1e-3


class _Pictures(nn.Module):
    """A decoder of latents that are the numbers of pictures."""

    def __init__(self, pictures: torch.Tensor) -> None:
        super().__init__()
        self._pictures = pictures

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return self._pictures[latents[:, 0, 0, 0].round().long()]


class _GoesOn(nn.Module):
    """A camera that always tells the last motion once more."""

    def forward(self, latents: torch.Tensor, actions: torch.Tensor, history: torch.Tensor) -> torch.Tensor:
        return history[:, -1]


def test_motions_are_read_from_pictures() -> None:
    torch.manual_seed(0)
    geometry = Geometry(GeometryConfig(6, 8, 2, 15, 20, widths=(16, 16), embedding=32)).eval()
    geometry.camera = _GoesOn()  # type: ignore[assignment]  # from rest on it would tell rest
    real = torch.tensor([[8.0, -2, 0.04, 0.5]])
    latents = torch.zeros(1, 6, 8, 15, 20)
    latents[0] += torch.arange(6)[:, None, None, None]
    pictures = [F.interpolate(torch.rand(1, 3, 30, 40) * 2 - 1, size=(240, 320), mode="bicubic").clamp(-1, 1)]
    with torch.no_grad():
        inverse, moves = geometry.distance(latents, torch.zeros(1, HISTORY, MOTION), real)

        def flow(motion: torch.Tensor) -> torch.Tensor:
            return moves * motion_flow(inverse, motion, geometry.config.lens)

        for _ in range(5):
            pictures.append(warp(pictures[-1], flow(real)))
        mover = Mover(geometry, _Pictures(torch.cat(pictures)))  # type: ignore[arg-type]
        read = read_motions(mover, latents, torch.rand(1, 6, 2))
        assert read.shape == (1, HISTORY, MOTION)
        assert flow(real).abs().mean() > 5
        assert (flow(read[:, -1]) - flow(real)).abs().mean() < 1
        assert abs(float(read[0, -1, 0]) - 8) < 1.5
        many = read_motions(mover, latents.expand(9, -1, -1, -1, -1), torch.rand(9, 6, 2))
    torch.testing.assert_close(many, read.expand(9, -1, -1), atol=1e-2, rtol=1e-2)


def test_what_it_sees_matters(made_up: Callable[..., Checkpoint]) -> None:
    geometry = made_up(geometry=True).geometry
    assert geometry is not None
    given = (torch.randn(1, 4, 8, 3, 5), torch.rand(1, 4, 2), torch.randn(1, HISTORY, MOTION))
    with torch.no_grad():
        flow, motion = geometry(*given)
        for number in range(3):
            other = [part + (number == at) for at, part in enumerate(given)]
            assert not torch.equal(geometry(*other)[0], flow), number
            assert not torch.equal(geometry(*other)[1], motion), number
        older = given[0].clone()
        older[:, 0] += 1  # it sees the three newest
        assert torch.equal(geometry(older, *given[1:])[0], flow)


def test_told_motions_are_those_of_a_pinhole_camera() -> None:
    """Points of the world projected from both places, by the lens alone: forward, aside, turn and up at once."""
    lens, (height, width, cell) = Lens(), (12, 16, 8)
    cameras = np.array([[100.0, -40, 41, 0.7], [112.0, -33, 44, 0.95]])
    depth = np.random.default_rng(0).uniform(60, 400, (height, width))
    y, x = np.mgrid[:height, :width]
    across, down = (x + 0.5) / width, (y + 0.5) / height

    def axes(angle: float) -> tuple[np.ndarray, np.ndarray]:  # ahead, to the right
        return np.array([math.cos(angle), math.sin(angle)]), np.array([math.sin(angle), -math.cos(angle)])

    ahead, right = axes(cameras[1, 3])
    place = cameras[1, :2] + depth[..., None] * ahead + ((across - 0.5) / lens.focal_x * depth)[..., None] * right
    z = cameras[1, 2] - (down - lens.horizon) / lens.focal_y * depth
    ahead, right = axes(cameras[0, 3])
    away = place - cameras[0, :2]
    was_x = 0.5 + lens.focal_x * (away @ right) / (away @ ahead)
    was_y = lens.horizon + lens.focal_y * (cameras[0, 2] - z) / (away @ ahead)
    expected = np.stack([(was_x - across) * width * cell, (was_y - down) * height * cell])
    inverse = 1 / torch.from_numpy(depth).float()[None, None]
    found = motion_flow(inverse, motions_between(torch.from_numpy(cameras)), lens, cell)[0]
    np.testing.assert_allclose(found.numpy(), expected, atol=0.02)


def test_a_mover_adds_the_last_frame_moved(made_up: Callable[..., Checkpoint]) -> None:
    checkpoint = made_up(geometry=True)
    assert checkpoint.geometry is not None
    latents, actions = torch.randn(2, 4, 8, 3, 5), torch.rand(2, 4, 2)
    frames = torch.randint(0, 256, (2, 48, 80, 3), dtype=torch.uint8)
    history, rest = torch.randn(2, HISTORY, MOTION), torch.zeros(2, MOTION)
    mover = Mover(checkpoint.geometry, checkpoint.autoencoder)
    with torch.no_grad():
        seen, flow, following = mover(latents, actions, frames, history, rest)
        assert flow.abs().max() < 1e-3
        assert torch.equal(seen[:, :4], latents)
        torch.testing.assert_close(seen[:, 4], checkpoint.autoencoder.encode(pixels_of(frames)), atol=1e-3, rtol=1e-3)
        assert torch.equal(following, torch.cat([history[:, 1:], rest[:, None]], dim=1))
        _, flow, following = mover(latents, actions, frames, history)
        assert flow.abs().max() > 1e-2
        told = checkpoint.geometry.camera(latents, actions, history)
        torch.testing.assert_close(following[:, -1], told)


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
    assert weights_hash(model) == weights_hash(seeing(source, moved=True, told=False)), "a stopped training goes on"
    assert model.config == replace(config, moved=True)
    assert torch.equal(model.context_first.weight[:, : 4 * 8], source.context_first.weight)
    assert not model.context_first.weight[:, 4 * 8 :].any()
    context, actions, level = torch.randn(1, 5, 8, 3, 5), torch.rand(1, 4, 2), torch.zeros(1)
    base = model.encode_context(context, actions, level)[2]
    assert torch.equal(base, context[:, -1]), "what it predicts is added to the last frame moved"


def test_motions_before_a_frame_are_of_its_episode() -> None:
    motions = torch.arange(1.0, 13)[:, None].expand(12, MOTION)
    episodes = LatentEpisodes(torch.zeros(12, 8, 3, 5), torch.zeros(12, 2), (7, 5), motions)
    found = episodes.moving(torch.tensor([6, 9, 0]))
    assert found[:, :, 0].tolist() == [[3, 4, 5, 6], [0, 0, 8, 9], [0, 0, 0, 0]]


def test_a_speed_in_the_axes_after_a_turn() -> None:
    """Of a camera that glides straight on and turns, the next motion but for its own turn is the last one turned."""
    steps = torch.arange(4.0)
    angles = torch.tensor([0.3, 1.8, 1.7, -2.0])
    cameras = torch.stack([7 * steps, -3 * steps, torch.zeros(4), angles], dim=1)
    motions = motions_between(cameras)
    torch.testing.assert_close(turned(motions[:-1]), motions[1:, :2], atol=1e-4, rtol=0)
    quarter = torch.tensor([[10.0, 0, math.pi / 2, 0]])
    torch.testing.assert_close(turned(quarter), torch.tensor([[0.0, 10]]), atol=1e-5, rtol=0)


def turning_task(seed: int = 0) -> GeometryTask:
    """Motions that the action sets, past what the picture says is near or far."""
    torch.manual_seed(seed)
    actions = torch.randint(0, 2, (400, 2)).float()
    motions = torch.zeros(400, MOTION)
    motions[:, 1] = 12 * (actions[:, 1] - actions[:, 0])
    held = actions[:, 0] * actions[:, 0].roll(1)  # a key held for two frames turns faster
    motions[:, 2] = 0.05 * actions[:, 0] + 0.1 * held
    motions[0] = motions[200] = 0
    # What is seen at the next frame is at hand in the last one.
    latents = torch.randn(400, 8, 2, 4)
    near = (latents[:, 0] > 0).float().roll(1, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    distances = (200 - 150 * near).half()
    parts = [Scenes(LatentEpisodes(latents, actions, (200, 200), motions), distances) for _ in range(2)]
    geometry = Geometry(GeometryConfig(4, 8, 2, 2, 4, widths=(32, 32), blocks=(0, 1, 1), embedding=32))
    return GeometryTask(geometry, *parts, 0, 16)


def test_it_learns(tmp_path: Path) -> None:
    figures = Trainer(turning_task(), TrainOptions(steps=400, evaluate_seconds=1000), tmp_path / "geometry").run()
    assert figures["turn_error"] < 0.003, "it follows from the keys, which turn by 0.05 and 0.15"
    assert figures["aside_error"] < 2
    assert figures["error"] < 0.5 * figures["none_error"]
    assert figures["real_motion_error"] < 0.4 * figures["none_error"]


def test_resumed_equals_uninterrupted(train_until: Callable[..., Trainer], tmp_path: Path) -> None:
    whole, stopped, resumed = (turning_task() for _ in range(3))
    Trainer(whole, TrainOptions(steps=6), tmp_path / "whole").run()
    train_until(stopped, TrainOptions(steps=6), tmp_path / "parts", 4)
    Trainer(resumed, TrainOptions(steps=6), tmp_path / "parts").run()
    assert weights_hash(resumed.model) == weights_hash(whole.model)


def test_create_with_geometry(basic_recording: Path, tmp_path: Path) -> None:
    options = CreateOptions(
        "doom/basic", tmp_path / "basic", 1.0, "tiny", from_scratch=True, data=basic_recording,
        work=tmp_path / "work", autoencoder_minutes=0.01, geometry_minutes=0.02, denoiser_minutes=0.03,
        distill_minutes=0.01, decoder_minutes=0.02, device="cpu",
    )  # fmt: skip
    summary = create_game(options)
    assert {"geometry", "cycle"} <= set(summary["stages_seconds"])
    checkpoint = load_checkpoint(tmp_path / "basic")
    assert checkpoint.geometry is not None
    assert checkpoint.spawns.motions is not None
    assert checkpoint.config.denoiser.moved
    assert checkpoint.config.autoencoder.guided
    game = NeuralGame(checkpoint, "cpu")
    assert game.step([0] * game.action_set.size).shape == (240, 320, 3)


def test_stages_by_hand(basic_recording: Path, tmp_path: Path) -> None:
    work, data, few = tmp_path / "work", basic_recording, TrainOptions(steps=2)
    train_autoencoder(data, work, "tiny", None, few, "cpu")
    assert train_geometry(data, work, "tiny", None, few, "cpu")["step"] == 2
    out = tmp_path / "game"
    train_denoiser(data, work, out, "tiny", None, few, "cpu")
    plain = load_checkpoint(out)  # whose decoder sees its latent alone
    keys = [0] * plain.config.action_set.size
    assert NeuralGame(plain, "cpu").step(keys).shape == (240, 320, 3)

    # A teacher and a student of it, by the checkpoint's own geometry.
    train_denoiser(data, tmp_path / "next", tmp_path / "teacher", "tiny", str(out), few, "cpu", faithful=True)
    match(data, tmp_path / "next", tmp_path / "matched", str(out), few, 0.01, "cpu", share=0.25)
    learned, shared = (
        load_file(tmp_path / "next" / name / "final.safetensors") for name in ("matched", "matched/shared")
    )
    before = plain.denoiser.state_dict()
    assert any(not torch.equal(part, before[name]) for name, part in learned.items())
    for name, part in shared.items():
        torch.testing.assert_close(part, 0.75 * before[name] + 0.25 * learned[name])
    with pytest.raises(OptionError, match="more than 0 and at most 1"):
        match(data, tmp_path / "next", tmp_path / "matched", str(out), few, 0.01, "cpu", share=0.0)
    matched = load_checkpoint(tmp_path / "matched")
    assert matched.config.denoiser.moved
    assert matched.geometry is not None
    assert NeuralGame(matched, "cpu").step(keys).shape == (240, 320, 3)

    train_decoder(data, work, out, "tiny", None, few, "cpu")
    made = load_checkpoint(out)
    minutes = list(made.config.training["minutes"])
    assert [name for name in minutes if name in ("autoencoder", "geometry", "denoiser", "decoder")] == [
        "autoencoder", "geometry", "denoiser", "decoder"
    ]  # fmt: skip
    assert NeuralGame(made, "cpu").step(keys).shape == (240, 320, 3)

    # Trained on, it is another network: what was trained for the one before is told apart.
    train_geometry(data, work, "tiny", None, TrainOptions(steps=3), "cpu")
    with pytest.raises(DataError, match="moved here were made by another geometry"):
        train_denoiser(data, work, out, "tiny", None, TrainOptions(steps=3), "cpu")
    for path in (work / "moved").iterdir():
        path.unlink()
    with pytest.raises(CheckpointError, match="the denoiser in the work folder was trained for another geometry"):
        train_denoiser(data, work, out, "tiny", None, TrainOptions(steps=3), "cpu")


def test_a_game_without_distances(make_recording: Make, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="only Doom tells how far things are"):
        CreateOptions("gym/stripes", tmp_path / "stripes", 1.0, geometry_minutes=1.0)
    make_recording(tmp_path / "data", (14, 13, 15))
    train_autoencoder(tmp_path / "data", tmp_path / "work", "tiny", None, TrainOptions(steps=1), "cpu")
    with pytest.raises(DataError, match="only Doom tells how far things are"):
        train_geometry(tmp_path / "data", tmp_path / "work", "tiny", None, TrainOptions(steps=1), "cpu")


def test_sizes_that_cannot_be() -> None:
    for values in ({"context": 0}, {"widths": (12, 16)}, {"seen": 0}):
        with pytest.raises(OptionError):
            GeometryConfig(**values)
    with pytest.raises(OptionError):
        replace(Autoencoder(PRESETS["tiny"].autoencoder).config, guided=True)
