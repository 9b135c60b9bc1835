"""A model on many processes: `Placed` builds it, runs it and answers for its gradients as one process would.

Order of application: parts of weights (tensor and expert parallelism), hooks, recomputation, FSDP2. Losses are shares
of the global batch's mean and all sums are sums, so every layout has the gradients of one process up to the rounding
of another order of additions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from foretell import runtime
from foretell.checkpoint import Piece
from foretell.config import ModelConfig, ParallelConfig
from foretell.distributed import context, experts, parts, record, stages, tensor
from foretell.distributed.copies import Meeting, Strict, Summing
from foretell.distributed.mesh import Mesh
from foretell.distributed.parts import Part
from foretell.distributed.pipeline import Pipeline
from foretell.distributed.whole import WholeMatrices
from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder
from foretell.models.model import Given, Model, features, head, layers, made
from foretell.models.moe import MoE
from foretell.models.seq2seq import Seq2Seq
from foretell.plan import layout
from foretell.plan.layout import Box
from foretell.vectors.embedding import Start


class Placed:
    """This process's part of a model, and what it takes to train it together with the others.

    config must be resolved, and `layout.check` must have passed it. An initialised process group is needed.
    mesh: of that group, where it has been made already. drawn: whether weights get initial values. start: what the
    embedding table begins from. weights: where all weights come from, if not from the seed. adapt: freezes and adds
    parameters, given the model on the meta device; not with a pipeline.
    """

    def __init__(
        self,
        config: ModelConfig,
        parallel: ParallelConfig,
        length: int,
        *,
        seed: int,
        dropout: float = 0.0,
        kernel: str = "sdpa",
        dtype: torch.dtype = torch.float32,
        mesh: Mesh | None = None,
        drawn: bool = True,
        start: Start | None = None,
        weights: parts.Weights | None = None,
        adapt: Callable[[Model], object] | None = None,
    ) -> None:
        self.degrees = layout.degrees(parallel, dist.get_world_size())
        self.mesh, self.length = mesh or Mesh(self.degrees), length
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        # Evaluation is dealt to all who differ in data; in a strict run each does all, for the order of additions.
        self.dp, self.dp_rank = (1, 0) if parallel.strict else (self.degrees.dp, self.mesh.dp_rank)
        self.strict, self.dtype = parallel.strict, dtype
        self.exchange = layout.exchange(parallel, config)
        cp_rank = self.mesh.place["cp"]
        self.positions = context.positions(length, cp_rank, self.degrees.cp, self.exchange)
        self.copies = self._copies(parallel, seed)
        self.parts: list[Part] = []
        own = [self.mesh.place["pp"] + n * parallel.pp for n in range(layout.stages_of_a_process(parallel))]
        chunks, whole = [], []
        for stage in own:
            with torch.device("meta"):
                chunk = made(config, dropout, kernel)
                if adapt is not None:
                    adapt(chunk)
            if parallel.pp > 1:
                stages.prune(chunk, stage, parallel.pp * len(own))
            whole.append(parts.narrow(chunk, self.mesh))
            parts.fill(chunk, config, self.mesh, whole[-1], seed if drawn else None, start, weights)
            self._connect(chunk, parallel)
            chunks.append(chunk)
        self.pipeline = Pipeline(self, chunks, own, parallel.schedule) if parallel.pp > 1 else None
        for stage, chunk, shapes in zip(own, chunks, whole, strict=True):
            parts.shard(chunk, self.mesh, dtype, reshard=self.pipeline is None, offload=parallel.offload)
            self.copies.attach(chunk, stage)
            self.parts += parts.parts(chunk, self.mesh, shapes)
        self.chunks, self.model = nn.ModuleList(chunks), chunks[-1]
        self.by_name = {p.name: p for p in self.parts}
        self.copies.begin(self.named())
        self.matrices, self.crew = WholeMatrices(self.mesh, self.parts), self
        # Ranks of a sequence or of a replica must not drop the same numbers; those of one tensor must.
        runtime.seed_all(seed + 1 + self.mesh.tokens.get_local_rank())

    def _copies(self, parallel: ParallelConfig, seed: int) -> Summing:
        group = self.mesh.group("dp_replicate")
        if parallel.strict:
            return Strict(group, parallel, seed)
        if parallel.local_steps > 1:
            return Meeting(group, parallel)
        return Summing(group, parallel)

    def _connect(self, chunk: Model, parallel: ParallelConfig) -> None:
        if self.degrees.tp > 1:
            tensor.connect(chunk, self.mesh.group("tp"))
        if self.degrees.cp > 1:
            where = (self.length, self.mesh.place["cp"], self.degrees.cp, self.exchange)
            if isinstance(chunk, Decoder):
                chunk.model.near = context.nearing(*where, runtime.device())
        for layer in layers(chunk):
            if self.degrees.cp > 1:
                layer.self_attn.attend = context.attending(self.mesh.group("cp"), self.exchange)
            if isinstance(layer.mlp, MoE):
                layer.mlp.reduce = experts.summing(self.mesh.tokens.get_group(), self.degrees.tp)
                if self.degrees.ep > 1:
                    layer.mlp.exchange = experts.exchanging(self.mesh.group("ep"))
            if parallel.recompute == "full":
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore
            elif parallel.recompute == "selective":  # what is between the products of the feed-forward part
                layer.mlp.forward = partial(checkpoint, layer.mlp.forward, use_reentrant=False)

    def rows(self, sequences: int, micro_batch_size: int) -> list[int]:
        """Which of the global batch's sequences are this process's, micro-batch after micro-batch.

        All processes' first micro-batches are the first sequences, so that a batch is cut as one process would cut it.
        """
        dp, own = self.degrees.dp, self.mesh.dp_rank
        if self.strict:
            return list(range(own * sequences // dp, (own + 1) * sequences // dp))
        starts = range(own * micro_batch_size, sequences, dp * micro_batch_size)
        return [row for start in starts for row in range(start, start + micro_batch_size)]

    def hidden(self, inputs: Tensor, segments: Tensor | None, given: Given | None = None) -> Tensor:
        """What the head takes (B, T / cp, D), of this rank's positions of inputs (B, T), whole along D and tp."""
        model = self.model
        if isinstance(model, Seq2Seq) or (given is not None and given.marks is not None):
            return self.whole(features(model, inputs, segments, given))
        mask = self.mask(segments, inputs.device, None if given is None else given.prefix)
        found, places = model.features if isinstance(model, Encoder) else model.hidden, self.places(len(inputs))
        return self.whole(found(self.own(inputs), mask=mask, positions=places))

    def whole(self, hidden: Tensor) -> Tensor:
        """Hidden states as the head wants them: sequence parallelism undone."""
        return tensor.gather(hidden, self.mesh.group("tp")) if self.degrees.tp > 1 else hidden

    def mask(self, segments: Tensor | None, device: torch.device, prefix: Tensor | None = None) -> Tensor | None:
        """The mask of attention over this rank's positions; segments: (B, T) of the whole sequence, or None.

        prefix: (B,) tokens that all see, or None.
        """
        where = (self.length, self.mesh.place["cp"], self.degrees.cp, self.exchange)
        documents, prefix = (None if x is None else x.cpu() for x in (segments, prefix))
        mask = context.mask(*where, documents, prefix, isinstance(self.model, Decoder))
        return None if mask is None else mask.to(device)

    def places(self, sequences: int) -> Tensor:
        """This rank's positions for so many sequences, (B, T / cp)."""
        return self.positions.to(runtime.device()).expand(sequences, -1)

    def own(self, x: Tensor) -> Tensor:
        """This rank's positions of x (B, T)."""
        return x[:, self.positions.to(x.device)] if self.degrees.cp > 1 else x

    def share(self, part: int, of: int) -> float:
        """The share of `of` tokens that so many of this rank's positions are."""
        alone = self.degrees.dp_replicate if self.copies.copies_differ else 1
        return alone * part / of

    def totals(self, numbers: Tensor) -> Tensor:
        """Of each number the sum over the ranks that see different sequences."""
        total = numbers.to(runtime.device())
        dist.all_reduce(total, group=self.mesh.tokens.get_group())
        return total.cpu()

    def split_cross_entropy(self, hidden: Tensor, targets: Tensor, chunk: int | None) -> Tensor | None:
        """The mean loss of hidden (N, D) at targets (N,) where the vocabulary is divided, else None."""
        if self.degrees.tp == 1:
            return None
        hidden, weight = head(self.model, hidden)
        if torch.is_autocast_enabled(hidden.device.type):
            weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
        return tensor.cross_entropy(hidden, weight, targets, chunk, self.mesh.group("tp"))

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """The optimiser's tensors by their names in the whole model."""
        return [(p.name, p.local) for p in self.parts]

    def before_micro_batch(self, step: int, n: int, of: int) -> None:
        """Before micro-batch `n` of `of`: the backward pass sums gradients over ranks only where they are complete."""
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(self.copies.is_last(step, n, of))

    @torch.no_grad()
    def finish_gradients(self) -> None:
        """After the last backward pass: sum what is partial over tp, give the optimiser's tensors their gradients."""
        for p in self.parts:
            p.local.grad = p.gradient()
        if self.pipeline is not None:
            self._sum_tied()
            self._sum_biases()
        if self.degrees.tp > 1:
            partial_sums = [p.local.grad for p in self.parts if p.split.summed and p.local.grad is not None]
            if not partial_sums:
                return
            flat = torch.cat([g.flatten() for g in partial_sums])
            dist.all_reduce(flat, group=self.mesh.group("tp"))
            for g, total in zip(partial_sums, flat.split([g.numel() for g in partial_sums]), strict=True):
                g.copy_(total.view_as(g))

    def _sum_tied(self) -> None:
        """Add the gradients of the table on the first stage and of its copy on the last: the same bits on both."""
        group, last = self.mesh.group("pp"), self.degrees.pp - 1
        if not self.model.config.tie_word_embeddings or self.mesh.place["pp"] not in (0, last):
            return
        own = self.by_name["model.embed_tokens.weight"].local.grad
        assert own is not None
        other, peer = torch.empty_like(own), last - self.mesh.place["pp"]
        sent = dist.P2POp(dist.isend, own.contiguous(), group=group, group_peer=peer)
        received = dist.P2POp(dist.irecv, other, group=group, group_peer=peer)
        for work in dist.batch_isend_irecv([sent, received]):
            work.wait()
        own.add_(other)

    def _sum_biases(self) -> None:
        """Add the gradients of T5's biases by distance over all stages, which hold them or do not."""
        shapes = layout.biases(self.model.config)
        if not shapes:
            return
        sizes = [layout.box(name, shape, self.degrees, self.mesh.place)[1] for name, shape in shapes]
        own = [self.by_name[name].local.grad if name in self.by_name else None for name, _ in shapes]
        filled = [torch.zeros(n, device=runtime.device()) if g is None else g for n, g in zip(sizes, own, strict=True)]
        flat = torch.cat([g.flatten() for g in filled])
        dist.all_reduce(flat, group=self.mesh.group("pp"))
        for g, total in zip(own, flat.split([math.prod(n) for n in sizes]), strict=True):
            if g is not None:
                g.copy_(total.view_as(g))

    def forget_gradients(self) -> None:
        """After a step."""
        for p in self.parts:
            p.local.grad = p.owner.grad = None

    def finish(self, losses: Sequence[float], limit: float) -> tuple[float, float]:
        """The loss from every rank's shares of it, and the norm of the whole gradient, which is clipped to `limit`.

        The same numbers on every rank; of copies that go their own ways the mean loss and the largest norm.
        """
        self.finish_gradients()
        loss, norm = self._totals(self.copies.total(losses))
        if norm > limit:
            gradients = [p.local.grad for p in self.parts if p.local.grad is not None]
            torch._foreach_mul_(gradients, limit / (norm + 1e-6))
        return loss, norm if self.copies.shares_gradients else self._largest(norm)

    @torch.no_grad()
    def _totals(self, loss: float) -> tuple[float, float]:
        first_of_tp = self.mesh.place["tp"] == 0
        counts = self.mesh.place["dp_replicate"] == 0 or not self.copies.shares_gradients
        own = torch.zeros(2, dtype=torch.float64, device=runtime.device())
        for p in self.parts:
            if p.local.grad is None or p.is_copy or not counts:
                continue
            if p.split.tp is not None or first_of_tp:
                own[1] += p.local.grad.double().square().sum()
        if not self.copies.shares_gradients:
            dist.all_reduce(own, group=self.mesh.one_copy.get_group())
            square, loss = own[1].clone(), loss / self.degrees.dp_replicate
            own[1] = 0.0
        own[0] = loss if first_of_tp else 0.0
        dist.all_reduce(own)
        return own[0].item(), (own[1] if self.copies.shares_gradients else square).sqrt().item()

    def _largest(self, number: float) -> float:
        largest = torch.tensor(number, dtype=torch.float64, device=runtime.device())
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.item()

    def stepping(self, step: int, folder: Path) -> AbstractContextManager[None]:
        """Around step number `step` of the run in `folder`: of one step the collectives are kept."""
        first_copy = not any(place for axis, place in self.mesh.place.items() if axis != "pp")
        if step != record.STEP or self.ranks == 1 or not first_copy:
            return nullcontext()
        return record.kept(folder, step, self.layout)

    def after_step(self, steps: int) -> None:
        """The optimiser has taken so many steps in all."""
        self.copies.after_step(steps)

    @property
    def layout(self) -> str:
        """Names the division: a rank's own state has a place only in the same one."""
        return " ".join(f"{axis}={degree}" for axis, degree in zip(layout.AXES, self.degrees, strict=True))

    def agreed(self, number: int) -> int:
        """The largest of the numbers that the ranks give."""
        largest = torch.tensor(number, device=runtime.device())
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest.item())

    def told(self, text: str, by: int = 0) -> str:
        """The text that rank `by` gives."""
        data, device = text.encode(), runtime.device()
        size = torch.tensor(len(data), device=device)
        dist.broadcast(size, by)
        buffer = torch.tensor(list(data.ljust(int(size), b" ")[: int(size)]), dtype=torch.uint8, device=device)
        dist.broadcast(buffer, by)
        return bytes(buffer.tolist()).decode()

    def maxima(self, numbers: Tensor) -> Tensor:
        """Of each number the largest that any rank gives."""
        largest = numbers.to(runtime.device())
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest.cpu()

    def token_scores(
        self,
        inputs: Tensor,
        targets: Tensor,
        scored: Tensor,
        segments: Tensor | None = None,
        given: Given | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of this rank's scored positions: the row of each, its negative log-likelihood, whether it was likeliest."""
        wanted = self.own(scored)
        with torch.autocast(inputs.device.type, self.dtype, enabled=self.dtype != torch.float32):
            of = self.hidden if self.pipeline is None else self.pipeline.hidden
            hidden = of(inputs, segments, given)
            if hidden is None:  # the last stage scores
                return torch.empty(0, dtype=torch.int64), torch.empty(0), torch.empty(0)
            hidden, own = (hidden if self.pipeline is None else self.whole(hidden))[wanted], self.own(targets)[wanted]
            nll, correct = tensor.token_scores(*head(self.model, hidden), own, self.mesh.group("tp"))
        return wanted.nonzero()[:, 0], nll, correct

    def summed(self, sums: np.ndarray) -> np.ndarray:
        """The sum over the ranks that score different tokens."""
        if self.strict:
            return sums
        total = torch.from_numpy(sums).to(runtime.device())
        dist.all_reduce(total, group=self.mesh.scorers.get_group())
        return total.cpu().numpy()

    def named_once(self, name: str) -> str:
        """A name that no other rank uses."""
        return f"{name}~{self.rank}" if self.rank else name

    def name_here(self, name: str) -> str:
        """The name under which this copy saves what copies have in common, unless they go their own ways."""
        n = self.mesh.place["dp_replicate"]
        return f"copy-{n}.{name}" if n and self.copies.copies_differ else name

    def piece(self, name: str, value: Tensor) -> Tensor | Piece | None:
        """What of a tensor shaped like this rank's part of parameter `name` it saves; None where another rank does."""
        p = self.by_name[name]
        again = p.is_copy or (p.split.tp is None and self.mesh.place["tp"] > 0)
        if again or (self.mesh.place["dp_replicate"] > 0 and not self.copies.copies_differ):
            return None
        if value.ndim == 0:  # a count of steps, say: the rank with the first row saves it
            return value if not any(p.offset) and p.local.numel() else None
        return Piece(value, p.offset, p.shape)

    def box(self, name: str) -> Box:
        """Offset and size of this rank's part of parameter `name`."""
        return self.by_name[name].offset, tuple(self.by_name[name].local.shape)
