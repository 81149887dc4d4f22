"""Packed layers compute what plain ones do, and are counted alike."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from engine import packing
from engine.game import NeuralGame
from engine.packing import PackedBlock, PackedConvolution, PackedUNet, can_pack, flop_formulas, pack
from gamengen.checkpoints import Checkpoint
from gamengen.denoiser import UNet
from gamengen.device_limits import count_work
from gamengen.layers import ResidualBlock

pytestmark = pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.float32), reason="this PyTorch has no oneDNN")


def filled(layer: nn.Module) -> nn.Module:
    """A layer none of whose weights is zero, as some are at first."""
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return layer.eval()


@pytest.mark.parametrize("embedding", [0, 12])
@pytest.mark.parametrize("size", [(1, 9, 11), (3, 4, 4)])
def test_a_packed_block_is_the_block(embedding: int, size: tuple[int, int, int]) -> None:
    block = filled(ResidualBlock(16, embedding))
    assert isinstance(block, ResidualBlock)
    x = torch.randn(size[0], 16, *size[1:], generator=torch.Generator().manual_seed(1))
    how = (torch.randn(size[0], embedding),) if embedding else ()
    with torch.inference_mode():
        assert torch.allclose(PackedBlock(block)(x, *how), block(x, *how), atol=1e-5)


def test_a_packed_u_net_is_the_u_net() -> None:
    net = filled(UNet((16, 24), (1, 2, 1), 12))
    x, embedding = torch.randn(2, 16, 9, 11), torch.randn(2, 12)
    holder = nn.ModuleList([copy.deepcopy(net)])
    pack(holder)
    assert isinstance(holder[0], PackedUNet)
    with torch.inference_mode():
        assert torch.allclose(holder[0](x, embedding), net(x, embedding), atol=1e-4)


def test_a_packed_convolution_is_the_convolution_whatever_it_saw_first() -> None:
    layer = filled(nn.Conv2d(6, 10, 3, stride=2, padding=1))
    assert isinstance(layer, nn.Conv2d)
    packed = PackedConvolution(layer)
    with torch.inference_mode():
        for shape in ((1, 6, 8, 8), (4, 6, 5, 7)):
            x = torch.randn(shape)
            assert torch.allclose(packed(x), layer(x), atol=1e-5)
            assert torch.allclose(packed.silu(x), nn.functional.silu(layer(x)), atol=1e-5)
            assert torch.allclose(packed.add(x, layer(x)), 2 * layer(x), atol=1e-5)


def test_what_is_counted_is_the_same() -> None:
    plain = nn.Sequential(nn.Conv2d(6, 16, 3, padding=1), ResidualBlock(16), nn.Conv2d(16, 4, 1))
    packed = copy.deepcopy(plain)
    pack(packed)
    assert not any(isinstance(layer, nn.Conv2d | ResidualBlock) for layer in packed.modules())
    x = torch.randn(2, 6, 9, 11)
    with torch.inference_mode():
        packed(x)
        counts = [count_work(lambda: net(x), flop_formulas()).gflop for net in (plain, packed)]  # noqa: B023
    assert counts[0] == pytest.approx(counts[1])
    assert counts[0] > 0


@pytest.mark.parametrize("dtype", ["float32", "auto"])
def test_the_game_is_the_same(made_up: Callable[..., Checkpoint], dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = made_up()
    packed = NeuralGame(checkpoint, "cpu", seed=3, dtype=dtype)
    assert any(isinstance(layer, PackedConvolution) for layer in packed._denoiser.modules())
    assert any(isinstance(layer, nn.Conv2d) for layer in checkpoint.denoiser.modules()), "a copy was packed"
    monkeypatch.setattr("engine.game.can_pack", lambda device, dtype: False)
    plain = NeuralGame(checkpoint, "cpu", seed=3, dtype=dtype)
    assert not any(isinstance(layer, PackedConvolution) for layer in plain._denoiser.modules())
    for _ in range(4):
        one, other = packed.step([1, 0]), plain.step([1, 0])
    assert abs(one.astype(int) - other).max() <= (1 if dtype == "float32" else 12)


def test_where_it_cannot_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_pack(torch.device("cuda"), torch.float32)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "has_bf16", lambda device: False)
        assert not can_pack(torch.device("cpu"), torch.bfloat16)
        assert can_pack(torch.device("cpu"), torch.float32)
    monkeypatch.setattr(packing, "OPERATOR", "gone")
    assert not can_pack(torch.device("cpu"), torch.float32)
    assert flop_formulas() == {}
