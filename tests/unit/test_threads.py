import pytest

from phi3_batch.engines import threads as threads_module
from phi3_batch.engines.threads import thread_count
from phi3_batch.errors import EngineError


@pytest.fixture(autouse=True)
def sixteen_processors(monkeypatch):
    monkeypatch.setattr(threads_module, "processors", lambda: 16)


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


@pytest.mark.parametrize("setting", ["17", "64,2"])
def test_there_are_never_more_than_processors(monkeypatch, setting):
    # Spark's slots, in a container with a CPU limit that Spark does not know of
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    assert thread_count() == 16


def test_without_a_setting_the_processors_count(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert thread_count() == 16
