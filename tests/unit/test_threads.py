import os

import pytest

from phi3_batch.engines.threads import thread_count
from phi3_batch.errors import EngineError


@pytest.mark.parametrize(
    ("setting", "threads"), [("1", 1), ("16", 16), (" 3 ", 3), ("4,2,1", 4), ("8 , 1", 8)]
)
def test_omp_num_threads_decides(monkeypatch, setting, threads):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert thread_count() == threads


@pytest.mark.parametrize("setting", ["0", "-2", "two", "", " ", "1.5", ",4", "²", "auto"])
def test_a_setting_that_is_no_positive_number_is_named(monkeypatch, setting):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    with pytest.raises(EngineError) as error:
        thread_count()
    assert str(error.value) == f"OMP_NUM_THREADS must be a positive number, not {setting!r}"


def test_without_a_setting_the_processors_of_the_process_count(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5} if process == 0 else {})
    assert thread_count() == 3
