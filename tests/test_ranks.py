"""The harness itself: results by rank, failures with their reason, and a rank that never ends is named."""

import time

import pytest
import torch
import torch.distributed as dist
from ranks import on


def total(factor: int) -> tuple[int, float]:
    t = torch.tensor(float(dist.get_rank() + 1) * factor)
    dist.all_reduce(t)
    return dist.get_rank(), t.item()


def only_one_fails() -> None:
    if dist.get_rank() == 1:
        raise ValueError("rank 1 has had enough")


def one_sleeps() -> None:
    if dist.get_rank() == 0:
        time.sleep(30)


def test_results_come_by_rank() -> None:
    assert on(4, total, 10) == [(n, 100.0) for n in range(4)]


def test_a_failure_is_shown() -> None:
    with pytest.raises(AssertionError, match="rank 1 has had enough"):
        on(2, only_one_fails)


def test_a_late_rank_is_named() -> None:
    with pytest.raises(AssertionError, match=r"ranks \[0, 1\]"):
        on(2, one_sleeps, deadline=2)
