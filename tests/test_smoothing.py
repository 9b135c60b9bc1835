"""Label smoothing: torch's own cross-entropy is the judge, of the loss and of every gradient."""

import pytest
import torch
import torch.nn.functional as F

from foretell.config import ModelConfig
from foretell.data.objectives import UNSCORED
from foretell.models.model import Given, Model, made
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss

V, B, T = 61, 3, 7


def model(kind: str) -> Model:
    keys = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2}
    built = made(ModelConfig.model_validate(keys).resolved(V, 16))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return built


@pytest.mark.parametrize("kind", ["marian", "qwen3"])
@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_loss_and_gradients_are_those_of_torch(kind: str, chunk: int | None, smoothing: float) -> None:
    built = model(kind)
    random = torch.Generator().manual_seed(1)
    source, inputs, targets = (torch.randint(0, V, (B, T), generator=random) for _ in range(3))
    targets[1, 4:] = UNSCORED
    given = Given(source=source) if kind == "marian" else None
    logits = built(source, inputs) if kind == "marian" else built(inputs)
    expected = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=UNSCORED, label_smoothing=smoothing
    )
    want = torch.autograd.grad(expected, list(built.parameters()))
    loss = next_token_loss(Alone(built), inputs, targets, None, chunk, given, partly=True, smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    for a, b in zip(torch.autograd.grad(loss, list(built.parameters())), want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=3e-5)
