"""Choosing a device and what it computes in."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from agents.errors import DeviceError

Model = TypeVar("Model", bound=nn.Module)


def choose_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA where there is one.

    Raises:
        DeviceError: it is not there; an explicit device never falls back.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError("no such kind of device", name, "use auto, cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceError("this kind of device is not supported", name, "use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device was found", name, "use --device cpu, or install torch with CUDA")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there are only {torch.cuda.device_count()} CUDA devices", name, "use a lower number")
    return device


@functools.cache
def has_bf16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 faster than in float32."""
    if device.type == "cuda":
        # Older cards than those of capability 8 emulate it.
        return bool(torch.version.hip) or torch.cuda.get_device_properties(device).major >= 8
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags


def place(model: Model, device: torch.device, dtype: torch.dtype | None = None) -> Model:
    """``model``, moved to a device, its kernels channels-last, as convolutions are quickest."""
    return model.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]


def round_weights(model: Model, dtype: torch.dtype, exact: Sequence[nn.Module]) -> Model:
    """``model`` with its weights in ``dtype``, but for those of its parts that are ``exact``, and for buffers."""
    kept = {id(parameter) for part in exact for parameter in part.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.to(dtype)
    return model


def describe_device(device: torch.device) -> str:
    """The device's name as its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{model}, {torch.get_num_threads()} threads"
