"""The decoder's own parts that no other implementation judges."""

import pytest
import torch

from foretell.models.core import Dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(501, 333, requires_grad=True)  # no multiple of eight
    y = Dropout(p)(x)
    share = round(256 * p) / 256
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=0.005)
    assert torch.all((y == 0) | (y == 1 / (1 - share)))
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the same numbers are dropped from the gradient


def test_dropout_is_off_outside_training_and_follows_the_seed() -> None:
    x, dropout = torch.randn(7, 9), Dropout(0.3)
    torch.manual_seed(1)
    first = dropout(x)
    second = dropout(x)
    torch.manual_seed(1)
    assert torch.equal(dropout(x), first)
    assert not torch.equal(first, second)
    assert dropout.eval()(x) is x
    assert Dropout(0.0)(x) is x
