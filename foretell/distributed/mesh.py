"""The processes of a run as a mesh, and the groups that talk to each other on it.

One DeviceMesh with the axes of `plan/layout.py`; every group is a product of neighbouring or chosen axes of it. The
device is that of `foretell.runtime`; what is on CUDA travels by NCCL, all else by gloo.
"""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property

import torch.distributed as dist
from torch.distributed import HashStore  # type: ignore[attr-defined]
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from foretell import runtime
from foretell.plan.layout import AXES, Degrees

# Longer than any rank keeps the others waiting: the first one's last export, say.
PATIENCE = timedelta(minutes=30)


def join() -> None:
    """Meet the other processes of this run, as the launcher's environment names them."""
    dist.init_process_group(_backend(), timeout=PATIENCE)


def join_alone() -> None:
    """A group of this process alone, for what wants one."""
    if not dist.is_initialized():
        dist.init_process_group(_backend(), store=HashStore(), rank=0, world_size=1)


def _backend() -> str:
    """What a tensor travels by, by where it is: with `parallel.offload` there are some on the host, too."""
    return "cpu:gloo,cuda:nccl" if runtime.device().type == "cuda" else "gloo"


def leave() -> None:
    """Part from them once all are done."""
    dist.barrier()  # without it a rank may still be spoken to when it leaves
    dist.destroy_process_group()


class Mesh:
    """This process's place among all. Groups are made when they are first asked for: by all ranks in one order."""

    def __init__(self, degrees: Degrees) -> None:
        self.degrees = degrees
        self.whole = init_device_mesh(runtime.device().type, tuple(degrees), mesh_dim_names=AXES)
        self.place = dict(zip(AXES, self.whole.get_coordinate() or [], strict=True))
        self._groups = {axis: self.whole[axis].get_group() for axis in AXES}

    def _joined(self, name: str, *axes: str) -> DeviceMesh:
        return self.whole[axes]._flatten(name)

    @cached_property
    def fsdp(self) -> DeviceMesh:
        """Those that divide one copy of a dense weight: dp_shard x cp."""
        return self._joined("fsdp", "dp_outer", "ep", "cp")

    @cached_property
    def expert_fsdp(self) -> DeviceMesh:
        """Those that divide one copy of the same experts."""
        return self._joined("expert_fsdp", "dp_outer", "cp")

    @cached_property
    def copy(self) -> DeviceMesh:
        """Those that hold one copy of one pipeline stage together: fsdp x tp, tp fastest."""
        return self._joined("copy", "dp_outer", "ep", "cp", "tp")

    @cached_property
    def tokens(self) -> DeviceMesh:
        """Those that see different tokens in the same layers."""
        return self._joined("tokens", "dp_replicate", "dp_outer", "ep", "cp")

    @cached_property
    def one_copy(self) -> DeviceMesh:
        """Those that hold one copy of the whole model together, all its stages."""
        return self._joined("one_copy", "pp", "dp_outer", "ep", "cp", "tp")

    @cached_property
    def scorers(self) -> DeviceMesh:
        """Those that score different tokens, or have another stage of the same."""
        return self._joined("scorers", "pp", "dp_replicate", "dp_outer", "ep", "cp")

    def join_all(self) -> Mesh:
        """Make every group now."""
        for name, member in vars(Mesh).items():
            if isinstance(member, cached_property):
                getattr(self, name)
        return self

    def group(self, axis: str) -> dist.ProcessGroup:
        """The group along one axis."""
        return self._groups[axis]

    @property
    def dp_rank(self) -> int:
        """Which part of each batch's sequences is this process's."""
        shard = self.place["dp_outer"] * self.degrees.ep + self.place["ep"]
        return self.place["dp_replicate"] * self.degrees.dp_shard + shard

    @property
    def fsdp_rank(self) -> int:
        """Place in `fsdp`."""
        shard = self.place["dp_outer"] * self.degrees.ep + self.place["ep"]
        return shard * self.degrees.cp + self.place["cp"]

    @property
    def expert_fsdp_rank(self) -> int:
        """Place in `expert_fsdp`."""
        return self.place["dp_outer"] * self.degrees.cp + self.place["cp"]
