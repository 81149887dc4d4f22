"""Fréchet distance between real and neural clips: FVD where I3D weights are given, else the project's own features.

A clip is (T, H, W, 3) uint8. Features turn clips into vectors; the distance is that of the two Gaussians which have
the vectors' means and covariances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from agents.errors import DataError
from gamengen.evaluation.collapse import block_means, colour_planes, halve

MOST_CLIPS_ASKED = 128
GRID = (3, 4)
# Of the means and of the deviations, by kind: about the spread between clips of 16 frames of real play in
# doom/defend_the_center, but for edges, whose spread there is smaller still than that between two parts of a room.
SCALES = {"colour": (0.01, 0.01), "edges": (0.3, 0.15), "change": (0.5, 0.3), "motion": (0.05, 0.1)}
PROBE_FRAMES, PROBE_SIZE = 16, 32


class ClipFeatures(Protocol):
    """Turns clips (B, T, H, W, 3) uint8 into features (B, F) float32; ``name`` is what the distance is reported as."""

    name: str

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Features (B, F) of clips (B, T, H, W, 3) uint8."""


def clips(frames: np.ndarray, length: int, stride: int) -> list[np.ndarray]:
    """Cut frames (N, H, W, 3) into clips (``length``, H, W, 3), one starting every ``stride`` frames; views."""
    assert length > 0 and stride > 0, (length, stride)
    return [frames[start : start + length] for start in range(0, len(frames) - length + 1, stride)]


def frechet_distance(real: np.ndarray, other: np.ndarray) -> float:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al., 2017, equation 6).

    ``|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))``, in float64, with unbiased covariances. The trace of the root is
    the sum of the singular values of ``C1^(1/2) C2^(1/2)``, whose roots come from symmetric eigendecompositions:
    it needs no root of a matrix that is not symmetric, and singular covariances do it no harm. The estimate is larger
    than the truth, the more so the fewer the clips: compare only figures of as many.

    Args:
        real: features (N, F).
        other: features (M, F).

    Raises:
        DataError: a set has not more clips than features, or than 128 where there are more features than that.
    """
    assert real.ndim == other.ndim == 2 and real.shape[1] == other.shape[1], (real.shape, other.shape)
    needed = fewest_clips(real.shape[1])
    for name, part in (("first", real), ("second", other)):
        if len(part) < needed:
            what = f"the {name} set has {len(part)} clips, and {real.shape[1]} features take {needed}"
            raise DataError(what, "the Fréchet distance", "evaluate more or longer free plays, or shorter clips")
        if not np.isfinite(part).all():
            raise DataError(f"features of the {name} set are not finite", "the Fréchet distance", "check the weights")
    first, second = real.astype(np.float64), other.astype(np.float64)
    covariances = [np.cov(part, rowvar=False).reshape(part.shape[1], -1) for part in (first, second)]
    roots = [_root(covariance) for covariance in covariances]
    mixed = np.linalg.svd(roots[0] @ roots[1], compute_uv=False).sum()
    means = ((first.mean(axis=0) - second.mean(axis=0)) ** 2).sum()
    return max(0.0, float(means + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * mixed))


def fewest_clips(features: int) -> int:
    """How many clips a set needs for :func:`frechet_distance` of so many features."""
    return min(features + 1, MOST_CLIPS_ASKED)


def frechet_report(real: np.ndarray, neural: np.ndarray, length: int) -> dict[str, Any]:
    """The figures for clips of one length, with the floor beside: one half of the real clips against the other.

    The halves are the first and the last clips: give them episode by episode, so that no play is in both. As they
    are smaller sets, their distance is somewhat above that of two sets as large as those compared.

    Args:
        real: features (N, F).
        neural: features (M, F).
        length: frames of a clip, which names the figures.

    Returns:
        ``{"16": distance, "real_halves_16": floor, "clips_16": {"real": N, "neural": M}}`` for a length of 16; the
        floor is None where half of the real clips are too few.

    Raises:
        DataError: there are too few clips.
    """
    half = len(real) // 2
    enough = half >= fewest_clips(real.shape[1])
    return {
        str(length): round(frechet_distance(real, neural), 4),
        f"real_halves_{length}": round(frechet_distance(real[:half], real[half:]), 4) if enough else None,
        f"clips_{length}": {"real": len(real), "neural": len(neural)},
    }


class I3DFeatures:
    """Logits of I3D (Carreira and Zisserman, 2017) trained on Kinetics-400: the features of FVD.

    ``path`` is the TorchScript file that StyleGAN-V (Skorokhodov et al., 2022) and most papers since use,
    ``i3d_torchscript.pt``; it scales and resizes to 224x224 itself. F is 400.

    Args:
        path: the file. A TorchScript file is a program: take it from someone you trust.
        device: where to compute; None is the CPU.
        batch: clips at a time.

    Raises:
        DataError: it is missing, not TorchScript, or another network.
    """

    name = "fvd"

    def __init__(self, path: Path, device: torch.device | None = None, batch: int = 4) -> None:
        self.path, self._device, self._batch = Path(path), device or torch.device("cpu"), batch
        remedy = "give i3d_torchscript.pt as StyleGAN-V uses it"
        if not self.path.is_file():
            raise DataError("no such file of I3D weights", self.path, remedy)
        try:
            self._network = torch.jit.load(str(self.path), map_location=self._device).eval()
        except (RuntimeError, ValueError, OSError) as error:
            raise DataError("this is no TorchScript file", self.path, remedy) from error
        # A wrong network is found now, not after an hour of play.
        self(np.zeros((1, PROBE_FRAMES, PROBE_SIZE, PROBE_SIZE, 3), np.uint8))

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Features (B, F) float32 of clips (B, T, H, W, 3) uint8; T is 10 at least."""
        assert clips.ndim == 5 and clips.shape[-1] == 3 and clips.dtype == np.uint8, (clips.shape, clips.dtype)
        found = [self._compute(clips[first : first + self._batch]) for first in range(0, len(clips), self._batch)]
        return np.concatenate(found)

    @torch.inference_mode()
    def _compute(self, clips: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(clips)).to(self._device).permute(0, 4, 1, 2, 3).float()
        remedy = "give i3d_torchscript.pt as StyleGAN-V uses it"
        try:
            features = self._network(pixels, rescale=True, resize=True, return_features=True)
        except (RuntimeError, TypeError) as error:
            raise DataError("this TorchScript file is not I3D as FVD uses it", self.path, remedy) from error
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(clips):
            raise DataError("this network does not give one row of features a clip", self.path, remedy)
        return features.float().cpu().numpy()


class ProjectFeatures:
    """The project's own features, which nothing was trained for: 64 figures a clip. Not FVD and not FID.

    Each frame is described in a grid of 3x4 parts:

    - colour: means of brightness, R - G and (R + G) / 2 - B, over 255;
    - edges: log(mean absolute difference of neighbouring pixels + 0.5 grey levels), across and down, at full, half
      and quarter size;
    - change: log(mean absolute change of brightness since the frame before + 0.5), at half and quarter size;
    - motion: how far brightness moved since the frame before, across and down, in pixels of a quarter's size: the
      least-squares estimate of Lucas and Kanade (1981) along one axis at a time.

    A clip is described by the mean and the standard deviation of each of them over its frames. These 312 figures,
    each kind divided by ``SCALES`` to be of the same weight, are projected to 64 by fixed random signs over 8, which
    keeps distances (Achlioptas, 2003). All of it is fixed, so that figures of checkpoints and machines can be compared
    where the game, the frame size and the number of clips are the same; they mean nothing beside another game's.
    """

    name = "clip_frechet"
    features = 64

    def __init__(self) -> None:
        # RandomState, not Generator: its stream is promised never to change.
        signs = np.random.RandomState(0).randint(0, 2, (self._described(), self.features))
        self._projection = (2.0 * signs - 1) / np.sqrt(self.features)

    @classmethod
    def _described(cls) -> int:
        kinds = {"colour": 3, "edges": 6, "change": 2, "motion": 2}
        return 2 * sum(kinds[kind] for kind in SCALES) * GRID[0] * GRID[1]

    def __call__(self, clips: np.ndarray) -> np.ndarray:
        """Features (B, 64) float32 of clips (B, T, H, W, 3) uint8; T is 2 at least, H and W 16."""
        assert clips.ndim == 5 and clips.shape[-1] == 3 and clips.dtype == np.uint8, (clips.shape, clips.dtype)
        assert clips.shape[1] > 1 and min(clips.shape[2:4]) >= 16, clips.shape
        return np.stack([self.describe(clip) @ self._projection for clip in clips]).astype(np.float32)

    def describe(self, clip: np.ndarray) -> np.ndarray:
        """The 312 figures (D,) float64 of a clip (T, H, W, 3) uint8, before they are projected."""
        planes = colour_planes(clip)
        full = planes[0]
        half = halve(full)
        quarter = halve(half)
        figures = {
            "colour": [_grid(plane) / 255 for plane in planes],
            "edges": [
                np.log(_grid(np.abs(np.diff(size, axis=axis))) + 0.5)
                for size in (full, half, quarter)
                for axis in (2, 1)
            ],
            "change": [np.log(_grid(np.abs(np.diff(size, axis=0))) + 0.5) for size in (half, quarter)],
            "motion": [self._moved(quarter, axis) for axis in (2, 1)],
        }
        found = []
        for kind, (of_means, of_deviations) in SCALES.items():
            over_time = np.concatenate(figures[kind], axis=1)
            found += [over_time.mean(axis=0) / of_means, over_time.std(axis=0) / of_deviations]
        return np.concatenate(found)

    def _moved(self, grey: np.ndarray, axis: int) -> np.ndarray:
        slope = np.gradient((grey[1:] + grey[:-1]) / 2, axis=axis)
        change = grey[:-1] - grey[1:]
        return _grid(slope * change) / (_grid(slope * slope) + 1)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance (F, F)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _grid(values: np.ndarray) -> np.ndarray:
    return block_means(values, *GRID)
