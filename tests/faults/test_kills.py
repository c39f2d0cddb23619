"""Driver and JVM killed while a model answers that notes whom it answered.

PHI3_BATCH_KILLS says how many kills there are, PHI3_BATCH_SEED when they come.
"""

from tests.conftest import KILLS, Sample, deep
from tests.faults.harness import Workplace, answer_of, distinct_rows
from tests.faults.killer import endure_all


@deep
def test_kills_lose_and_double_nothing_and_cost_two_chunks_each(
    noting_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 2_400)
    known = {row["prompt"]: answer_of(row["prompt"]) for row in rows}
    ordeals = endure_all(KILLS - KILLS // 5, workplace, noting_uri, rows, known, sees_answers=True)
    for ordeal in ordeals:
        assert ordeal.comparison.ok, ordeal.comparison
        assert set(ordeal.asked) == set(known)
        assert ordeal.recomputed <= ordeal.recomputable
