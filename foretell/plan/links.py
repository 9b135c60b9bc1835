"""Seconds of collectives: rings inside a node and between nodes.

A ring moves 2(n-1)/n S bytes a rank in an all-reduce of S bytes, (n-1)/n S in an all-gather or reduce-scatter (Thakur
et al., 2005). Between nodes the ring enters and leaves each node once; the ranks of the group that stand in one node
bring their network cards with them, so the ring runs at the sum of theirs or at the node's own links, whichever is
less. Beside the link a device reads and writes its own memory: with that term, and links at their data-sheet rate, one
formula holds for 2, 4 and 8 ranks (docs/cluster.md). Latencies add up once around the ring, or over a tree of nodes.

Not handled: congestion in the network, links of unequal speed (V100's NVLink cube), in-network reduction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from foretell.plan.hardware import Hardware
from foretell.plan.kernels import Constants

# Of an all-reduce a device reads its own part and what came, and writes the sum: three times the tensor in all.
LOCAL_PASSES = 3.0


@dataclass(frozen=True)
class Group:
    """Ranks that communicate: `size` in all, `per_node` of them joined by fast links."""

    size: int
    per_node: int

    @property
    def crosses(self) -> bool:
        """Whether it goes over the network."""
        return self.size > self.per_node


def group(size: int, stride: int, hardware: Hardware) -> Group:
    """The group of `size` ranks that are `stride` apart in the order of the machine."""
    domain = hardware.node_link.devices
    return Group(size, max(1, min(size, domain // stride)))


def bus_bytes_per_second(g: Group, hardware: Hardware, c: Constants) -> float:
    """Rate at which each rank of a ring sends."""
    node = hardware.node_link.bytes_per_second * c.node
    if not g.crosses:
        return node
    return min(node, hardware.network_link.bytes_per_second * c.network * g.per_node)


def _steps_seconds(g: Group, hardware: Hardware) -> float:
    """Seconds of the latencies once around the ring, or up a tree of nodes where that is shorter."""
    near, far = hardware.node_link.latency_seconds, hardware.network_link.latency_seconds
    nodes = math.ceil(g.size / g.per_node)
    if nodes == 1:
        return (g.size - 1) * near
    return min((g.size - nodes) * near + nodes * far, (g.per_node - 1) * near + 2 * math.log2(nodes) * far)


def _ring_seconds(size_bytes: float, passes: int, g: Group, hardware: Hardware, c: Constants) -> float:
    """`passes` times around the ring (two of an all-reduce), and over the device's own memory beside it."""
    if g.size == 1 or not size_bytes:
        return 0.0
    sent = passes * (g.size - 1) / g.size * size_bytes / bus_bytes_per_second(g, hardware, c)
    local = passes * LOCAL_PASSES / 2 * size_bytes / (hardware.memory_bytes_per_second * c.memory)
    return c.collective_seconds + _steps_seconds(g, hardware) * passes / 2 + sent + local


def all_reduce_seconds(size_bytes: float, g: Group, hardware: Hardware, c: Constants) -> float:
    """Seconds of a sum of `size_bytes` on every rank."""
    return _ring_seconds(size_bytes, 2, g, hardware, c)


def gather_seconds(size_bytes: float, g: Group, hardware: Hardware, c: Constants) -> float:
    """Seconds of an all-gather or a reduce-scatter whose whole tensor is `size_bytes`."""
    return _ring_seconds(size_bytes, 1, g, hardware, c)


def all_to_all_seconds(size_bytes: float, g: Group, hardware: Hardware, c: Constants) -> float:
    """Seconds of an exchange in which each rank has `size_bytes` and sends (n-1)/n of them, each part to another."""
    if g.size == 1 or not size_bytes:
        return 0.0
    near, far = hardware.node_link, hardware.network_link
    inside = (g.per_node - 1) / g.size * size_bytes / (near.bytes_per_second * c.node)
    outside = (g.size - g.per_node) / g.size * size_bytes / (far.bytes_per_second * c.network)
    return max(inside, outside) + (far if g.crosses else near).latency_seconds


def send_seconds(size_bytes: float, far: bool, hardware: Hardware, c: Constants) -> float:
    """Seconds of one message to a neighbour in the node, or in another one."""
    if not size_bytes:
        return 0.0
    link, share = (hardware.network_link, c.network) if far else (hardware.node_link, c.node)
    return size_bytes / (link.bytes_per_second * share) + link.latency_seconds
