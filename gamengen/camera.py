"""How actions move the camera, learned from pairs of recorded frames before a decoder is trained.

By descent alone a large motion is hardly learned: bricks a little further look like any other bricks, and only the
whole view tells. So turns, shifts and zooms of many sizes are tried on each pair, and the camera of
:class:`gamengen.compensation.Camera` learns the best of them from the actions. Where bricks deceive this
too, they do so in a minority of pairs, and the absolute error goes with the majority. Then descent makes it exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from gamengen.autoencoder import pixels_of
from gamengen.compensation import FLOW_PIXELS, Camera, homography_flow, warp
from gamengen.training import step_generator

TURNS = tuple(0.5 * half for half in range(1, 29))  # degrees
SHIFTS = (4.0, 10.0, 20.0)  # pixels
ZOOMS = (0.02, 0.05, 0.1)
CLEAR = 0.05  # a smaller gain over the usual motion is no motion at all
CHANGED, MOST_OF_THE_VIEW = (
    0.05,
    0.1,
)  # of [-1, 1], and of the pixels: where less changes, something moved, not the view
REST_WEIGHT = 0.3
AT_ONCE = 16
TABLE_STEPS, TABLE_RATE = 600, 1e-2
PICTURE_PASSES, PICTURE_RATE = ((2, 5), (1, 4)), 1e-3  # over all pairs, at half and at full size


@dataclass(frozen=True)
class Pairs:
    """Pairs of frames: ``last`` and ``following`` (N, H, W, 3) uint8, and past actions (N, K, A)."""

    last: torch.Tensor
    following: torch.Tensor
    actions: torch.Tensor


def fit_camera(camera: Camera, pairs: Pairs, seed: int, show: Callable[[float], None]) -> None:
    """Teach ``camera``, which stays as it is after that.

    Args:
        camera: what learns.
        pairs: to learn from.
        seed: of their order.
        show: called with the share that is done, in [0, 1].
    """
    camera.requires_grad_(True)
    flows, gains = [], []
    for first in range(0, len(pairs.last), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        flow, gain = match_motion(pixels_of(pairs.last[part]), pixels_of(pairs.following[part]))
        flows.append(flow)
        gains.append(gain)
        show(0.5 * (first + len(gain)) / len(pairs.last))
    _learn_table(camera, torch.cat(flows), torch.cat(gains), pairs.actions)
    _learn_pictures(camera, pairs, seed, show)
    camera.requires_grad_(False)


def moved_error(flow: torch.Tensor, last: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of ``last`` (B, 3, H, W) moved by ``flow``, where standing still is no better.

    Without that, what stands still on the screen would hold back the flow of all that is around it (the minimum
    reprojection of Godard et al., arXiv 1806.01260, section 3.2).
    """
    still = (last - pixels).abs().mean(1)
    return torch.minimum((warp(last, flow) - pixels).abs().mean(1), still).mean()


def _learn_table(camera: Camera, flow: torch.Tensor, gain: torch.Tensor, actions: torch.Tensor) -> None:
    weight = torch.where(gain > 0, gain, REST_WEIGHT)
    optimizer = torch.optim.Adam(camera.parameters(), TABLE_RATE)
    for step in range(TABLE_STEPS):
        optimizer.param_groups[0]["lr"] = TABLE_RATE * (1 - step / TABLE_STEPS)
        error = camera(actions, flow.shape[2], flow.shape[3]) - flow
        _descend(optimizer, (weight * error.abs().mean(dim=(1, 2, 3))).sum() / weight.sum())


def _learn_pictures(camera: Camera, pairs: Pairs, seed: int, show: Callable[[float], None]) -> None:
    height, width = (size // FLOW_PIXELS for size in pairs.last.shape[1:3])
    done = 0.5
    for scale, passes in PICTURE_PASSES:
        steps = -(-passes * len(pairs.last) // AT_ONCE)
        optimizer = torch.optim.Adam(camera.parameters(), PICTURE_RATE)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = PICTURE_RATE * (1 - step / steps)
            picks = torch.randint(len(pairs.last), (AT_ONCE,), generator=step_generator(seed, 1000 * scale + step))
            last, pixels = (
                F.avg_pool2d(pixels_of(frames[picks.to(frames.device)]), scale)
                for frames in (pairs.last, pairs.following)
            )
            flow = camera(pairs.actions[picks.to(pairs.actions.device)], height, width)
            _descend(optimizer, moved_error(flow / scale, last, pixels))
            done += 0.5 / len(PICTURE_PASSES) / steps
            show(done)


def _descend(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


@torch.no_grad()
def match_motion(last: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of some usual camera motions brings ``last`` to ``pixels`` (B, 3, H, W), at half their size.

    Returns:
        Flow in pixels (B, 2, H/8, W/8), and by what share that motion is better than the usual one (B,); none and
        0 where the view rests.
    """
    height, width = pixels.shape[2:]
    tried = usual_motions(height // FLOW_PIXELS, width // FLOW_PIXELS).to(pixels.device)
    small_last, small = (F.avg_pool2d(part.float(), 2) for part in (last, pixels))
    still = (small_last - small).abs().mean(1)
    costs = []
    for flow in tried:
        moved = warp(small_last, 0.5 * flow[None].expand(len(last), -1, -1, -1))
        # What stands still on the screen, like a score bar, is no evidence against a motion.
        costs.append(torch.minimum((moved - small).abs().mean(1), still).mean((1, 2)))
    cost = torch.stack(costs)
    best, index = cost.min(dim=0)
    usual = cost.median(dim=0).values
    gain = (usual - best) / (usual + 1e-3)
    moves = (gain > CLEAR) & ((still > CHANGED).float().mean((1, 2)) > MOST_OF_THE_VIEW)
    return tried[torch.where(moves, index, 0)], torch.where(moves, gain, 0.0)


def usual_motions(height: int, width: int) -> torch.Tensor:
    """Flows in pixels (M, 2, height, width), the first of them none: turns, shifts and zooms of the whole view.

    Turns are those of :func:`turn_coefficients`.
    """
    rows: list[tuple[float, ...]] = [(0.0,) * 8]
    for degrees in TURNS:
        for angle in (math.radians(degrees), -math.radians(degrees)):
            rows.append(turn_coefficients(angle))
    for pixels in SHIFTS:
        for across in (2 * pixels / (FLOW_PIXELS * width), -2 * pixels / (FLOW_PIXELS * width)):
            down = across * width / height
            rows += [(0, 0, across, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, down, 0, 0)]
    for zoom in (*ZOOMS, *(-zoom for zoom in ZOOMS)):
        rows.append((zoom, 0, 0, 0, zoom, 0, 0, 0))
    return homography_flow(torch.tensor(rows), height, width)


def turn_coefficients(angle: float) -> tuple[float, ...]:
    """The homography by which a camera that sees 90 degrees turns to the right by ``angle``, in radians.

    As :func:`gamengen.compensation.homography_flow` takes it.
    """
    return (0, 0, math.tan(angle), 0, 1 / math.cos(angle) - 1, 0, -math.tan(angle), 0)
