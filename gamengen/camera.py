"""How actions move the camera, learned from recorded frames before a decoder is trained.

From pictures alone a large motion is hardly learned by descent: bricks a little further look like any other
bricks, and only the whole view tells. So turns, shifts and zooms of many sizes are tried on pairs of frames,
and the camera of :class:`gamengen.compensation.Compensation` learns the best of them from the actions. Where
bricks deceive this too, they do so in a minority of pairs, and the absolute error goes with the majority.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from gamengen.compensation import FLOW_PIXELS, Compensation, quadratic, warp

TURN_SIZES = tuple(1.5 * step for step in range(1, 27))  # pixels in the middle of the view
OTHER_SIZES = (2.0, 4.0, 8.0, 12.0, 16.0, 24.0)  # pixels, of shifts, and of zooms at the edge
CLEAR = 0.05  # a smaller gain over the usual motion is no motion at all
FIT_STEPS, FIT_RATE = 400, 1e-2


def fit_camera(compensation: Compensation, flow: torch.Tensor, weight: torch.Tensor, actions: torch.Tensor) -> float:
    """Teach the camera flows that were found by :func:`match_motion`.

    Args:
        compensation: whose camera learns.
        flow: (N, 2, H/8, W/8) in pixels.
        weight: of each pair (N,).
        actions: (N, K, A).

    Returns:
        The mean absolute error that is left, in pixels.
    """
    compensation.camera.requires_grad_(True)
    optimizer = torch.optim.Adam(compensation.camera.parameters(), FIT_RATE)
    basis = quadratic(flow.shape[2], flow.shape[3], flow.device)
    for step in range(FIT_STEPS):
        optimizer.param_groups[0]["lr"] = FIT_RATE * (1 - step / FIT_STEPS)
        error = (compensation.camera_flow(actions, basis) - flow).abs().mean(dim=(1, 2, 3))
        loss = (weight * error).sum() / weight.sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    compensation.camera.requires_grad_(False)
    return float(loss.detach())


@torch.no_grad()
def match_motion(last: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which of some usual camera motions brings ``last`` to ``pixels`` (B, 3, H, W), at half their size.

    Returns:
        Flow in pixels (B, 2, H/8, W/8), and by what share that motion is better than the usual one (B,).
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
    return tried[torch.where(gain > CLEAR, index, 0)], gain


def usual_motions(height: int, width: int) -> torch.Tensor:
    """Flows in pixels (M, 2, height, width), the first of them none: turns, shifts and zooms of the whole view."""
    one, x, y, xx, xy, _ = quadratic(height, width)
    zero, aspect = torch.zeros_like(one), height / width
    turn = torch.stack([one + xx, aspect * xy])  # a camera that sees 90 degrees
    others = [torch.stack([one, zero]), torch.stack([zero, one]), torch.stack([x, aspect * y])]
    flows = [torch.stack([zero, zero])]
    flows += [sign * size * turn for size in TURN_SIZES for sign in (1, -1)]
    flows += [sign * size * other for other in others for size in OTHER_SIZES for sign in (1, -1)]
    return torch.stack(flows)
