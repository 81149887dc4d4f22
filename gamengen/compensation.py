"""Motion compensation: the next frame from its latent and the frame before it.

A latent holds a twenty-fourth of a frame's numbers, so a frame decoded from it alone is blurred. Most of
what it shows was on screen a moment ago. As a video codec does, and vid2vid (Wang et al., arXiv 1808.06601,
equation 4), the decoder moves the last frame by a flow that it predicts and mixes, at each pixel, three
pictures: what it decodes, the last frame moved, and the last frame as it was.
"""

from __future__ import annotations

import functools

import torch
from torch import nn
from torch.nn import functional as F

FLOW_PIXELS = 8  # a position of the flow stands for so many each way
CAMERA_UNIT = 0.1  # of the homography's coefficients: a turn of six degrees
CAMERA_WIDTH = 64
HOMOGRAPHY = 8  # coefficients
LOCAL_UNIT = 0.1  # pixels: what the features add is a correction, and must not learn by leaps
MASK_WIDTH = 16
DIFFERENCE_GAIN = 8.0
COPY_BIAS = -1.0  # fresh weights mostly decode
LARGEST_LOGIT = 30.0  # a picture that weighs e^30 is all that is seen
PICTURES = 3  # decoded, moved, still


class Camera(nn.Sequential):
    """What the view as a whole does under past actions: a homography, whose coefficients they set.

    Args:
        actions: channels of all past actions.
        width: of the layer between.
    """

    def __init__(self, actions: int, width: int = CAMERA_WIDTH) -> None:
        super().__init__(nn.Linear(actions, width), nn.SiLU(), nn.Linear(width, HOMOGRAPHY))
        for parameter in self[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, actions: torch.Tensor, height: int, width: int) -> torch.Tensor:  # type: ignore[override]
        """Actions (B, K, A) to flow in pixels (B, 2, height, width)."""
        hidden = actions.flatten(1).float()
        with torch.autocast(actions.device.type, enabled=False):  # in bfloat16 a turn would be off by part of a pixel
            for layer in self:
                if isinstance(layer, nn.Linear):
                    hidden = F.linear(hidden, layer.weight.float(), layer.bias.float())
                else:
                    hidden = layer(hidden)
        return homography_flow(CAMERA_UNIT * hidden, height, width)


class Compensation(nn.Module):
    """What a decoder needs beside itself to see the last latent, the last frame and the actions.

    The flow is a camera's (a camera that turns maps its view by a homography, whatever it sees), or one that is given,
    plus what the features add to it at each position.

    Args:
        channels: C, channels of a latent.
        widths: of the decoder, at 1/4, 1/8 and 1/16 of the frame's size.
        patch: side of the space-to-depth patches at 1/4 of the frame's size.
        actions: channels of all past actions; 0 where the flow is given.
    """

    def __init__(self, channels: int, widths: tuple[int, int, int], patch: int, actions: int) -> None:
        super().__init__()
        near, middle, far = widths
        self._patch = patch
        self.latent_first = nn.Conv2d(channels, far, 3, padding=1)
        self.camera = Camera(actions) if actions else None
        self.flow_last = nn.Conv2d(middle, 2, 3, padding=1)
        self.frames_first = nn.Conv2d(2 * 3 * patch**2, near, 1)
        self.masks_last = nn.Conv2d(near, (PICTURES - 1) * patch**2, 1)
        self.difference_first = nn.Conv2d(2 * (PICTURES - 1), MASK_WIDTH, 3, padding=1)
        self.difference_last = nn.Conv2d(MASK_WIDTH, (PICTURES - 1) * patch**2, 3, padding=1)
        zero = (self.latent_first, self.flow_last, self.frames_first, self.masks_last, self.difference_last)
        for fresh in zero:
            for parameter in fresh.parameters():
                nn.init.zeros_(parameter)
        assert self.masks_last.bias is not None
        nn.init.constant_(self.masks_last.bias, COPY_BIAS)

    def flow(self, features: torch.Tensor, actions: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """Where each pixel was.

        Args:
            features: (B, widths[1], H/8, W/8).
            actions: (B, K, A); the last is held now.
            given: flow (B, 2, H/8, W/8) to begin with, where there is no camera.

        Returns:
            Flow in pixels right and down (B, 2, H/8, W/8).
        """
        if self.camera is not None:
            given = self.camera(actions, *features.shape[2:])
        assert given is not None
        return given + LOCAL_UNIT * self.flow_last(features).float()

    def move(self, frames: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The last frames (B, H, W, 3) uint8 as patches, moved and as they were.

        Returns:
            Two pictures (B, H/4, W/4, 3, patch^2) float32 in [-1, 1].
        """
        size = self._patch
        split = frames.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        still = split.permute(0, 1, 3, 5, 2, 4).flatten(4).float().div_(127.5).sub_(1)  # bytes are quicker to reorder
        pixels = frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        moved = warp(pixels, flow, "bicubic").unflatten(3, (-1, size)).unflatten(2, (-1, size))
        return moved.permute(0, 2, 4, 1, 3, 5).flatten(4), still

    def see(self, pictures: tuple[torch.Tensor, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Features (B, widths[0], H/4, W/4) of the pictures of :meth:`move`."""
        patches = torch.cat([picture.to(dtype).flatten(3) for picture in pictures], dim=3)
        return self.frames_first(patches.permute(0, 3, 1, 2))

    def mix(
        self, decoded: torch.Tensor, features: torch.Tensor, pictures: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """The decoded picture, patches (B, 3 * patch^2, H/4, W/4), mixed with the two of :meth:`move`; as ``decoded``.

        A picture's weight depends on the features, and on how far it is from the decoded one round about.
        """
        mixed = decoded.permute(0, 2, 3, 1).float().unflatten(3, (3, -1))
        differences = [picture - mixed for picture in pictures]
        coarse = [difference.mean(4).abs().mean(3) for difference in differences]
        fine = [difference.abs().mean((3, 4)) for difference in differences]
        near = DIFFERENCE_GAIN * torch.stack([*coarse, *fine], dim=1).to(features.dtype)
        masks = self.masks_last(features) + self.difference_last(F.silu(self.difference_first(near)))
        # The softmax over the logits of the two and 0, which is the decoded picture's.
        odds = masks.permute(0, 2, 3, 1).float().clamp(max=LARGEST_LOGIT).exp().unflatten(3, (PICTURES - 1, 1, -1))
        shares = odds / (1 + odds.sum(3, keepdim=True))
        for difference, share in zip(differences, shares.unbind(3), strict=True):
            mixed = torch.addcmul(mixed, share, difference)
        return mixed.flatten(3).permute(0, 3, 1, 2)


def homography_flow(coefficients: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The flow of homographies.

    Args:
        coefficients: (B, 8), row by row what is added to the identity, over x and y in [-1, 1]; the last is fixed.
        height: of the flow, a position for every 8 pixels.
        width: likewise.

    Returns:
        Flow in pixels (B, 2, height, width).
    """
    device = coefficients.device
    y, x = torch.meshgrid(_centres(height, device), _centres(width, device), indexing="ij")
    c = coefficients[:, :, None, None]
    scale = 1 / (1 + c[:, 6] * x + c[:, 7] * y).clamp(min=0.1)
    to_x = ((1 + c[:, 0]) * x + c[:, 1] * y + c[:, 2]) * scale
    to_y = (c[:, 3] * x + (1 + c[:, 4]) * y + c[:, 5]) * scale
    return torch.stack([(to_x - x) * (FLOW_PIXELS * width / 2), (to_y - y) * (FLOW_PIXELS * height / 2)], dim=1)


def _centres(count: int, device: torch.device) -> torch.Tensor:
    return (2 * torch.arange(count, device=device) + 1) / count - 1


@functools.lru_cache(maxsize=8)
def _places(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each pixel is, x and y (2, height, width) from -1 to 1, and how long a pixel is (2, 1, 1).

    Made once a size, as play asks for it each frame.
    """
    with torch.inference_mode(False):
        y, x = torch.meshgrid(_centres(height, device), _centres(width, device), indexing="ij")
        return torch.stack([x, y]), torch.tensor([2 / width, 2 / height], device=device)[:, None, None]


def warp(pixels: torch.Tensor, flow: torch.Tensor, mode: str = "bilinear") -> torch.Tensor:
    """Take each pixel of (B, C, H, W) from where ``flow`` (B, 2, h, w), in pixels right and down, points.

    A picture that is moved again and again wants the ``mode`` "bicubic": after eight turns a tenth of its sharpness
    is left by "bilinear", four tenths by that.
    """
    grid = sampling_grid(flow, *pixels.shape[2:])
    return F.grid_sample(pixels, grid, mode=mode, padding_mode="border", align_corners=False)


def sampling_grid(flow: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Where a picture of this size is taken from, (B, height, width, 2) from -1 to 1, by ``flow`` in its pixels."""
    places, unit = _places(height, width, flow.device)
    fine = F.interpolate(flow * unit, size=(height, width), mode="bilinear", align_corners=False)
    return (fine + places).permute(0, 2, 3, 1)
