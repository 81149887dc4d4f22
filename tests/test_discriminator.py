"""The critic: it learns to tell sharp from blurred, pushes as hard as it is told, and can be resumed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from gamengen.discriminator import Critic, Discriminator


@pytest.fixture
def critic() -> Critic:
    torch.manual_seed(0)
    return Critic(Discriminator(), torch.device("cpu"))


def sharp_and_blurred(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.randn(4, 3, 48, 64, generator=torch.Generator().manual_seed(seed)).sign()
    return noise, F.avg_pool2d(noise, 5, stride=1, padding=2)


def test_it_learns_to_tell_sharp_from_blurred(critic: Critic) -> None:
    for step in range(30):
        critic.learn(*sharp_and_blurred(step))
    sharp, blurred = sharp_and_blurred(1000)
    with torch.no_grad():
        assert critic._model(sharp).min() > critic._model(blurred).max()


def test_what_it_asks_for_makes_a_picture_sharper(critic: Critic) -> None:
    for step in range(30):
        critic.learn(*sharp_and_blurred(step))
    made = sharp_and_blurred(1000)[1].clone().requires_grad_()
    before = float(critic._model(made).detach().mean())
    loss = critic.loss(made, (made - made.detach() + 0.1).square().mean(), 0.5)
    (gradient,) = torch.autograd.grad(loss, made)
    assert float(critic._model(made - 2 * gradient / gradient.abs().max()).mean()) > before


def test_its_gradient_is_a_share_of_the_other_one(critic: Critic) -> None:
    made = sharp_and_blurred(0)[1].clone().requires_grad_()
    other = (made - 0.3).square().mean()
    theirs = torch.autograd.grad(other, made, retain_graph=True)[0]
    ours = torch.autograd.grad(critic.loss(made, other, 0.25), made)[0]
    assert float(ours.norm() / theirs.norm()) == pytest.approx(0.25, rel=1e-3)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in critic._model.parameters())


def test_resumed_it_goes_on_the_same(critic: Critic) -> None:
    critic.learn(*sharp_and_blurred(0))
    state = {name: value.clone() for name, value in critic.state().items()}
    other = Critic(Discriminator(), torch.device("cpu"))
    other.load_state(state)
    for one in (critic, other):
        one.learn(*sharp_and_blurred(1))
    assert all(torch.equal(value, other.state()[name]) for name, value in critic.state().items())
    other.load_state({})  # a state from before there was one
