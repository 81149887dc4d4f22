"""The network of the judge: four small frames in, features and readings out."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

JUDGE_FRAMES = 4
PATCH = 4  # the sides of the frames are multiples of it
WIDTHS = (64, 96, 128)
FEATURES = 128
MOST_SHIFT = 8  # that is matched, of every second pixel
REGIONS = (2, 4)  # rows and columns of the picture, each matched by itself


class JudgeNetwork(nn.Module):
    """Windows of small frames to features and to the outputs of all heads, one after the other.

    What moves is also matched directly (a cost volume, as in FlowNet, arXiv 1504.06852): a turn of the camera
    is then learned from a few thousand frames, and read from blurred ones as well.
    """

    def __init__(self, height: int, width: int, outputs: int) -> None:
        super().__init__()
        one, two, three = WIDTHS
        self.patches = nn.Linear(JUDGE_FRAMES * PATCH * PATCH * 3, one)
        self.convolutions = nn.Sequential(
            nn.SiLU(), nn.Conv2d(one, two, 3, stride=2, padding=1), nn.GroupNorm(8, two),
            nn.SiLU(), nn.Conv2d(two, three, 3, stride=2, padding=1), nn.GroupNorm(8, three),
            nn.SiLU(), nn.Conv2d(three, three, 3, padding=1), nn.GroupNorm(8, three), nn.SiLU(),
        )  # fmt: skip
        cells = math.ceil(height / (4 * PATCH)) * math.ceil(width / (4 * PATCH))
        self.features = nn.Linear(three * cells, FEATURES)
        motions = (JUDGE_FRAMES - 1) * len(_shifts(width // 2)) * REGIONS[0] * REGIONS[1]
        self.motion = nn.Sequential(nn.Linear(motions, FEATURES), nn.SiLU(), nn.Linear(FEATURES, FEATURES))
        self.outputs = nn.Linear(FEATURES, outputs)

    def forward(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Windows (B, 4, h, w, 3) uint8 -> features (B, 128) and outputs (B, O), float32."""
        batch, frames, height, width, _ = windows.shape
        cells = windows.view(batch, frames, height // PATCH, PATCH, width // PATCH, PATCH, 3)
        patches = cells.permute(0, 2, 4, 1, 3, 5, 6).flatten(3)
        kind = windows.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        x = self.patches(patches.to(dtype).sub_(128).mul_(1 / 128)).permute(0, 3, 1, 2)
        green = windows[:, :, ::2, ::2, 1].float()
        found = self.features(self.convolutions(x).flatten(1)) + self.motion(_mismatch(green[:, :-1], green[:, 1:]))
        features = F.silu(found)
        return features.float(), self.outputs(features).float()


def _shifts(width: int) -> range:
    most = min(MOST_SHIFT, width // 4)
    return range(-most, most + 1)


def _mismatch(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """How badly frames match the next ones (B, T, h, w), moved left or right by some pixels, region by region.

    Returns:
        (B, T * shifts * regions), each as a share above or below the mean over the shifts.
    """
    width, costs = before.shape[-1], []
    for shift in _shifts(width):
        left, right = max(0, shift), width + min(0, shift)
        error = (before[..., left:right] - after[..., left - shift : right - shift]).abs()
        costs.append(F.adaptive_avg_pool2d(error, REGIONS))
    cost = torch.stack(costs, dim=2)
    return (cost / (cost.mean(dim=2, keepdim=True) + 1) - 1).flatten(1)
