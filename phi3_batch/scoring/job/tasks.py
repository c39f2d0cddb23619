"""How many tasks a chunk is cut into, and how many chunks are scored side by side."""

# Enough requests for a task to outweigh what it costs to start, few enough that a lost task is
# some minutes' work: by number until the speed is known, then by time.
REQUESTS_PER_TASK = 512
_SECONDS_PER_TASK = 600
_FEWEST_PER_TASK = 16

# An engine reads all weights for each token of a batch, however few rows are in it. So where a
# chunk spread over all slots would give each less than this, several are scored side by side; but
# no more than so many, for they commit one after the other.
_FULL_BATCH = 128
_MOST_SIDE_BY_SIDE = 32


def count_side_by_side(slots: int, requests: int, chunks: int) -> int:
    """How many chunks it takes to give each slot enough requests for a full batch.

    Args:
        slots: tasks that run at the same time.
        requests: of the largest chunk.
        chunks: that there are.
    """
    fitting = slots * _FULL_BATCH // max(requests, 1)
    return max(1, min(fitting, chunks, _MOST_SIDE_BY_SIDE))


def count_tasks(requests: int, slots: int, seconds_each: float | None) -> int:
    """How many tasks a chunk is cut into: at least one for each slot that it has.

    Args:
        requests: of the chunk.
        slots: tasks of it that run at the same time.
        seconds_each: that a slot takes for a request; None until it is known.
    """
    per_task = float(REQUESTS_PER_TASK)
    if seconds_each:
        per_task = max(min(per_task, _SECONDS_PER_TASK / seconds_each), _FEWEST_PER_TASK)
    return max(int(-(-requests // per_task)), min(requests, slots), 1)
