"""Into how many tasks chunks are cut, without Spark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi3_batch.scoring.job.tasks import count_side_by_side, count_tasks


@pytest.mark.parametrize(
    ("slots", "requests", "chunks", "together"),
    [
        (1, 512, 8, 1),  # a machine: one task at a time
        (1, 1, 1, 1),
        (4, 512, 8, 1),
        (16, 512, 8, 4),
        (16, 350, 3, 3),  # all that there are
        (64, 4_000, 256, 2),  # a large table
        (10_000, 512, 256, 32),  # their commits would wait for each other
        (16, 0, 1, 1),  # rows that no model sees
        (16, 0, 0, 1),
    ],
)
def test_chunks_side_by_side_give_each_slot_a_full_batch(
    slots: int, requests: int, chunks: int, together: int
) -> None:
    assert count_side_by_side(slots, requests, chunks) == together


@pytest.mark.parametrize(
    ("requests", "slots", "seconds_each", "tasks"),
    [
        (512, 1, None, 1),
        (513, 1, None, 2),
        (512, 4, None, 4),
        (3, 16, None, 3),
        (0, 16, None, 1),
        (512, 1, 1.0, 1),
        (512, 1, 2.0, 2),  # 300 requests in ten minutes
        (512, 1, 1_000.0, 32),  # 16 at least, however slow
        (512, 1, 1e-6, 1),
    ],
)
def test_a_task_is_some_minutes_work_and_each_slot_has_one(
    requests: int, slots: int, seconds_each: float | None, tasks: int
) -> None:
    assert count_tasks(requests, slots, seconds_each) == tasks


@given(st.integers(1, 1_000), st.integers(129, 512), st.integers(1, 256))
def test_no_slot_of_a_cluster_has_a_small_task_while_there_is_work_for_it(
    slots: int, requests: int, chunks: int
) -> None:
    together = count_side_by_side(slots, requests, chunks)
    tasks = count_tasks(requests, -(-slots // together), None)
    is_small = requests / tasks < 64
    assert not is_small or together in (chunks, 32)
    assert together * tasks >= min(slots, together * requests)  # and none is left without
