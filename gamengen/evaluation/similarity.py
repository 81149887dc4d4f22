"""How near one frame is to another: PSNR, SSIM, sharpness, and the parts of the picture they are taken over."""

from __future__ import annotations

import numpy as np
import torch

from gamengen.train_autoencoder import frame_psnr as _psnr

STILL_PSNR = 35.0  # dB between two frames of the real game, from which on nothing to speak of moves
# Of a Doom picture: the status bar is 32 of 200 lines; the weapon stands above it, in the middle.
HUD_TOP = 0.84
WEAPON_TOP, WEAPON_LEFT, WEAPON_RIGHT = 0.58, 0.35, 0.65


def frame_psnr(real: np.ndarray, other: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame (N,), of frames (N, H, W, 3) uint8; at most 60 dB, for equal ones."""
    return _psnr(torch.from_numpy(real), torch.from_numpy(np.array(other))).numpy()


def frame_ssim(real: np.ndarray, other: np.ndarray) -> np.ndarray:
    """SSIM of each frame (N,) in [-1, 1] (Wang et al., 2004; 11x11 Gaussian window), of frames (N, H, W, 3) uint8."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.from_numpy(part).permute(0, 3, 1, 2).float() for part in (real, other))
    with torch.autocast("cpu", enabled=False):  # in training this is called where bfloat16 is on
        values = structural_similarity_index_measure(b, a, data_range=255.0, reduction="none")
    return np.asarray(values).reshape(len(real))


def sharpness(frames: np.ndarray) -> np.ndarray:
    """Mean absolute Laplacian of the brightness of each frame (N,), in grey levels; a blur lowers it."""
    grey = frames.astype(np.float32).mean(axis=-1)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return np.abs(around - 4 * grey[:, 1:-1, 1:-1]).mean(axis=(1, 2))


def regions(spec: str, height: int, width: int) -> dict[str, np.ndarray]:
    """Masks (H, W) bool of the parts of a Doom picture: ``hud``, ``weapon``, ``world``; of other games none."""
    if not spec.startswith("doom/"):
        return {}
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    hud = np.broadcast_to(y >= HUD_TOP, (height, width))
    weapon = ~hud & (y >= WEAPON_TOP) & (x >= WEAPON_LEFT) & (x < WEAPON_RIGHT)
    return {"hud": hud, "weapon": weapon, "world": ~(hud | weapon)}


def region_psnr(real: np.ndarray, other: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """PSNR in dB within ``mask`` (H, W) of each frame (N,); at most 60 dB."""
    error = (real[:, mask].astype(np.float32) - other[:, mask].astype(np.float32)) ** 2
    return -10 * np.log10(np.maximum(error.mean(axis=(1, 2)) / 255**2, 1e-6))
