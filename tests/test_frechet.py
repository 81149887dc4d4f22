"""Fréchet distance against closed forms, and features of clips whose order of distances is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from agents.errors import DataError
from gamengen.evaluation.frechet import (
    SCALES,
    ClipFeatures,
    I3DFeatures,
    ProjectFeatures,
    clips,
    fewest_clips,
    frechet_distance,
    frechet_report,
)

LENGTH, CLIPS = 8, 72
KNOWN = (7.340, 44.903, -7.408, -20.206)


class FakeI3D(torch.nn.Module):
    """Asks to be called as the real one is, and gives the mean of each channel and the change over time."""

    def forward(
        self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> torch.Tensor:
        assert rescale and resize and return_features
        assert x.ndim == 5 and x.shape[1] == 3
        scaled = x / 127.5 - 1
        change = (scaled[:, :, 1:] - scaled[:, :, :-1]).abs().mean(dim=[2, 3, 4])
        return torch.cat([scaled.mean(dim=[2, 3, 4]), change], dim=1)


class FrameClassifier(torch.nn.Module):
    """Another network altogether."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean()


@pytest.fixture(scope="module")
def real(basic_recording: Path) -> np.ndarray:
    """Real clips (72, 8, 60, 80, 3); they overlap, as the recording is small."""
    from recorder.episodes import read_episode
    from recorder.recording import Recording

    frames = [read_episode(path).frames[:, ::4, ::4] for path in Recording.open(basic_recording).episode_paths()]
    found = [clip for part in frames for clip in clips(part, LENGTH, 5)]
    assert len(found) >= CLIPS
    return np.stack(found[:CLIPS])


def blurred(frames: np.ndarray, size: int) -> np.ndarray:
    pixels = torch.from_numpy(frames).flatten(0, 1).permute(0, 3, 1, 2).float()
    found = F.avg_pool2d(pixels, size, 1, size // 2, count_include_pad=False)
    return found.permute(0, 2, 3, 1).reshape(frames.shape).to(torch.uint8).numpy()


def of_moments(mean: np.ndarray, covariance: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Features (count, F) whose mean and covariance are exactly these."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(axis=0)
    drawn = drawn @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(drawn, rowvar=False)))).T
    return drawn @ np.linalg.cholesky(covariance).T + mean


def test_distance_of_a_set_to_itself_is_nothing() -> None:
    features = np.random.default_rng(0).normal(size=(100, 20)).astype(np.float32)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[::-1]) == pytest.approx(0, abs=1e-9)


def test_distance_along_one_axis_is_the_closed_form() -> None:
    """(m1 - m2)^2 + (s1 - s2)^2."""
    first = of_moments(np.array([1.0]), np.array([[4.0]]), 50, 0)
    second = of_moments(np.array([4.0]), np.array([[25.0]]), 80, 1)
    assert frechet_distance(first, second) == pytest.approx(9 + (5 - 2) ** 2)


def test_distance_of_gaussians_that_do_not_commute_is_the_closed_form() -> None:
    """For 2x2: Tr((C1 C2)^(1/2)) = sqrt(Tr(C1 C2) + 2 sqrt(det(C1 C2)))."""
    one, two = np.array([[3.0, 1.0], [1.0, 2.0]]), np.array([[1.0, -0.7], [-0.7, 5.0]])
    first = of_moments(np.array([0.0, 1.0]), one, 60, 0)
    second = of_moments(np.array([2.0, -1.0]), two, 90, 1)
    root = np.sqrt(np.trace(one @ two) + 2 * np.sqrt(np.linalg.det(one @ two)))
    expected = 8 + np.trace(one) + np.trace(two) - 2 * root
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)


def test_distance_of_singular_covariances() -> None:
    """Equal spread in two planes of four axes, at right angles: nothing of it is shared."""
    flat = of_moments(np.zeros(2), np.eye(2), 40, 0)
    nothing = np.zeros_like(flat)
    first, second = np.concatenate([flat, nothing], axis=1), np.concatenate([nothing, flat], axis=1)
    assert frechet_distance(first, second) == pytest.approx(4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_too_few_clips() -> None:
    features = np.random.default_rng(0).normal(size=(30, 20))
    assert [fewest_clips(size) for size in (20, 64, 400)] == [21, 65, 128]
    with pytest.raises(DataError, match="the second set has 20 clips, and 20 features take 21"):
        frechet_distance(features, features[:20])
    with pytest.raises(DataError, match="not finite"):
        frechet_distance(features, np.where(features > 2, np.nan, features))


def test_clips_are_cut_where_they_fit() -> None:
    frames = np.arange(10)[:, None, None, None] * np.ones((1, 2, 2, 3))
    assert [clip[:, 0, 0, 0].tolist() for clip in clips(frames, 4, 3)] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert clips(frames, 11, 1) == []
    assert len(clips(frames, 10, 5)) == 1


def test_report_has_the_floor_beside() -> None:
    rng = np.random.default_rng(0)
    real, neural = rng.normal(size=(60, 20)), rng.normal(size=(40, 20)) + 3
    report = frechet_report(real, neural, 16)
    assert report["16"] == pytest.approx(frechet_distance(real, neural), abs=1e-4)
    assert report["real_halves_16"] == pytest.approx(frechet_distance(real[:30], real[30:]), abs=1e-4)
    assert report["real_halves_16"] < report["16"] / 3
    assert report["clips_16"] == {"real": 60, "neural": 40}
    few = frechet_report(real[:40], neural, 32)
    assert few["32"] > 0
    assert few["real_halves_32"] is None
    with pytest.raises(DataError):
        frechet_report(real, neural[:5], 16)


def test_project_features_are_fixed(real: np.ndarray) -> None:
    features = ProjectFeatures()(real[:4])
    assert features.shape == (4, ProjectFeatures.features)
    assert features.dtype == np.float32
    assert np.array_equal(features, ProjectFeatures()(real[:4]))
    assert np.array_equal(features[1:2], ProjectFeatures()(real[1:2])), "a clip's do not depend on the others"
    assert ProjectFeatures.name == "clip_frechet"


def test_project_features_of_a_known_clip() -> None:
    """They stay what they are from release to release, or figures could not be compared."""
    y, x, t = np.arange(48)[:, None], np.arange(64), np.arange(8)[:, None, None]
    grey = (x + 2 * y + 5 * t) % 64 * 4
    clip = np.stack([grey, grey[:, ::-1], grey // 2], axis=-1).astype(np.uint8)
    found = ProjectFeatures()(clip[None])[0]
    assert found[:4] == pytest.approx(KNOWN, abs=2e-3)


def test_project_features_tell_which_way_it_moves() -> None:
    x = np.arange(96)
    picture = np.broadcast_to(128 + 100 * np.sin(x / 8), (64, 96))
    right = np.stack([np.roll(picture, 2 * step, axis=1) for step in range(8)])
    frames = np.repeat(right[..., None], 3, axis=-1).astype(np.uint8)
    described = ProjectFeatures().describe(frames)
    across = described[-48:-36] * SCALES["motion"][0]
    assert np.median(across) == pytest.approx(0.5, abs=0.1), "two pixels, of a quarter's size"
    back = ProjectFeatures().describe(frames[::-1])[-48:-36] * SCALES["motion"][0]
    assert np.median(back) == pytest.approx(-0.5, abs=0.1)


def test_the_same_clips_are_no_distance_apart(real: np.ndarray) -> None:
    features = ProjectFeatures()(real)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)


def test_more_blur_is_further_away(real: np.ndarray) -> None:
    features = ProjectFeatures()
    clear = features(real)
    distances = [frechet_distance(clear, features(blurred(real, size))) for size in (3, 5, 9)]
    assert 0 < distances[0] < distances[1] < distances[2]


def test_the_order_of_frames_matters(real: np.ndarray) -> None:
    features = ProjectFeatures()
    order = np.random.default_rng(0).permutation(LENGTH)
    clear = features(real)
    shuffled = frechet_distance(clear, features(real[:, order]))
    halves = frechet_distance(clear, features(real[:, ::-1]))
    assert shuffled > 1
    assert halves > 0.01, "backwards too"


def test_frozen_clips_are_further_away_than_real_ones(real: np.ndarray) -> None:
    features = ProjectFeatures()
    clear = features(real)
    still = np.repeat(real[:, :1], LENGTH, axis=1)
    assert frechet_distance(clear, features(still)) > 1


def test_i3d_from_a_torchscript_file(tmp_path: Path, real: np.ndarray) -> None:
    path = tmp_path / "i3d.pt"
    torch.jit.script(FakeI3D()).save(str(path))
    features: ClipFeatures = I3DFeatures(path, batch=5)
    assert features.name == "fvd"
    found = features(real[:12])
    assert found.shape == (12, 6)
    assert found.dtype == np.float32
    assert found[:, :3] == pytest.approx(real[:12].mean(axis=(1, 2, 3)) / 127.5 - 1, abs=1e-4)
    assert frechet_distance(features(real), features(blurred(real, 9))) > 0


@pytest.mark.parametrize("kind", ["missing", "text", "state", "another network", "folder"])
def test_a_wrong_file_of_i3d_weights(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "i3d.pt"
    if kind == "text":
        path.write_text("not a network")
    elif kind == "state":
        torch.save({"weight": torch.zeros(3)}, path)
    elif kind == "another network":
        torch.jit.script(FrameClassifier()).save(str(path))
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(DataError) as raised:
        I3DFeatures(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
