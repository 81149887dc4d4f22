"""How a checkpoint's tensors are kept small: weights as bytes with scales, starts compressed."""

from __future__ import annotations

import copy
import lzma
import math

import numpy as np
import torch

from gamengen.devices import Model

SCALE = ".scale"
BYTES_FROM = 4096  # elements of a weight that is stored in bytes; smaller ones take little room


def stored_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a file keeps of ``weights``: large ones (out, ...) as int8 with a ``.scale`` (out,), others as float16.

    Rows that are 0, such as pictures of what never was, have a scale of 0 and are left out.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, weight in weights.items():
        value = weight.detach().float().cpu()
        if value.ndim < 2 or value.numel() < BYTES_FROM or "camera." in name:  # a turn must stay exact
            stored[name] = value.half().contiguous()
            continue
        rows = value.flatten(1)
        scale = rows.abs().amax(dim=1) / 127
        kept = ~(scale < torch.finfo(torch.float32).tiny)
        scale = scale * kept
        stored[name] = (rows[kept] / scale[kept, None]).round().to(torch.int8).view(-1, *value.shape[1:])
        stored[name + SCALE] = scale
    return stored


def as_stored(model: Model) -> Model:
    """A copy of ``model`` with the weights that a checkpoint keeps of it."""
    copied = copy.deepcopy(model)
    copied.load_state_dict(restored_weights(stored_weights(model.state_dict())))
    return copied


def restored_weights(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The float32 weights of :func:`stored_weights`, and of files of format versions 1 and 2.

    Raises:
        RuntimeError: a scale is missing, belongs to nothing, or does not fit.
    """
    weights: dict[str, torch.Tensor] = {}
    for name, value in stored.items():
        scaled = value.dtype == torch.int8
        if name.endswith(SCALE) and stored.get(name.removesuffix(SCALE), value).dtype == torch.int8:
            continue
        scale = stored.get(name + SCALE) if scaled else None
        if scale is None and not scaled:
            weights[name] = value.float()
            continue
        if scale is None or value.ndim < 2 or scale.ndim != 1 or len(value) != int((scale != 0).sum()):
            raise RuntimeError(f"{name} is stored in bytes and has no fitting scale")
        weight = value.new_zeros(len(scale), *value.shape[1:], dtype=torch.float32)
        weight[scale != 0] = value.float() * scale[scale != 0].view(-1, *[1] * (value.ndim - 1))
        weights[name] = weight
    return weights


def packed(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor, LZMA-compressed (N,) uint8: starts resemble each other, and a checkpoint is small."""
    return torch.from_numpy(
        np.frombuffer(lzma.compress(tensor.contiguous().numpy().tobytes(), preset=9), np.uint8).copy()
    )


def unpacked(tensor: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What was packed, or ``tensor`` as it is where it was not, or does not hold as many bytes."""
    if tensor.ndim != 1 or tensor.dtype != torch.uint8:
        return tensor
    size = math.prod(shape)  # of bytes, as what is packed has one each
    try:
        content = lzma.LZMADecompressor().decompress(tensor.numpy().tobytes(), max_length=size + 1)
    except lzma.LZMAError:
        return tensor
    if len(content) != size:
        return tensor
    return torch.frombuffer(bytearray(content), dtype=dtype).view(shape)
