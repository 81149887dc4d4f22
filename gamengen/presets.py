"""Presets: sizes that are known to work, with what was measured beside them."""

from __future__ import annotations

from dataclasses import dataclass, field

from agents.errors import OptionError
from gamengen.autoencoder import AutoencoderConfig
from gamengen.denoiser import DenoiserConfig
from gamengen.geometry import GeometryConfig


@dataclass(frozen=True)
class Preset:
    """Networks that belong together; a game sets the number of actions."""

    autoencoder: AutoencoderConfig
    denoiser: DenoiserConfig
    measured: str
    geometry: GeometryConfig = field(default_factory=GeometryConfig)


PRESETS = {
    "nano": Preset(AutoencoderConfig(), DenoiserConfig(), "see the shipped checkpoint's metrics.json and model card"),
    "small": Preset(
        AutoencoderConfig(),
        DenoiserConfig(widths=(256, 448), context_blocks=(2, 4, 2), noise_blocks=(1, 3, 2), embedding=256),
        "25 minutes on one CPU core from scratch on doom/deathmatch: 1.2 dB above copying; docs/experiments.md",
    ),
    "base": Preset(
        AutoencoderConfig(widths=(64, 192, 384), encoder_blocks=(1, 2, 2), decoder_blocks=(2, 2, 2)),
        DenoiserConfig(
            context=16, widths=(384, 768), context_blocks=(3, 6, 3), noise_blocks=(2, 4, 2), embedding=512
        ),
        "not measured yet",
        GeometryConfig(context=16),
    ),
    "tiny": Preset(
        AutoencoderConfig(channels=8, widths=(16, 16, 32), encoder_blocks=(0, 0, 0), decoder_blocks=(0, 0, 0)),
        DenoiserConfig(context=4, channels=8, widths=(32, 32), context_blocks=(0, 1, 0), noise_blocks=(0, 1, 0),
                       embedding=32),
        "for tests only: it learns nothing worth seeing",
        GeometryConfig(context=4, channels=8, widths=(16, 16), blocks=(0, 1, 0), embedding=32),
    ),
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        OptionError: there is none.
    """
    if name not in PRESETS:
        raise OptionError("unknown preset", name, f"use one of {', '.join(PRESETS)}")
    return PRESETS[name]
