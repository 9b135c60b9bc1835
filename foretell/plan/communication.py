"""Every collective of one optimiser step, in closed form: what one rank issues, and how many bytes that is.

The step is that of `train/loop.py` on a model placed by `distributed/placed.py`. Nothing is enumerated but a layer's
weights: like collectives are one row with a count, so 126 layers on 16,384 ranks take milliseconds. Rows equal those
recorded from real runs number by number, and those of a step on a fake cluster (`distributed/trace.py`); see
docs/communication.md.

Not counted: validation, checkpoints, start and end of a run, and a step that is computed again because it was bad.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from foretell.config import ModelConfig, ParallelConfig, TrainConfig
from foretell.plan import exchanges, layout, models, sharing
from foretell.plan.architecture import Architecture
from foretell.plan.collective import Collective, Rank


def collectives(
    model: ModelConfig,
    train: TrainConfig,
    parallel: ParallelConfig,
    world_size: int,
    *,
    pp_place: int = 0,
    evaluated: bool = False,
    architecture: Architecture | None = None,
) -> list[Collective]:
    """What the first rank of place `pp_place` of the pipeline issues in an optimiser step.

    model must be resolved, train complete, and `layout.check` must have passed them. evaluated: whether a validation
    came right before the step; it leaves weights gathered that the step need not gather. architecture: of a decoder
    that is placed like ours but is none of them, such as Mixtral; all its layers have the same weights. Raises
    ConfigError where the layout is not of so many processes.
    """
    a = architecture or models.of_model(model)
    r = Rank(model, train, parallel, layout.degrees(parallel, world_size), pp_place, a)
    rows = [
        *sharing.weights_and_gradients(r, evaluated),
        *exchanges.tensor_parallel(r),
        *exchanges.context_parallel(r),
        *exchanges.experts(r),
        *exchanges.between_stages(r),
        *sharing.common_weights(r),
        *sharing.partial_gradients(r),
        *sharing.totals(r),
        *sharing.whole_matrices(r),
        *sharing.meetings(r),
    ]
    return [row for row in rows if row.calls]


def comm_bytes(rows: Iterable[Collective]) -> dict[str, dict[str, float]]:
    """Bytes a rank and step by axis and kind."""
    sums: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in rows:
        sums[row.axis][row.kind] += row.step_bytes
    return {axis: dict(kinds) for axis, kinds in sums.items()}


def wire_bytes(rows: Iterable[Collective]) -> dict[str, float]:
    """Bytes that a rank sends in a step by rings, by axis."""
    sums: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        sums[row.axis] += row.wire_bytes
    return dict(sums)
