"""Geometry: how the camera moves, how far things are, and so where each pixel of the next frame was in the last one.

A denoiser of latents finds it hard to move a picture: what lies between two latent positions is hidden in their
channels. But how the picture of a world that stands still moves is no secret. It follows from how the camera moves,
four numbers a frame, and from how far things are. So one network tells the next *motion* from the keys, the motions
before and what stands in the way; another tells *distances* from the latents. The last frame so moved is encoded and
handed to the denoiser as one more latent of its context, and the flow to its decoder.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import OptionError
from agents.lens import Lens
from gamengen.autoencoder import FACTOR, Autoencoder, pixels_of
from gamengen.compensation import warp
from gamengen.denoiser import UNet

MOTION = 4  # forward, to the right (units of the map), turn to the left (radians), up (units of the map)
MOTION_UNIT = (10.0, 10.0, 0.1, 4.0)
HISTORY = 4  # motions that are remembered: the view bobs once in ten frames
FINER = 2  # a latent position has so many positions of the flow each way
USUAL_DISTANCE = 90.0  # units of the map
BEHIND = 0.05  # no nearer to the plane of the lens, as a share of the distance
LOOK_WIDTH, LOOK_SIZE, TURN_WIDTH, MOTION_WIDTH = 64, 64, 128, 256
SPEED_KEPT = 0.82  # from frame to frame, at first: Doom's friction leaves 0.906 of it each 35th of a second
DROPOUT = 0.3
STANDS_GAIN, STANDS_BIAS = 4.0, 2.0  # fresh weights mostly move


@functools.lru_cache(maxsize=8)
def motion_unit(device: torch.device) -> torch.Tensor:
    """``MOTION_UNIT`` (4,) float32 there; made once, as a copy from the host cannot be part of a CUDA graph."""
    with torch.inference_mode(False):
        return torch.tensor(MOTION_UNIT, device=device)


@dataclass(frozen=True)
class GeometryConfig:
    """Sizes of the geometry networks, and the lens.

    Args:
        context: K, past frames whose actions they see.
        channels: C, channels of a latent.
        actions: A, channels of an action.
        height: of a latent.
        width: of a latent.
        seen: newest latents from which distances are told; motions are from the newest two.
        widths: convolution widths at the latent's size and at half of it.
        blocks: residual blocks on the way down, at half size, on the way up.
        embedding: width of the FiLM embedding.
        lens: of the game.
    """

    context: int = 8
    channels: int = 32
    actions: int = 3
    height: int = 15
    width: int = 20
    seen: int = 3
    widths: tuple[int, int] = (96, 192)
    blocks: tuple[int, int, int] = (1, 2, 1)
    embedding: int = 128
    lens: Lens = field(default_factory=Lens)

    def __post_init__(self) -> None:
        sizes = (self.channels, self.actions, self.height, self.width, self.seen, self.embedding)
        if min(sizes) < 1 or self.context < 2 or self.seen > self.context:
            what = "sizes must be at least 1, context at least 2 and no less than seen"
            raise OptionError(what, "geometry", "use a preset")
        if any(width % 8 or width < 8 for width in self.widths):
            raise OptionError(f"widths must be multiples of 8, got {self.widths}", "geometry", "use 96, 192")


class CameraNetwork(nn.Module):
    """How the camera moves next, from the actions, its last motions and the newest two latents.

    A turn follows from the keys alone, which are held longer or shorter, and is told by a network of its own. Speed is
    kept from frame to frame but for a share, in the axes of where the camera was: the last motion is turned into those
    of now, and what the keys and walls add to it is told.
    """

    def __init__(self, config: GeometryConfig) -> None:
        super().__init__()
        wide = LOOK_WIDTH
        far = -(-config.height // 4) * -(-config.width // 4)
        self.look = nn.Sequential(
            nn.Conv2d(2 * config.channels, wide, 3, 2, 1), nn.SiLU(), nn.Conv2d(wide, wide, 3, 2, 1), nn.SiLU(),
            nn.Conv2d(wide, wide // 2, 1), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        self.looked = nn.Linear(wide // 2 * far, LOOK_SIZE)
        self.turn = nn.Sequential(
            nn.Linear(config.context * config.actions, TURN_WIDTH), nn.SiLU(),
            nn.Linear(TURN_WIDTH, TURN_WIDTH), nn.SiLU(), nn.Linear(TURN_WIDTH, 1),
        )  # fmt: skip
        self.net = nn.Sequential(
            nn.Linear(config.context * config.actions + (HISTORY + 1) * MOTION + LOOK_SIZE, MOTION_WIDTH), nn.SiLU(),
            nn.Linear(MOTION_WIDTH, MOTION_WIDTH), nn.SiLU(), nn.Linear(MOTION_WIDTH, MOTION - 1),
        )  # fmt: skip
        self.kept = nn.Parameter(torch.full((2,), SPEED_KEPT))

    def forward(
        self, latents: torch.Tensor, actions: torch.Tensor, history: torch.Tensor, kept: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents (B, K, C, h, w), actions (B, K, A) and motions (B, HISTORY, 4) -> the next motion (B, 4) float32.

        ``kept`` is what dropout multiplies with in training, as of :meth:`draw_dropout`.
        """
        with torch.autocast(latents.device.type, enabled=False):  # in bfloat16 a turn would be off by part of a pixel
            unit, held, history = motion_unit(history.device), actions.flatten(1).float(), history.float()
            seen = self.look(latents[:, -2:].flatten(1, 2).float())
            seen = self.looked(seen if kept is None else seen * kept)
            turn = self.turn(held)
            last = turned(history[:, -1])
            now = torch.stack([*(last / unit[:2]).unbind(1), turn[:, 0].detach(), history[:, -1, 3] / unit[3]], dim=1)
            added = self.net(torch.cat([held, (history / unit).flatten(1), now, seen], dim=1))
            told = torch.cat([self.kept * last / unit[:2] + added[:, :2], turn, added[:, 2:]], dim=1)
            return told * unit

    def draw_dropout(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """What dropout leaves of what is seen (B, F): 0, or 1 over the share that is kept."""
        device = self.looked.weight.device
        chance = torch.rand(batch, self.looked.in_features, generator=generator, device=device)
        return (chance >= DROPOUT).float() / (1 - DROPOUT)

    def tell_turn(self, actions: torch.Tensor) -> torch.Tensor:
        """Actions (B, K, A) -> turns to the left in radians (B,) float32."""
        with torch.autocast(actions.device.type, enabled=False):
            told: torch.Tensor = MOTION_UNIT[2] * self.turn(actions.flatten(1).float())[:, 0]
            return told


def turned(motion: torch.Tensor) -> torch.Tensor:
    """Forward and to the right (B, 2) of motions (B, 4), in the axes of where the camera is after them."""
    forward, aside, turn, _ = motion.unbind(1)
    return torch.stack(
        [forward * turn.cos() - aside * turn.sin(), forward * turn.sin() + aside * turn.cos()], dim=1
    )  # fmt: skip


class DistanceNetwork(nn.Module):
    """How far things will be in the next frame, from the newest latents and how the camera moves."""

    def __init__(self, config: GeometryConfig) -> None:
        super().__init__()
        self._seen = config.seen
        wide = config.widths[0]
        self.motions = nn.Sequential(
            nn.Linear((HISTORY + 1) * MOTION, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
        )
        self.latents_first = nn.Conv2d(config.seen * config.channels + 2, wide, 3, padding=1)
        self.net = UNet(config.widths, config.blocks, config.embedding)
        self.norm = nn.GroupNorm(8, wide)
        self.last = nn.Conv2d(wide, 2 * FINER**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(
        self, latents: torch.Tensor, history: torch.Tensor, motion: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What is told at each position of the next frame.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            history: the motions by which the newest frames came (B, HISTORY, 4), oldest first.
            motion: by which the next one comes (B, 4).

        Returns:
            Inverse distances, in 1 / units of the map, and the share of each position that moves with the world, and
            does not stand on the screen as a score bar does; both (B, 1, 2 h, 2 w) float32.
        """
        seen = latents[:, -self._seen :].flatten(1, 2)
        batch, _, height, width = seen.shape
        y = torch.linspace(-1, 1, height, device=seen.device, dtype=seen.dtype)[None, None, :, None]
        x = torch.linspace(-1, 1, width, device=seen.device, dtype=seen.dtype)[None, None, None]
        places = [part.expand(batch, 1, height, width) for part in (y, x)]
        motions = torch.cat([history, motion[:, None]], dim=1).float() / motion_unit(motion.device)
        embedding = F.silu(self.motions(motions.flatten(1).to(seen.dtype)))
        hidden = self.net(self.latents_first(torch.cat([seen, *places], dim=1)), embedding)
        told = F.pixel_shuffle(self.last(F.silu(self.norm(hidden))), FINER).float()
        return told[:, :1].exp() / USUAL_DISTANCE, (STANDS_GAIN * told[:, 1:] + STANDS_BIAS).sigmoid()


class Geometry(nn.Module):
    """Both networks."""

    def __init__(self, config: GeometryConfig) -> None:
        super().__init__()
        self.config = config
        self.camera = CameraNetwork(config)
        self.distance = DistanceNetwork(config)

    def forward(
        self, latents: torch.Tensor, actions: torch.Tensor, history: torch.Tensor, motion: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where each pixel of the next frame was.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now.
            history: the motions by which the newest frames came (B, HISTORY, 4), oldest first.
            motion: by which the next one comes (B, 4), where that is known; None tells it.

        Returns:
            The flow in pixels right and down (B, 2, 2 h, 2 w), and the motion (B, 4); both float32.
        """
        if motion is None:
            motion = self.camera(latents, actions, history)
        inverse, moves = self.distance(latents, history, motion)
        return moves * motion_flow(inverse, motion, self.config.lens), motion


def motion_flow(inverse: torch.Tensor, motion: torch.Tensor, lens: Lens, cell: int = FACTOR // FINER) -> torch.Tensor:
    """Where what stands still in the world was on the screen, before the camera moved.

    Args:
        inverse: 1 / distances of the next frame's positions (B, 1, H, W).
        motion: of the camera (B, 4), see ``MOTION``, in the axes of where it was.
        lens: of the game.
        cell: pixels each way of a position.

    Returns:
        Flow in pixels right and down (B, 2, H, W) float32.
    """
    _, _, height, width = inverse.shape
    x = (torch.arange(width, device=inverse.device) + 0.5) / width - 0.5
    y = (torch.arange(height, device=inverse.device) + 0.5) / height - lens.horizon
    right, down = x[None, None] / lens.focal_x, y[None, :, None] / lens.focal_y  # of a point at distance 1
    forward, aside, turn, up = motion.float()[:, :, None, None].unbind(1)
    inverse = inverse[:, 0].float()
    ahead = (turn.cos() + right * turn.sin() + forward * inverse).clamp(min=BEHIND)
    from_x = (right * turn.cos() - turn.sin() + aside * inverse) / ahead * lens.focal_x
    from_y = (down - up * inverse) / ahead * lens.focal_y
    return torch.stack([(from_x - x) * (width * cell), (from_y - y[:, None]) * (height * cell)], dim=1)


def motions_between(cameras: torch.Tensor) -> torch.Tensor:
    """Motions from each of the cameras (N, 4: x, y, z, angle) to the next, (N - 1, 4) float32; see ``MOTION``."""
    place, (x, y, z, turn) = cameras.double()[:-1], cameras.double().diff(dim=0).unbind(1)
    ahead = place[:, 3]
    forward, aside = x * ahead.cos() + y * ahead.sin(), x * ahead.sin() - y * ahead.cos()
    turn = torch.remainder(turn + torch.pi, 2 * torch.pi) - torch.pi
    return torch.stack([forward, aside, turn, z], dim=1).float()


@dataclass(frozen=True)
class Mover:
    """The geometry networks, and the encoder for what they move."""

    geometry: Geometry
    autoencoder: Autoencoder

    def __call__(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        frames: torch.Tensor,
        history: torch.Tensor,
        motion: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The context with the last frame moved.

        Args:
            latents: past latents (B, K, C, h, w), oldest first.
            actions: (B, K, A); the last is held now.
            frames: the last frames as they were shown (B, H, W, 3) uint8.
            history: the motions by which the newest frames came (B, HISTORY, 4), oldest first.
            motion: by which the next one comes (B, 4), where that is known; None tells it.

        Returns:
            Latents (B, K + 1, C, h, w), the last of them of the moved frame; the flow (B, 2, 2 h, 2 w); and the
            history of the next frame.
        """
        flow, motion = self.geometry(latents, actions, history, motion)
        moved = self.autoencoder.encode(warp(pixels_of(frames), flow).to(latents.dtype))
        following = torch.cat([history[:, 1:], motion[:, None].to(history)], dim=1)
        return torch.cat([latents, moved[:, None].to(latents.dtype)], dim=1), flow, following
