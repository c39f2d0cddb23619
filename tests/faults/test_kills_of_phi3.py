"""Driver and JVM killed while the embedded model answers; beside it, test_kills.py."""

from tests.conftest import KILLS, Sample, deep
from tests.faults.harness import Workplace, distinct_rows
from tests.faults.killer import endure_all


@deep
def test_kills_of_a_job_with_the_real_model(
    model_uri: str, workplace: Workplace, samples: list[Sample]
) -> None:
    rows = distinct_rows(samples, 515)
    known = {sample.prompt: sample.answer for sample in samples}
    ordeals = endure_all(KILLS // 5, workplace, model_uri, rows, known, sees_answers=False)
    for ordeal in ordeals:
        assert ordeal.comparison.ok, ordeal.comparison
