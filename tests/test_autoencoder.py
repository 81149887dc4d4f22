"""The autoencoder: shapes, normalised latents, conversion to bytes, and that it learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.errors import OptionError
from gamengen.autoencoder import Autoencoder, AutoencoderConfig, check_frame_size, normalise, pixels_of
from gamengen.latents import encode_frames
from gamengen.muon import MuonAdamW
from gamengen.train_autoencoder import AutoencoderTask, FramePool, frame_psnr, load_frame_pool
from recorder.episodes import read_episode
from recorder.recording import Recording

SMALL = AutoencoderConfig(8, (16, 16, 32), (1, 0, 1), (0, 1, 0))


@pytest.fixture
def model() -> Autoencoder:
    torch.manual_seed(0)
    model = Autoencoder(SMALL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # nothing stays at zero
    return model.eval()


def stripes(count: int, height: int, width: int) -> np.ndarray:
    """Frames (N, H, W, 3) of shifted stripes and a bright box."""
    x = np.arange(width)
    frames = np.zeros((count, height, width, 3), np.uint8)
    for n in range(count):
        frames[n, :, (x + 3 * n) % 16 < 8] = (180, 60, 30)
        frames[n, height // 2 :, : 8 * (n + 1)] = (20, 200, 240)
    return frames


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (240, 320)])
@torch.no_grad()
def test_shapes(model: Autoencoder, size: tuple[int, int]) -> None:
    height, width = size
    latents = model.encode(torch.rand(2, 3, height, width) * 2 - 1)
    assert latents.shape == (2, 8, height // 16, width // 16)
    assert model.decode(latents).shape == (2, 3, height, width)
    assert model.decode_frames(latents).shape == (2, height, width, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_latents_have_rms_one_at_each_position(model: Autoencoder, dtype: torch.dtype) -> None:
    latents = model.to(dtype).encode((torch.rand(2, 3, 48, 80) * 2 - 1).to(dtype))
    assert latents.dtype == dtype
    rms = latents.float().square().mean(dim=1).sqrt()
    torch.testing.assert_close(rms, torch.ones_like(rms), rtol=0.01, atol=0.01)


def test_normalising_nothing_gives_no_nan() -> None:
    assert normalise(torch.zeros(1, 8, 2, 2)).isfinite().all()


@torch.no_grad()
def test_decode_frames_is_the_rounded_decode(model: Autoencoder) -> None:
    latents = normalise(torch.randn(3, 8, 3, 5)) * 3  # strong enough to run past black and white
    pixels = model.decode(latents)
    assert pixels.min() < -1
    assert pixels.max() > 1
    rounded = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    frames = model.decode_frames(latents)
    assert frames.dtype == torch.uint8
    assert torch.equal(frames, rounded)


def test_pixels_of_bytes_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3)
    pixels = pixels_of(frames)
    assert pixels.shape == (1, 3, 16, 16)
    assert (pixels.min(), pixels.max()) == (-1, 1)
    assert torch.equal(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1), frames)


@pytest.mark.parametrize(("height", "width", "text"), [(121, 160, "height must be a multiple of 16, got 121"),
                                                       (240, 0, "width must be a multiple of 16, got 0")])  # fmt: skip
def test_frame_sizes_that_do_not_fit(height: int, width: int, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        check_frame_size(height, width)


@pytest.mark.parametrize(
    "values", [{"channels": 0}, {"widths": (12, 16, 16)}, {"widths": (0, 16, 16)}, {"compensation": -1}]
)
def test_sizes_that_do_not_fit(values: dict) -> None:
    with pytest.raises(OptionError, match="autoencoder"):
        AutoencoderConfig(**values)


def test_overfits_one_batch() -> None:
    torch.manual_seed(0)
    model, frames = Autoencoder(SMALL), stripes(4, 32, 48)
    task = AutoencoderTask(model, FramePool(frames, frames), seed=0, batch=4)
    before, _ = task.evaluate(model)
    optimizer = MuonAdamW(model)
    for step in range(80):
        optimizer.zero_grad()
        task.loss(step, 0.0).backward()
        optimizer.step()
    after, pictures = task.evaluate(model)
    assert after["psnr"] > before["psnr"] + 8
    (sheet,) = pictures.values()
    assert sheet.shape == (2 * 32, 6 * 48, 3)
    assert sheet.dtype == np.uint8


def test_frames_smaller_than_a_crop_are_taken_whole() -> None:
    frames = stripes(3, 32, 48)
    task = AutoencoderTask(Autoencoder(SMALL), FramePool(frames, frames), seed=0, batch=2, crop=(128, 160))
    crops = task._crops(np.random.default_rng(0))
    assert crops.shape == (2, 32, 48, 3)
    assert task.loss(0, 0.0).isfinite()


def test_crops_see_the_bottom_of_the_frame() -> None:
    frames = np.zeros((1, 240, 320, 3), np.uint8)
    frames[:, -16:] = 255  # where the HUD is
    task = AutoencoderTask(Autoencoder(SMALL), FramePool(frames, frames), seed=0, batch=100)
    bright = task._crops(np.random.default_rng(0)).max(axis=(1, 2, 3)) == 255
    assert 0.25 < bright.mean() < 0.75


def test_the_same_step_draws_the_same_batch() -> None:
    frames = stripes(9, 32, 48)
    torch.manual_seed(0)
    task = AutoencoderTask(Autoencoder(SMALL), FramePool(frames, frames), seed=3, batch=2, crop=(16, 16))
    assert task.loss(5, 0.0) == task.loss(5, 0.0)
    assert task.loss(5, 0.0) != task.loss(6, 0.0)


def test_the_pool_holds_out_whole_episodes(
    tmp_path: Path, make_recording: Callable[..., Recording], monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = make_recording(tmp_path / "r", (6, 9, 14))
    held_out, first, second = (read_episode(path).frames for path in recording.episode_paths())
    pool = load_frame_pool(recording)
    np.testing.assert_array_equal(pool.held_out, held_out)
    np.testing.assert_array_equal(pool.train, np.concatenate([first, second]))
    few = load_frame_pool(recording, limit=8)
    np.testing.assert_array_equal(few.train, np.concatenate([first[::3], second[1::3]]))


@torch.no_grad()
def test_encoded_frames_are_half_latents(model: Autoencoder) -> None:
    frames = stripes(5, 32, 48)
    latents = encode_frames(model, frames, batch=2)
    assert latents.dtype == torch.float16
    torch.testing.assert_close(latents.float(), model.encode(pixels_of(torch.from_numpy(frames))), rtol=0.05, atol=0.05)


def test_psnr_known_answers() -> None:
    black = torch.zeros(1, 16, 16, 3, dtype=torch.uint8)
    others = torch.stack([black[0], black[0] + 1, black[0] + 255])
    psnr = frame_psnr(black, others)
    torch.testing.assert_close(psnr, torch.tensor([60.0, 48.1308, 0.0]), rtol=1e-4, atol=1e-4)
