"""The parts of a training step, timed with the modules, the loss and the optimisers that train: the full calibration.

Each part is timed at a few shapes, forward and backward together as training does them; `plan/parts.py` interpolates
between the shapes and adds the parts up. Products alone are timed too, as a linear layer's forward pass and its two
gradients use them, so that layers of other proportions, and experts, can be put together from them.

Every shape is visited several times, with all others in between: a shared machine's moods last seconds to a minute.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foretell import runtime
from foretell.calibrate import timing
from foretell.config import ModelConfig, TrainConfig
from foretell.models import families
from foretell.models.attention import attend
from foretell.models.core import Dropout
from foretell.models.decoder import Decoder
from foretell.models.rope import rotary_tables
from foretell.plan.parts import Speed
from foretell.train import optim
from foretell.train.alone import Alone
from foretell.train.loop import autocast
from foretell.train.loss import head_loss, next_token_loss

DTYPES = ("float32", "bfloat16")
KERNELS = ("sdpa", "products")
VISITS = 2
# No visit is begun later than this; a machine that is too slow for all shapes gets fewer of them.
MOST_SECONDS = 105.0
LEAST_SECONDS = 0.03
# What takes longer is visited once.
ONCE_SECONDS = 0.1
# Of products: tokens, and the widths in and out of a linear layer.
PRODUCT_TOKENS = (256, 1024, 4096)
PRODUCT_WIDTHS = ((64, 192), (128, 128), (256, 704), (704, 256), (512, 1408), (1024, 1024), (256, 4096))
# Of whole layers: tokens and width; the largest of each are not combined.
LAYER_TOKENS, LAYER_WIDTHS, MOST_LAYER_NUMBERS = (512, 2048, 8192), (64, 128, 256, 512, 1024), 1 << 21
LAYER_CONTEXT = 128
# Attention of so many layers forward and then backward, so that no cache holds what lies between, as in training.
ATTENTION_LAYERS = 2
# Tokens, context, query heads, KV heads, head width.
ATTENTION_SHAPES = (
    *((2048, T, 4, 2, E) for T in (128, 256, 512, 1024, 2048) for E in (32, 64)),
    *((2048, 256, 4, 2, 16), (2048, 1024, 4, 2, 16), (2048, 256, 4, 2, 128), (2048, 512, 12, 6, 64)),
    *((2048, 512, 4, 2, 24), (2048, 512, 4, 2, 48), (2048, 2048, 6, 3, 64)),
    *((512, 128, 4, 2, 32), (512, 512, 4, 2, 64), (8192, 256, 4, 2, 32), (4096, 1024, 8, 4, 32)),
)
# Tokens, width, vocabulary, and tokens a chunk of the loss.
HEAD_SHAPES = (
    *((512, 64, 512, None), (2048, 128, 512, None), (2048, 64, 4096, None), (512, 512, 4096, None)),
    *((2048, 256, 4096, None), (8192, 128, 2048, None), (2048, 128, 16384, None), (1024, 512, 16384, None)),
    *((2048, 128, 16384, 488), (2048, 512, 8192, 976), (1024, 256, 32768, 244)),
)
# Width, layers and vocabulary of the models whose optimisers are timed.
MUON_SHAPES = ((64, 4, 512), (128, 4, 512), (256, 3, 512), (512, 2, 512), (768, 1, 512), (1024, 1, 512))
OTHER_SHAPES = ((64, 4, 512), (256, 4, 4096), (512, 4, 16384))
# Whole steps: width, layers, vocabulary, context, sequences, optimiser and attention's kernel. They meet what parts
# alone do not: each other's caches and memory.
STEP_SHAPES = (
    *((64, 4, 1024, 256, 8, "muon", "products"), (128, 6, 2048, 256, 16, "muon", "sdpa")),
    *((128, 4, 4096, 1024, 2, "adamw", "products"), (192, 6, 4096, 512, 8, "muon", "products")),
    *((256, 6, 4096, 1024, 2, "adamw", "sdpa"), (384, 4, 8192, 256, 8, "adamw", "products")),
    *((512, 3, 4096, 512, 4, "adamw", "products"), (768, 2, 8192, 256, 4, "adamw", "sdpa")),
)
DROPOUT_NUMBERS = (1 << 15, 1 << 18, 1 << 21)

Work = Callable[[], object]


class Shape(NamedTuple):
    """One part at one shape: what the record says of it, and how to build what is timed."""

    facts: dict[str, Any]
    build: Callable[[], Work]


def measure(dtypes: Sequence[str] = DTYPES) -> list[dict[str, Any]]:
    """All parts at all shapes: the facts, and of each visit `seconds` and the speed beside it."""
    torch.set_num_threads(runtime.threads())
    shapes, began, watch = list(all_shapes(dtypes)), time.perf_counter(), timing.Stopwatch()
    random.Random(0).shuffle(shapes)  # where time runs out, some shapes of each part are left out, not all of one
    measured: list[dict[str, Any]] = [{**s.facts, "seconds": [], **{f.name: [] for f in fields(Speed)}} for s in shapes]
    for visit in range(VISITS):
        for shape, entry in zip(shapes, measured, strict=True):
            late = time.perf_counter() - began > MOST_SECONDS
            if late or (visit and (not entry["seconds"] or entry["seconds"][0] > ONCE_SECONDS)):
                continue
            seconds, speed = watch.beside(shape.build(), LEAST_SECONDS)
            entry["seconds"].append(seconds)
            for name, value in asdict(speed).items():
                entry[name].append(value)
    return [e for e in measured if e["seconds"]]


def median_speed(entries: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The machine's speed over all visits."""
    names = [f.name for f in fields(Speed)]
    return timing.median(Speed(*s) for e in entries for s in zip(*(e[n] for n in names), strict=True))


def all_shapes(dtypes: Sequence[str]) -> Iterator[Shape]:
    """Everything that is timed, what other parts are known by first."""
    for name in ("adamw", "sgd"):
        yield from optimizers(name, "float32", OTHER_SHAPES)
    yield from dropouts()
    for dtype in dtypes:
        yield from products(dtype)
        yield from attentions(dtype)
        yield from layers(dtype)
        yield from heads(dtype)
        yield from optimizers("muon", dtype, MUON_SHAPES)
        yield from steps(dtype)


def products(dtype: str) -> Iterator[Shape]:
    """A linear layer's three products: forward, the gradient of its input and that of its weight."""
    for n in PRODUCT_TOKENS:
        for width, out in PRODUCT_WIDTHS:
            for kind in ("forward", "input", "weight"):
                facts = {"part": "product", "kind": kind, "dtype": dtype, "tokens": n, "in": width, "out": out}
                yield Shape(facts, partial(_product, n, width, out, kind, dtype))


def _product(n: int, width: int, out: int, kind: str, dtype: str) -> Work:
    t = runtime.dtype(dtype)
    x, w, g = torch.randn(n, width).to(t), torch.randn(out, width).to(t), torch.randn(n, out).to(t)
    if kind == "forward":
        return lambda: torch.mm(x, w.T)
    return (lambda: torch.mm(g, w)) if kind == "input" else lambda: torch.mm(g.T, x)


def layers(dtype: str) -> Iterator[Shape]:
    """Some layers one after another, forward and backward, with a short context."""
    for n in LAYER_TOKENS:
        for width in LAYER_WIDTHS:
            if n * width <= MOST_LAYER_NUMBERS:
                several = 4 if n * width < 1 << 18 else 2 if n * width < 1 << 20 else 1
                model = ModelConfig(hidden_size=width, num_hidden_layers=several).resolved(512, LAYER_CONTEXT)
                yield layer(model, n, LAYER_CONTEXT, dtype, "sdpa")


def layer(model: ModelConfig, tokens: int, context: int, dtype: str, kernel: str) -> Shape:
    """The layers of a resolved model, without embedding and head; seconds are those of all of them."""
    facts: dict[str, Any] = {"part": "layer", "dtype": dtype, "kernel": kernel, "tokens": tokens, "context": context}
    sizes = model.sizes
    return Shape(
        {**facts, "times": sizes.L, **{k: getattr(sizes, k) for k in "DHKEF"}},
        partial(_layers, model, tokens, context, dtype, kernel),
    )


def _layers(model: ModelConfig, tokens: int, context: int, dtype: str, kernel: str) -> Work:
    stack = nn.ModuleList(families.parts(model, 0.0, kernel).layers).train()
    angles = rotary_tables(context, model.sizes.E, model.rope_theta)
    x = torch.randn(tokens // context, context, model.sizes.D, requires_grad=True)
    g = torch.randn(x.shape)

    def work() -> None:
        with autocast(runtime.dtype(dtype)):
            y: Tensor = x
            for one in stack:
                y = one(y, angles, None, None)
        y.backward(g)
        x.grad = None
        stack.zero_grad(set_to_none=True)

    return work


def attentions(dtype: str) -> Iterator[Shape]:
    """Attention alone, forward and backward, by each kernel."""
    for kernel in KERNELS:
        for n, T, H, K, E in ATTENTION_SHAPES:
            facts = {"part": "attention", "dtype": dtype, "kernel": kernel, "tokens": n, "context": T}
            yield Shape(
                {**facts, "times": ATTENTION_LAYERS, "H": H, "K": K, "E": E},
                partial(_attention, n, T, H, K, E, dtype, kernel),
            )


def _attention(tokens: int, T: int, H: int, K: int, E: int, dtype: str, kernel: str) -> Work:
    t, B = runtime.dtype(dtype), tokens // T
    layers = [
        [torch.randn(B, T, h, E, dtype=t).transpose(1, 2).requires_grad_() for h in (H, K, K)]
        for _ in range(ATTENTION_LAYERS)
    ]
    g = torch.randn(B, T, H, E, dtype=t).transpose(1, 2)

    def work() -> None:
        outputs = [attend(q, k, v, kernel) for q, k, v in layers]
        for y, inputs in zip(reversed(outputs), reversed(layers), strict=True):
            y.backward(g)
            for x in inputs:
                x.grad = None

    return work


def heads(dtype: str) -> Iterator[Shape]:
    """Embedding, last norm, head and loss, forward and backward."""
    for n, D, V, chunk in HEAD_SHAPES:
        facts = {"part": "head", "dtype": dtype, "tokens": n, "D": D, "V": V, "chunk": chunk}
        yield Shape(facts, partial(_head, n, D, V, dtype, chunk))


def _head(tokens: int, D: int, V: int, dtype: str, chunk: int | None) -> Work:
    model = Decoder(ModelConfig(hidden_size=D, num_hidden_layers=1).resolved(V, 64))
    nn.init.normal_(model.lm_head.weight, 0.0, 0.02)
    team, ids, targets = Alone(model), *torch.randint(0, V, (2, 1, tokens))

    def work() -> float:
        with autocast(runtime.dtype(dtype)):
            hidden = model.model.norm(model.model.embed_tokens(ids))
            loss = head_loss(team, hidden, targets, chunk)
        loss.backward()
        model.zero_grad(set_to_none=True)
        return loss.item()

    return work


def optimizers(name: str, dtype: str, shapes: tuple[tuple[int, int, int], ...]) -> Iterator[Shape]:
    """Clipping and one step of a model's optimisers, given its gradients."""
    for D, L, V in shapes:
        model = ModelConfig(hidden_size=D, num_hidden_layers=L).resolved(V, 64)
        part = "muon" if name == "muon" else "update"
        facts = {"part": part, "optimizer": name, "dtype": dtype, **model.sizes._asdict()}
        yield Shape(facts, partial(_optimizer, model, name, dtype))


def _optimizer(config: ModelConfig, name: str, dtype: str) -> Work:
    model = Decoder(config)
    parameters = list(model.parameters())
    team, gradients = Alone(model), [torch.randn_like(p) for p in parameters]
    built = optim.build(team.named(), TrainConfig(optimizer=name), runtime.dtype(dtype))

    def work() -> None:
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g
        team.finish([], 1.0)
        for optimizer in built:
            optimizer.step()
        team.forget_gradients()

    return work


def steps(dtype: str) -> Iterator[Shape]:
    """Whole steps of one micro-batch, but for the loader."""
    for D, L, V, T, B, name, kernel in STEP_SHAPES:
        model = ModelConfig(hidden_size=D, num_hidden_layers=L).resolved(V, T)
        facts = {"part": "step", "optimizer": name, "dtype": dtype, "kernel": kernel, "tokens": B * T, "context": T}
        yield Shape(facts | model.sizes._asdict(), partial(_step, model, B * T, T, name, dtype, kernel))


def _step(config: ModelConfig, tokens: int, T: int, name: str, dtype: str, kernel: str) -> Work:
    model = Decoder(config, 0.0, kernel).train()
    model.initialise(0)
    team, t = Alone(model), runtime.dtype(dtype)
    built = optim.build(team.named(), TrainConfig(optimizer=name), t)
    ids, targets = torch.randint(0, config.sizes.V, (2, tokens // T, T))

    def work() -> None:
        with autocast(t):
            loss = next_token_loss(team, ids, targets, None, None)
        loss.backward()
        team.finish([loss.item()], 1.0)
        for optimizer in built:
            optimizer.step()
        team.forget_gradients()

    return work


def dropouts() -> Iterator[Shape]:
    """Dropout of so many numbers, forward and backward."""
    for numbers in DROPOUT_NUMBERS:
        yield Shape({"part": "dropout", "dtype": "float32", "numbers": numbers}, partial(_dropout, numbers))


def _dropout(numbers: int) -> Work:
    dropout, x = Dropout(0.1).train(), torch.randn(numbers, requires_grad=True)
    g = torch.randn(numbers)

    def work() -> None:
        dropout(x).backward(g)
        x.grad = None

    return work
