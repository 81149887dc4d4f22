"""By which motions the newest frames of a start came, read from the frames themselves.

The camera network tells the next motion from those before, and at a start none are known: told from rest on, a walk
is off by a third of its speed. But two frames and the distances between them say how the camera moved: it is the
motion by which the one frame, moved, looks most like the other. As in a particle filter, many motions near the told
one are tried, and the best few go on.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gamengen.compensation import warp
from gamengen.geometry import HISTORY, MOTION, Geometry, Mover, motion_flow

# How far a told motion may be off, see ``MOTION``: told from rest, and from known ones.
FROM_REST, FROM_KNOWN = (9.0, 6.0, 0.01, 2.5), (1.5, 1.3, 0.002, 1.3)
LEARNED = 0.55  # of the first more than the second, what is left after a frame
ROUNDS = (8, 4, 4)  # pixels each way that count as one, coarse ones first
TRIED, KEPT = 48, 6  # motions a round, and of those whose mean goes on
PICTURE_WEIGHT = 1000.0  # of the mean error of pixels in [-1, 1], beside half the squared distance from the told motion
LARGEST_ERROR = 0.4  # beyond, an error of a pixel counts no more: something else moved there
STARTS = 8  # read at once


@torch.no_grad()
def read_motions(mover: Mover, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """The motions by which the newest frames came.

    Args:
        mover: the geometry and the decoder.
        latents: past latents (B, K, C, h, w), oldest first.
        actions: (B, K, A); the last is held now.

    Returns:
        The history (B, HISTORY, 4) float32, oldest first.
    """
    parts = zip(latents.split(STARTS), actions.split(STARTS), strict=True)
    return torch.cat([_read(mover, *part) for part in parts])


def _read(mover: Mover, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    geometry, (starts, count) = mover.geometry, actions.shape[:2]
    pixels = mover.autoencoder.decode(latents.flatten(0, 1)).float().clamp(-1, 1)
    pictures = {cell: F.avg_pool2d(pixels, cell).unflatten(0, (starts, count)) for cell in set(ROUNDS)}
    past = torch.cat([latents[:, :1].expand(-1, geometry.config.seen, -1, -1, -1), latents], dim=1)
    held = torch.cat([actions[:, :1].expand(-1, count - 1, -1), actions], dim=1)
    rest, known = (torch.tensor(part, device=latents.device) for part in (FROM_REST, FROM_KNOWN))
    history = torch.zeros(starts, HISTORY, MOTION, device=latents.device)
    generator = torch.Generator().manual_seed(0)  # of tried motions: the same for each start, whatever its neighbours
    for newest in range(1, count):
        before = past[:, : geometry.config.seen + newest]
        told = geometry.camera(before, held[:, newest - 1 : newest - 1 + count], history)
        pairs = {cell: (part[:, newest - 1], part[:, newest]) for cell, part in pictures.items()}
        spread = known + (rest - known) * LEARNED ** (newest - 1)
        motion = _nearest(geometry, geometry.distance(before, history, told), pairs, told, spread, generator)
        history = torch.cat([history[:, 1:], motion[:, None]], dim=1)
    return history


def _nearest(
    geometry: Geometry,
    scene: tuple[torch.Tensor, torch.Tensor],
    pairs: dict[int, tuple[torch.Tensor, torch.Tensor]],
    told: torch.Tensor,
    spread: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Of motions within about ``spread`` (4,) of those ``told`` (B, 4), those that lead from picture to picture.

    ``scene`` is what :class:`gamengen.geometry.DistanceNetwork` tells; ``pairs`` by their pixels' size.
    """
    motion, width = told, spread
    inverse, moves = (part.repeat_interleave(TRIED, 0) for part in scene)
    for cell in ROUNDS:
        first, second = (part.repeat_interleave(TRIED, 0) for part in pairs[cell])
        steps = torch.randn(TRIED, MOTION, generator=generator).to(told.device)
        steps[0] = 0
        tried = motion[:, None] + width * steps
        flow = moves * motion_flow(inverse, tried.flatten(0, 1), geometry.config.lens)
        errors = (warp(first, flow / cell) - second).abs().clamp(max=LARGEST_ERROR)
        errors = (errors * F.interpolate(moves, size=second.shape[2:])).mean(dim=(1, 2, 3)).view(len(told), TRIED)
        doubt = ((tried - told[:, None]) / spread).square().sum(dim=2) / 2
        best = (PICTURE_WEIGHT * errors + doubt).topk(KEPT, dim=1, largest=False).indices
        motion = tried.gather(1, best[..., None].expand(-1, -1, MOTION)).mean(dim=1)
        width = width / 2
    return motion
