"""Flow: where each pixel of the next frame was in the last one, told from latents, actions and the flow before.

A denoiser of latents finds it hard to move a picture: what lies between two latent positions is hidden in their
channels. So a network of its own tells how the view moves, by the keys (the camera) and by what is seen (near things
move more than far ones when one walks). How fast one walks is hard to see in latents, so the network is also told its
last flow. The last frame is moved so, encoded, and handed to the denoiser as one more
latent of its context, and to the decoder as pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import OptionError
from gamengen.autoencoder import Autoencoder, pixels_of
from gamengen.compensation import FLOW_PIXELS, Camera, warp
from gamengen.denoiser import UNet

FLOW_UNIT = 4.0  # pixels
CAMERA_WIDTH = 128
FINER = 2  # a latent position has so many positions of the flow each way


@dataclass(frozen=True)
class FlowConfig:
    """Sizes of a flow network.

    Args:
        context: K, past frames whose actions it sees.
        channels: C, channels of a latent.
        actions: A, channels of an action.
        seen: newest latents that it sees.
        widths: convolution widths at the latent's size and at half of it.
        blocks: residual blocks on the way down, at half size, on the way up.
        embedding: width of the FiLM embedding.
    """

    context: int = 8
    channels: int = 32
    actions: int = 3
    seen: int = 3
    widths: tuple[int, int] = (96, 192)
    blocks: tuple[int, int, int] = (1, 2, 1)
    embedding: int = 128

    def __post_init__(self) -> None:
        if min(self.context, self.channels, self.actions, self.seen, self.embedding) < 1:
            raise OptionError(
                "context, channels, actions, seen and embedding must be at least 1", "flow", "use a preset"
            )
        if any(width % 8 or width < 8 for width in self.widths):
            raise OptionError(f"widths must be multiples of 8, got {self.widths}", "flow", "use 96, 192")


class FlowNetwork(nn.Module):
    """Past latents and actions to the flow of the next frame."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        wide = config.widths[0]
        self.camera = Camera(config.context * config.actions, CAMERA_WIDTH)
        self.actions = nn.Sequential(
            nn.Linear(config.context * config.actions, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.latents_first = nn.Conv2d(config.seen * config.channels + 2 + 2 * FINER**2, wide, 3, padding=1)
        self.net = UNet(config.widths, config.blocks, config.embedding)
        self.norm = nn.GroupNorm(8, wide)
        self.last = nn.Conv2d(wide, 2 * FINER**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, latents: torch.Tensor, actions: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        """Where each pixel of the next frame was.

        Args:
            latents: past latents (B, K, C, h, w), oldest first; the newest ``seen`` of them count.
            actions: (B, K, A); the last is held now.
            last: flow of the newest frame (B, 2, 2 h, 2 w).

        Returns:
            Flow of the next frame in pixels right and down (B, 2, 2 h, 2 w) float32.
        """
        seen = latents[:, -self.config.seen :].flatten(1, 2)
        batch, _, height, width = seen.shape
        y = torch.linspace(-1, 1, height, device=seen.device, dtype=seen.dtype)[None, None, :, None]
        x = torch.linspace(-1, 1, width, device=seen.device, dtype=seen.dtype)[None, None, None]
        place = [part.expand(batch, 1, height, width) for part in (y, x)]
        embedding = F.silu(self.actions(actions.flatten(1).to(seen.dtype)))
        before = F.pixel_unshuffle(last / FLOW_PIXELS, FINER).to(seen.dtype)
        hidden = self.net(self.latents_first(torch.cat([seen, *place, before], dim=1)), embedding)
        local = F.pixel_shuffle(self.last(F.silu(self.norm(hidden))), FINER)
        return self.camera(actions, FINER * height, FINER * width) + FLOW_UNIT * local.float()


@dataclass(frozen=True)
class Mover:
    """A flow network and the encoder for what it moves."""

    network: FlowNetwork
    autoencoder: Autoencoder

    def __call__(
        self, latents: torch.Tensor, actions: torch.Tensor, frames: torch.Tensor, last: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The context with the last frame moved.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now.
            frames: the last frames as they were shown (B, H, W, 3) uint8.
            last: flow by which they came (B, 2, 2 h, 2 w).

        Returns:
            Latents (B, K + 1, C, h, w), the last of them of the moved frame, and the flow (B, 2, 2 h, 2 w).
        """
        flow = self.network(latents, actions, last)
        moved = self.autoencoder.encode(warp(pixels_of(frames), flow).to(latents.dtype))
        return torch.cat([latents, moved[:, None].to(latents.dtype)], dim=1), flow


def settle_flow(network: FlowNetwork, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    """By which flow the newest frame came, where nothing but a start is known: told from frame to frame, from none on.

    Args:
        network: which tells.
        latents: past latents (B, K, C, h, w), oldest first.
        actions: (B, K, A).

    Returns:
        Flow in pixels (B, 2, 2 h, 2 w).
    """
    count, seen = actions.shape[1], network.config.seen
    padded = torch.cat([actions[:, :1].expand(-1, count - 1, -1), actions], dim=1)
    batch, _, _, height, width = latents.shape
    flow = torch.zeros(batch, 2, FINER * height, FINER * width, device=latents.device)
    for newest in range(seen - 1, count - 1):
        flow = network(latents[:, newest + 1 - seen : newest + 1], padded[:, newest : newest + count], flow)
    return flow
