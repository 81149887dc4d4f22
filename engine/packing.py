"""Convolutions laid out once for this CPU, with what follows them in the same pass.

PyTorch reorders a convolution's weights into oneDNN's own layout at every call, which for small pictures takes a third
of the time. Here they are reordered once, and the activation or the addition that follows is computed while the result
is still in the cache, by the operators that ``torch.compile`` uses too. The results are the same to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gamengen.denoiser import UNet
from gamengen.devices import has_bf16
from gamengen.layers import ResidualBlock

OPERATOR = "_convolution_pointwise"


def can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this device and this build of PyTorch have what packing takes."""
    built = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, OPERATOR)
    computes = dtype == torch.float32 or has_bf16(
        device
    )  # oneDNN refuses bfloat16 elsewhere, where PyTorch emulates it
    return device.type == "cpu" and built and computes


def pack(model: nn.Module) -> None:
    """Put packed layers in the place of convolutions and residual blocks, for inference alone."""
    for name, layer in model.named_children():
        if isinstance(layer, ResidualBlock):
            setattr(model, name, PackedBlock(layer))
        elif isinstance(layer, UNet):
            setattr(model, name, PackedUNet(layer))
        elif type(layer) is nn.Conv2d:
            setattr(model, name, PackedConvolution(layer))
        else:
            pack(layer)


class PackedConvolution(nn.Module):
    """A convolution; packed at the first call, for the size of its input."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._how = ([*map(int, layer.padding)], [*layer.stride], [*layer.dilation], layer.groups)
        self._packed: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The convolution of ``x`` (B, C, h, w)."""
        return torch.ops.mkldnn._convolution_pointwise(x, *self._parts(x), "none", [], "")

    def silu(self, x: torch.Tensor) -> torch.Tensor:
        """The same and SiLU of it."""
        return torch.ops.mkldnn._convolution_pointwise(x, *self._parts(x), "swish", [], "")

    def add(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """The same plus ``other``."""
        binary = torch.ops.mkldnn._convolution_pointwise.binary
        return binary(x, other, *self._parts(x), "add", None, None, [], None)

    def _parts(self, x: torch.Tensor) -> tuple[Any, ...]:
        if self._packed is None:
            weight = self.weight.detach().contiguous()
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._how, list(x.shape))
        return (self._packed, self.bias, *self._how)


class PackedBlock(nn.Module):
    """A :class:`gamengen.layers.ResidualBlock` of packed convolutions."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.norm, self.film = block.norm, block.film
        self.conv1, self.conv2 = PackedConvolution(block.conv1), PackedConvolution(block.conv2)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """As of the block."""
        if self.film is None:
            return self.conv2.add(self.conv1.silu(F.silu(self.norm(x))), x)
        assert embedding is not None
        return self.modulated(x, self.film(embedding))

    def modulated(self, x: torch.Tensor, film: torch.Tensor) -> torch.Tensor:
        """The same, by what the block's own FiLM layer makes of the embedding, ``film`` (B, 2 width)."""
        hidden = self.conv1(F.silu(self.norm(x)))
        scale, shift = film[:, :, None, None].chunk(2, dim=1)
        return self.conv2.add(F.silu(torch.addcmul(hidden + shift, hidden, scale)), x)


class PackedUNet(nn.Module):
    """A :class:`gamengen.denoiser.UNet` of packed layers; the FiLM layers of all its blocks are one."""

    def __init__(self, net: UNet) -> None:
        super().__init__()
        films: list[nn.Linear] = []

        def packed(blocks: nn.ModuleList) -> nn.ModuleList:
            made = nn.ModuleList()
            for block in blocks:
                assert isinstance(block, ResidualBlock) and block.film is not None
                films.append(block.film)
                one = PackedBlock(block)
                one.film = None  # it is part of the one below
                made.append(one)
            return made

        self.down, self.middle, self.up = packed(net.down), packed(net.middle), packed(net.up)
        self.shrink, self.grow = PackedConvolution(net.shrink), PackedConvolution(net.grow)
        self.weight = nn.Parameter(torch.cat([film.weight for film in films]))
        self.bias = nn.Parameter(torch.cat([film.bias for film in films]))
        self._sizes = [film.out_features for film in films]

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """As of the U-Net."""
        films = iter(F.linear(embedding, self.weight, self.bias).split(self._sizes, dim=1))
        x = _through(self.down, x, films)
        hidden = _through(self.middle, self.shrink(x), films)
        grown = F.pixel_shuffle(self.grow(hidden), 2)
        return _through(self.up, x + grown[:, :, : x.shape[2], : x.shape[3]], films)


def _through(blocks: nn.ModuleList, x: torch.Tensor, films: Iterator[torch.Tensor]) -> torch.Tensor:
    for block in blocks:
        assert isinstance(block, PackedBlock)
        x = block.modulated(x, next(films))
    return x


def flop_formulas() -> dict[Any, Callable[..., int]]:
    """By operator, the floating-point operations of a packed convolution, from shapes, for PyTorch's counter."""
    if not hasattr(torch.ops.mkldnn, OPERATOR):
        return {}

    def flops(x: Any, second: Any, third: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        weight = (
            third if third is not None and len(third) == len(x) else second
        )  # what is added, if anything is, comes before it
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    return {torch.ops.mkldnn._convolution_pointwise: flops}
