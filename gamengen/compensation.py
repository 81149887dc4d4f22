"""Motion compensation: the next frame from its latent and the frame before it.

A latent holds a two-hundredth of a frame's numbers, so a frame decoded from it alone is blurred. Most of
what it shows was on screen a moment ago. As a video codec does, and vid2vid (Wang et al., arXiv 1808.06601,
equation 4), the decoder moves the last frame by a flow that it predicts and mixes, at each pixel, three
pictures: what it decodes, the last frame moved, and the last frame as it was.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

FLOW_PIXELS = 8  # a position of the flow stands for so many each way, and one unit of it moves by as many
CAMERA_WIDTH = 64
MASK_WIDTH = 16
DIFFERENCE_GAIN = 8.0
COPY_BIAS = -1.0  # fresh weights mostly decode
PICTURES = 3  # decoded, moved, still


class Compensation(nn.Module):
    """What a decoder needs beside itself to see the last latent, the last frame and the actions.

    The flow is a camera's, quadratic in the position with coefficients that the actions set (a turn is
    nearly that), plus what the features add to it at each position.

    Args:
        channels: C, channels of a latent.
        widths: of the decoder, at 1/4, 1/8 and 1/16 of the frame's size.
        patch: side of the space-to-depth patches at 1/4 of the frame's size.
        actions: channels of all past actions.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int], patch: int, actions: int) -> None:
        super().__init__()
        near, middle, far = widths
        self._patch = patch
        self.latent_first = nn.Conv2d(channels, far, 3, padding=1)
        self.camera = nn.Sequential(
            nn.Linear(actions, CAMERA_WIDTH), nn.SiLU(), nn.Linear(CAMERA_WIDTH, 2 * len(quadratic(1, 1)))
        )
        self.flow_last = nn.Conv2d(middle, 2, 3, padding=1)
        self.frames_first = nn.Conv2d(2 * 3 * patch**2, near, 1)
        self.masks_last = nn.Conv2d(near, (PICTURES - 1) * patch**2, 1)
        self.difference_first = nn.Conv2d(2 * (PICTURES - 1), MASK_WIDTH, 3, padding=1)
        self.difference_last = nn.Conv2d(MASK_WIDTH, (PICTURES - 1) * patch**2, 3, padding=1)
        zero = (self.latent_first, self.flow_last, self.frames_first, self.masks_last, self.difference_last)
        for fresh in (*zero, self.camera[-1]):
            for parameter in fresh.parameters():
                nn.init.zeros_(parameter)
        assert self.masks_last.bias is not None
        nn.init.constant_(self.masks_last.bias, COPY_BIAS)

    def flow(self, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Where each pixel was.

        Args:
            features: (B, widths[1], H/8, W/8).
            actions: (B, K, A); the last is held now.

        Returns:
            Flow in pixels right and down (B, 2, H/8, W/8).
        """
        basis = quadratic(features.shape[2], features.shape[3], features.device)
        return self.camera_flow(actions, basis) + FLOW_PIXELS * self.flow_last(features).float()

    def camera_flow(self, actions: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
        """What the camera does under actions (B, K, A), in pixels (B, 2, h, w); ``basis`` is :func:`quadratic`."""
        coefficients = self.camera(actions.flatten(1)).float().unflatten(1, (2, -1))
        return FLOW_PIXELS * torch.einsum("bfn,nhw->bfhw", coefficients, basis)

    def move(self, last: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
        """Patches (B, 2 * 3 * patch^2, H/4, W/4) of the last pixels (B, 3, H, W), moved and as they were."""
        moved = warp(last, flow)
        return torch.cat([F.pixel_unshuffle(moved, self._patch), F.pixel_unshuffle(last, self._patch)], dim=1)

    def mix(self, decoded: torch.Tensor, features: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """The three pictures, mixed; patches (B, 3 * patch^2, H/4, W/4) as ``decoded``.

        A picture's weight depends on the features, and on how far it is from the decoded one round about.
        """
        area = self._patch**2
        pictures = torch.cat([decoded.float(), moved.float()], dim=1).unflatten(1, (PICTURES, 3, area))
        difference = pictures[:, 1:] - pictures[:, :1]
        near = DIFFERENCE_GAIN * torch.cat(
            [difference.mean(3).abs().mean(2), difference.abs().mean((2, 3))], dim=1
        ).to(features.dtype)  # fmt: skip
        masks = self.masks_last(features) + self.difference_last(F.silu(self.difference_first(near)))
        masks = masks.float().unflatten(1, (PICTURES - 1, area))
        weights = torch.cat([torch.zeros_like(masks[:, :1]), masks], dim=1).softmax(1)[:, :, None]
        return (weights * pictures).sum(1).flatten(1, 2)


def quadratic(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """1, x, y, x^2, xy, y^2 at each position, x and y in [-1, 1]: (6, height, width)."""
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=device), torch.linspace(-1, 1, width, device=device), indexing="ij"
    )
    return torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y])


def warp(pixels: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    """Take each pixel of (B, C, H, W) from where ``flow`` (B, 2, h, w), in pixels right and down, points."""
    batch, _, height, width = pixels.shape
    fine = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False)
    identity = torch.eye(2, 3, device=pixels.device).expand(batch, 2, 3)
    grid = F.affine_grid(identity, [batch, 1, height, width], align_corners=False)
    scale = torch.tensor([2 / width, 2 / height], device=pixels.device)
    return F.grid_sample(
        pixels, grid + fine.permute(0, 2, 3, 1) * scale, mode="bilinear", padding_mode="border", align_corners=False
    )  # fmt: skip
