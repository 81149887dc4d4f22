"""Motion compensation: flows move pixels as they say, the camera is learned from actions, pictures are mixed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from gamengen.autoencoder import Autoencoder, AutoencoderConfig, Before, normalise
from gamengen.camera import CLEAR, SHIFTS, TURNS, ZOOMS, Pairs, fit_camera, match_motion, usual_motions
from gamengen.compensation import CAMERA_UNIT, Camera, homography_flow, warp

HEIGHT, WIDTH = 64, 96


def scenery(count: int) -> torch.Tensor:
    """Smooth random pixels, no two places alike."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, HEIGHT // 4, WIDTH // 4, generator=generator) * 2 - 1
    return F.interpolate(coarse, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)


def constant_flow(right: float, down: float) -> torch.Tensor:
    return torch.tensor([right, down]).view(1, 2, 1, 1).expand(1, 2, HEIGHT // 8, WIDTH // 8)


def test_a_flow_points_to_where_a_pixel_was() -> None:
    pixels = scenery(1)
    moved = warp(pixels, constant_flow(6.0, -2.0))
    torch.testing.assert_close(moved[..., 2:, :-6], pixels[..., :-2, 6:], atol=1e-4, rtol=0)
    torch.testing.assert_close(warp(pixels, constant_flow(0.0, 0.0)), pixels, atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):  # as in training: a grid in bfloat16 would be off by part of a pixel
        torch.testing.assert_close(warp(pixels, constant_flow(0.0, 0.0)), pixels, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["turn", "shift", "zoom"])
def test_motions_are_found(name: str) -> None:
    motions = usual_motions(HEIGHT // 8, WIDTH // 8)
    shifts = 1 + 2 * len(TURNS)
    index = {"turn": 1 + 2 * 7, "shift": shifts + 3, "zoom": shifts + 4 * len(SHIFTS) + len(ZOOMS)}[name]
    last = scenery(2)
    pixels = warp(last, motions[index][None].expand(2, -1, -1, -1))
    pixels[:, :, -16:] = last[:, :, -16:]  # a score bar that stands still
    found, gain = match_motion(last, pixels)
    assert (found - motions[index]).abs().max() < 2
    assert (gain > CLEAR).all()


def test_what_stands_still_has_no_motion() -> None:
    last = scenery(2)
    found, _ = match_motion(last, last + 0.01 * torch.randn_like(last))
    assert (found == 0).all()


def test_something_that_moves_in_a_still_view_is_no_camera() -> None:
    last = scenery(2)
    pixels = last.clone()
    pixels[:, :, 20:28, 40:48] = last[:, :, 20:28, 44:52]
    found, gain = match_motion(last, pixels)
    assert (found == 0).all()
    assert (gain == 0).all()


def test_a_turn_is_a_homography() -> None:
    """Where a pixel was before a turn, from the angle at which a camera of 90 degrees sees it."""
    angle = math.radians(7)
    rows = torch.tensor([[0, 0, math.tan(angle), 0, 1 / math.cos(angle) - 1, 0, -math.tan(angle), 0]])
    flow = homography_flow(rows, HEIGHT // 8, WIDTH // 8)[0]
    x = torch.linspace(-WIDTH / 2 + 4, WIDTH / 2 - 4, WIDTH // 8)
    expected = (WIDTH / 2) * torch.tan(torch.atan(x / (WIDTH / 2)) + angle) - x
    torch.testing.assert_close(flow[0], expected.expand_as(flow[0]), atol=1e-3, rtol=1e-3)
    assert torch.equal(homography_flow(torch.zeros(1, 8), 4, 6), torch.zeros(1, 2, 4, 6))


def test_the_camera_learns_what_the_actions_do() -> None:
    torch.manual_seed(0)
    camera = Camera(4)
    motions = usual_motions(HEIGHT // 8, WIDTH // 8)
    left, right = motions[2], motions[1]
    actions = torch.randint(0, 2, (96, 2, 2)).float()
    held = (actions[:, -1, 1] - actions[:, -1, 0])[:, None, None, None]
    flow = torch.where(held > 0, right, torch.where(held < 0, left, torch.zeros_like(left)))
    frames = [((part + 1) * 127.5).permute(0, 2, 3, 1).byte() for part in (scenery(96), warp(scenery(96), flow))]
    frames[1][:, -16:] = frames[0][:, -16:]
    shown: list[float] = []
    fit_camera(camera, Pairs(*frames, actions), 0, shown.append)
    with torch.no_grad():
        for names, expected in (((0, 1), right), ((1, 0), left), ((1, 1), torch.zeros_like(left))):
            question = torch.tensor([[[0.0, 0.0], [*map(float, names)]]])
            found = camera(question, HEIGHT // 8, WIDTH // 8)[0]
            assert (found - expected).abs().mean() < 0.5, names
    assert shown == sorted(shown)
    assert shown[-1] == pytest.approx(1)
    assert not any(parameter.requires_grad for parameter in camera.parameters())


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(8, (16, 16, 16), (0, 0, 0), (1, 1, 1), compensation=6)
    return Autoencoder(config).eval()


@torch.no_grad()
def test_the_mask_can_choose_each_picture(model: Autoencoder) -> None:
    latents, last_latents = (normalise(torch.randn(2, 8, 4, 6)) for _ in range(2))
    frames = torch.randint(0, 256, (2, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    before = Before(last_latents, frames, torch.rand(2, 3, 2))
    assert model.compensation is not None
    last_of_camera = model.compensation.camera[-1]
    assert isinstance(last_of_camera, torch.nn.Linear)
    last_of_camera.bias[2] = 8 / (WIDTH / 2) / CAMERA_UNIT  # a shift of 8 pixels
    bias = model.compensation.masks_last.bias
    assert bias is not None
    bias[:16], bias[16:] = -100, -100
    assert torch.equal(model.decode_frames(latents, before), model.decode_frames(latents))
    bias[:16], bias[16:] = -100, 100
    assert torch.equal(model.decode_frames(latents, before), frames)
    bias[:16], bias[16:] = 100, -100
    assert torch.equal(model.decode_frames(latents, before)[:, :, :-8], frames[:, :, 8:])


@torch.no_grad()
def test_what_came_before_is_seen_only_by_a_compensated_decoder(model: Autoencoder) -> None:
    plain = Autoencoder(AutoencoderConfig(8, (16, 16, 16), (0, 0, 0), (1, 1, 1)))
    latents = normalise(torch.randn(1, 8, 4, 6))
    frames = torch.randint(0, 256, (1, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    before = Before(latents, frames, torch.rand(1, 3, 2))
    assert torch.equal(plain.decode_frames(latents, before), plain.decode_frames(latents))
    assert not torch.equal(model.decode_frames(latents, before), model.decode_frames(latents))


def test_decoded_pixels_are_the_shown_frames(model: Autoencoder) -> None:
    latents = normalise(torch.randn(1, 8, 4, 6))
    frames = torch.randint(0, 256, (1, HEIGHT, WIDTH, 3), dtype=torch.uint8)
    before = Before(latents, frames, torch.rand(1, 3, 2))
    with torch.no_grad():
        pixels, flow = model.decode_next(latents, before)
        shown = model.decode_frames(latents, before)
    assert flow.shape == (1, 2, HEIGHT // 8, WIDTH // 8)
    rounded = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(rounded, shown)
