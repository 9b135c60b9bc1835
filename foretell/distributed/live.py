"""Bytes of live tensors while a piece of work runs: their peak, and what they were at the peak.

Counted where every tensor is made, torch's dispatcher: a storage counts from the operator that returned it until it is
freed, and FSDP2's resizing of what it gathers is seen too. Storages are counted once, whatever views there are. Works
on fake tensors as on real ones, on any device. torch's own trackers (`torch.distributed._tools`) count the same way,
and a test compares; but they want one call of the model a step, and FSDP2's hooks where a module is called.

What a kernel takes inside itself, and what an allocator holds beside what it gives out, is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

Parts = Mapping[str, Iterable[Tensor]]


class Live(TorchDispatchMode):
    """While entered, counts live bytes from those of `held` on: `now`, and `peak`, the most since `restart`."""

    def __init__(self, held: Parts) -> None:
        super().__init__()
        self.now = 0
        self._sizes: dict[int, int] = {}
        self.restart()
        for tensors in held.values():
            for t in tensors:
                self._count(t)
        self.restart()

    def restart(self, parts: Callable[[], Parts] | None = None, ask_at: int | None = None) -> None:
        """Count the peak anew. `at` becomes the number of the allocation that made it.

        At allocation `ask_at` parts gives tensors by what they are, and `found` gets their bytes: a storage's under the
        first name that has it, and as `activations` those of all other tensors, with what passes between operators.
        """
        self.peak, self.at, self.allocations = self.now, 0, 0
        self.found: dict[str, int] = {}
        self._parts, self._ask_at = parts, ask_at

    def __enter__(self) -> Live:
        self._resize = torch.UntypedStorage.resize_
        original, live = self._resize, self

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            original(storage, size)
            if storage._cdata in live._sizes:
                live._changed(storage._cdata, size)

        torch.UntypedStorage.resize_ = resize_  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*details)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # its local tensors come by here
        result = func(*args, **(kwargs or {}))
        for t in tree_iter(result):
            if isinstance(t, Tensor):
                self._count(t)
        return result

    def _count(self, t: Tensor) -> None:
        storage = _local(t).untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = 0
            weakref.finalize(storage, self._freed, key)
        self._changed(key, storage.nbytes())

    def _changed(self, key: int, size: int) -> None:
        more = size - self._sizes[key]
        self._sizes[key] = size
        self.now += more
        if more <= 0:
            return
        self.allocations += 1
        if self.now > self.peak:
            self.peak, self.at = self.now, self.allocations
        if self._parts is not None and self.allocations == self._ask_at:
            self.found = self._by_part(self._parts())

    def _freed(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def _by_part(self, parts: Parts) -> dict[str, int]:
        seen, sums = set[int](), {}
        for part, tensors in parts.items():
            sums[part] = 0
            for t in tensors:
                key = _local(t).untyped_storage()._cdata
                if key not in seen:
                    seen.add(key)
                    sums[part] += self._sizes.get(key, 0)
        return {**sums, "activations": self.now - sum(sums.values())}


def of_model(model: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> dict[str, list[Tensor]]:
    """Tensors of a model under FSDP2, or a plain one, by what they are.

    `parameters` are this rank's own, `gathered` those that FSDP2 has gathered or will, `gradients` both kinds; `tables`
    are buffers; `optimizer` its tensors.
    """
    own, gathered, gradients = list[Tensor](), list[Tensor](), list[Tensor | None]()
    there = set[int]()
    for module in model.modules():
        group = module._get_fsdp_state()._fsdp_param_group if isinstance(module, FSDPModule) else None
        for f in group.fsdp_params if group is not None else []:
            own.append(f._sharded_param_data)
            gathered += f.all_gather_outputs
            gradients += [f.sharded_param.grad, f.unsharded_accumulated_grad]
            if hasattr(f, "_unsharded_param"):
                there.add(id(f._unsharded_param))
                gathered.append(f._unsharded_param.data)
                gradients.append(f._unsharded_param.grad)
    for p in model.parameters():
        if id(p) not in there:
            own.append(p.data)
            gradients.append(p.grad)
    for o in optimizers:
        gradients += [p.grad for group in o.param_groups for p in group["params"]]
    states = [v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    return {
        "parameters": own,
        "optimizer": states,
        "tables": list(model.buffers()),
        "gathered": gathered,
        "gradients": [g for g in gradients if g is not None],
    }


def _local(t: Tensor) -> Tensor:
    return t._local_tensor if isinstance(t, DTensor) else t
