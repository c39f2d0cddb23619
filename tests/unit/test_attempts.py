"""What happens to work that fails, and how the row that does it is found."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyspark.errors import PySparkException

from phi3_batch.errors import InputGoneError, RowErrorCode, ScoringError
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job.attempts import Blamed, CrashLimit, find_culprit, persist
from tests.unit.test_scoring_faults import MODEL_RAISED, WORKER_DIED

OUTPUT = Location("/tables/out")
DISK_FULL = "java.io.IOException: No space left on device"
INPUT_GONE = "[FAILED_READ_FILE.FILE_NOT_EXIST] file:/tables/in/part-0"
NUMBERS = [f"{number:03}" for number in range(100)]

Fails = Callable[[Sequence[str]], str | None]


@dataclass
class Chunk:
    """Work that fails as a function of its requests says; each job that was run is noted."""

    fails: Fails
    everything: Sequence[str] = field(default_factory=lambda: NUMBERS)
    jobs: list[Sequence[str]] = field(default_factory=list)

    def attempt(self, blamed: Blamed) -> Blamed:
        self._run(self.requests(blamed))
        return dict(blamed)

    def requests(self, blamed: Blamed) -> list[str]:
        return [request for request in self.everything if request not in blamed]

    def try_some(self, requests: Sequence[str], blamed: Blamed) -> None:
        self._run([r for r in self.requests(blamed) if requests[0] <= r <= requests[-1]])

    def _run(self, requests: Sequence[str]) -> None:
        self.jobs.append(requests)
        if said := self.fails(requests):
            raise PySparkException(said)


def of(bad: set[str], said: str = WORKER_DIED) -> Fails:
    return lambda requests: said if bad & {*requests} else None


def at_first(times: int, said: str) -> Fails:
    left = iter([said] * times)
    return lambda requests: next(left, None)


def test_work_that_succeeds_is_done_once() -> None:
    chunk = Chunk(of(set()))
    assert persist(chunk, CrashLimit(100), OUTPUT) == ({}, 0)
    assert chunk.jobs == [NUMBERS]


def test_one_death_by_chance_is_one_more_attempt_and_blames_nobody() -> None:
    chunk = Chunk(at_first(1, WORKER_DIED))
    assert persist(chunk, CrashLimit(100), OUTPUT) == ({}, 1)
    assert chunk.jobs == [NUMBERS, NUMBERS]


def test_an_exception_of_the_model_is_looked_for_at_once() -> None:
    chunk = Chunk(of({"042"}, MODEL_RAISED))
    blamed, retries = persist(chunk, CrashLimit(100), OUTPUT)
    assert blamed == {"042": (RowErrorCode.ENGINE_ERROR, "the model raised ValueError")}
    assert retries == len(chunk.jobs) - 1 <= 2 + math.log2(100) + 2


@given(st.sets(st.sampled_from(NUMBERS), min_size=1, max_size=5))
@example({"000", "001", "002", "099"})  # nothing that the first search tries survives
def test_every_row_that_kills_is_blamed_and_no_other(bad: set[str]) -> None:
    chunk = Chunk(of(bad))
    blamed, retries = persist(chunk, CrashLimit(100), OUTPUT)
    assert blamed.keys() == bad
    assert {code for code, _ in blamed.values()} == {RowErrorCode.WORKER_CRASHED}
    assert retries == len(chunk.jobs) - 1


def test_what_no_attempt_changes_ends_it() -> None:
    for said, error, words in (
        (DISK_FULL, ScoringError, "the disk is full"),
        (INPUT_GONE, InputGoneError, "files of the input"),
    ):
        chunk = Chunk(of({"042"}, said))
        with pytest.raises(error, match=words):
            persist(chunk, CrashLimit(100), OUTPUT)
        assert len(chunk.jobs) == 1
    in_the_search = Chunk(at_first(2, WORKER_DIED))
    in_the_search.fails = lambda requests: WORKER_DIED if len(requests) == 100 else DISK_FULL
    with pytest.raises(ScoringError, match=r"^the disk is full"):
        persist(in_the_search, CrashLimit(100), OUTPUT)


def test_many_rows_at_once_and_none_alone_is_the_memory() -> None:
    chunk = Chunk(lambda requests: WORKER_DIED if len(requests) > 10 else None)
    with pytest.raises(ScoringError, match="with none of them alone: give executors more memory"):
        persist(chunk, CrashLimit(100), OUTPUT)
    assert len(chunk.jobs) < 60


def test_a_model_that_fails_on_everything_ends_soon() -> None:
    chunk = Chunk(lambda requests: MODEL_RAISED)
    with pytest.raises(ScoringError, match=r"^the model raised ValueError in a Spark task; every"):
        persist(chunk, CrashLimit(100), OUTPUT)
    assert len(chunk.jobs) <= 16


def test_too_many_rows_are_the_model() -> None:
    chunk = Chunk(of({*NUMBERS[::5]}))
    with pytest.raises(ScoringError, match="11 requests have each failed alone"):
        persist(chunk, CrashLimit(100), OUTPUT)


@given(st.integers(2, 600), st.data())
def test_one_bad_request_is_found_in_about_log2_trials(count: int, data: st.DataObject) -> None:
    requests = [f"{number:04}" for number in range(count)]
    bad = data.draw(st.sampled_from(requests))
    trials: list[Sequence[str]] = []

    def fails(some: Sequence[str]) -> bool:
        trials.append(some)
        return bad in some

    assert find_culprit(requests, fails) == bad
    assert len(trials) <= math.ceil(math.log2(count)) + 3
    # neighbours only: a job selects them by the first and the last
    assert all(list(some) == requests[requests.index(some[0]) :][: len(some)] for some in trials)


@given(st.integers(7, 200), st.data())
def test_of_several_bad_requests_one_is_found(count: int, data: st.DataObject) -> None:
    requests = [f"{number:04}" for number in range(count)]
    bad = data.draw(st.sets(st.sampled_from(requests), min_size=1, max_size=5))
    assert find_culprit(requests, lambda some: any(request in bad for request in some)) in bad


def test_a_crash_by_numbers_is_nobodys_fault() -> None:
    requests = [f"{number:03}" for number in range(100)]
    assert find_culprit(requests, lambda some: len(some) > 10) is None
    assert find_culprit(requests, lambda some: False) is None


def test_when_everything_fails_the_search_ends_soon() -> None:
    trials = 0

    def fails(some: Sequence[str]) -> bool:
        nonlocal trials
        trials += 1
        return True

    with pytest.raises(ScoringError, match="every request that was tried failed"):
        find_culprit([f"{number:03}" for number in range(256)], fails)
    assert trials <= 14


def test_a_row_is_not_blamed_for_one_death_by_chance() -> None:
    chances = iter([True, True, False, True, False, True])  # the last but one trial is alone
    requests = [f"{number:03}" for number in range(8)]
    assert find_culprit(requests, lambda some: next(chances) and len(some) > 1) is None
    alone = Counter[str]()

    def dies_once(some: Sequence[str]) -> bool:
        alone[some[0]] += len(some) == 1
        return "005" in some and alone["005"] < 2

    assert find_culprit(requests, dies_once) is None


def test_a_single_request_may_be_the_culprit() -> None:
    assert find_culprit(["only"], lambda some: True) == "only"
    assert find_culprit(["only"], lambda some: False) is None


@pytest.mark.parametrize(("requests", "allowed"), [(20, 10), (1000, 10), (100_000, 1000)])
def test_too_many_culprits_are_the_models_fault(requests: int, allowed: int) -> None:
    limit = CrashLimit(requests)
    for _ in range(allowed):
        limit.add()
    with pytest.raises(ScoringError, match="looks like the model or too little memory"):
        limit.add()
