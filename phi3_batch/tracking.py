"""One MLflow run for each scoring job: what was scored with what, and what came of it.

Parameters, counts and places only. Prompts and completions stay in the tables.
"""

import os
import platform
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import mlflow
from mlflow.data.dataset import Dataset
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.delta_dataset_source import DeltaDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.data.spark_dataset_source import SparkDatasetSource
from mlflow.entities import LifecycleStage, LoggedModelInput, Run
from mlflow.exceptions import MlflowException

from phi3_batch.report import can_be_drawn
from phi3_batch.report.figures import RunReport
from phi3_batch.scoring.compat import JVM_GONE_ERRORS
from phi3_batch.scoring.delta.tables import InputTable
from phi3_batch.scoring.job.chunks import ScoredChunk
from phi3_batch.scoring.job.plan import ScoringPlan
from phi3_batch.scoring.job.run import Outcome, Progress, Summary

_ENGINE_TAG = "phi3_batch.engine"
_OUTCOME_TAG = "phi3_batch.outcome"
# Of a run in place of one that is gone: the id that the table's rows have.
_GOES_ON_WITH = "phi3_batch.goes_on_with"
# What such an id begins with where MLflow did not take a run.
_UNTRACKED = "untracked-"

# How long a store may answer nothing: when a job begins, when it is done, when it must be gone.
_START_S = 60.0
_END_S = 60.0
_LEAVE_S = 10.0
# Calls that wait for a slow store; beyond them, a chunk's figures are left out.
_MOST_WAITING = 64
_TRY_AGAIN = "; once every row is in the output, the same command logs it again"


@dataclass(frozen=True, slots=True)
class _MlflowRun:
    """A run that MLflow has, in the thread that talks to it.

    Attributes:
        id: of the run.
        engines: that answered in it before this process, comma-separated.
        dataset: the input, as MLflow knows it.
        model_id: of the logged model; None where it is not in the tracking store.
    """

    id: str
    engines: str
    dataset: Dataset
    model_id: str | None


def tracked(run_id: str | None) -> str | None:
    """The id that is written beside rows, where it is of a run that MLflow has taken."""
    return None if run_id is None or run_id.startswith(_UNTRACKED) else run_id


class ScoringRun:
    """The MLflow run of a job. The store's answers are never waited for while a job scores.

    A store that does not answer, or refuses something, costs a line of warning and what it was to
    hold. It costs no row: the tables are what a job is about.

    Args:
        calls: what talks to MLflow.
        run: of MLflow's; None where it did not take one.
        warn: shows a line to the user.

    Attributes:
        run_id: of the run, as it is written beside each row.
    """

    def __init__(
        self, calls: "_Calls", run: _MlflowRun | None, warn: Callable[[str], None]
    ) -> None:
        self._calls = calls
        self._run = run
        self._warn = warn
        self._has_warned = False
        self.run_id = run.id if run else f"{_UNTRACKED}{uuid.uuid4().hex}"

    @property
    def place(self) -> str:
        """Where to look it up."""
        if self._run is None:
            return "no run, for the tracking store did not take one"
        return f"run {self.run_id} in {mlflow.get_tracking_uri()}"

    def record_chunk(self, scored: ScoredChunk, progress: Progress) -> None:
        """Log how far the run is, after each chunk; the step is the rows that are done."""
        if self._run is None:
            return
        run_id, step = self._run.id, progress.rows_done
        metrics = {
            "progress.rows": progress.rows_done,
            "progress.rows_with_errors": progress.errors.total(),
            "progress.generated_tokens": progress.generated_tokens,
            "progress.tokens_per_second": progress.tokens_per_second,
            "progress.retries": progress.retries,
            "chunk.seconds": scored.seconds,
        }

        def log() -> None:
            try:
                mlflow.log_metrics(metrics, step=step, run_id=run_id)
            except Exception as error:  # whatever a store's client may raise
                self._warn_of_progress(_kind(error))

        if self._calls.submit(log) is None:
            self._warn_of_progress("it does not answer")

    def _warn_of_progress(self, why: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            self._warn(f"MLflow does not take the progress of this job ({why}); the job goes on")

    def interrupted(self) -> None:
        """Mark the run as killed; the same command goes on in it."""
        self._end("KILLED")

    def failed(self) -> None:
        """Mark the run as failed; the same command goes on in it."""
        self._end("FAILED")

    def _end(self, status: str) -> None:
        if self._run is not None:
            run_id = self._run.id
            self._calls.wait_for(lambda: _end(run_id, status), _LEAVE_S)

    def record(self, plan: ScoringPlan, summary: Summary) -> str | None:
        """Log what the run has come to, and its report, and end the run.

        Args:
            plan: of the job.
            summary: of the job.

        Returns:
            The report; None where what draws it is not installed.
        """
        run = self._run
        engines = _join(summary.progress.engines, run.engines if run else "")
        page = _render(plan, summary, self.run_id, engines)
        if run is not None:
            failure = self._calls.wait_for(lambda: _record(run, summary, engines, page), _END_S)
            if failure:
                self._warn(
                    f"MLflow did not take all of the run's record ({failure}); the output has all"
                    f" that was scored{_TRY_AGAIN if summary.outcome is Outcome.COMPLETE else ''}"
                )
        return page


@contextmanager
def scoring_run(plan: ScoringPlan, warn: Callable[[str], None]) -> Iterator[ScoringRun]:
    """An MLflow run around a job; it ends as failed when the job does.

    Args:
        plan: of the job.
        warn: shows a line to the user.
    """
    calls = _Calls()
    started: list[_MlflowRun | None] = []
    lock = threading.Lock()

    def start() -> None:
        run = _start(plan, warn)
        with lock:
            is_late = bool(started)
            started.append(run)
        if is_late:  # the job has begun without it
            _end(run.id, "KILLED")

    failure = calls.wait_for(start, _START_S)
    with lock:
        started.append(None)
    if started[0] is None:
        warn(f"MLflow takes no run ({failure}): the job goes on without one{_TRY_AGAIN}")
    run = ScoringRun(calls, started[0], warn)
    try:
        yield run
    except Exception:
        run.failed()
        raise
    except BaseException:
        run.interrupted()
        raise
    finally:
        calls.close()


def record_finished(
    plan: ScoringPlan, summary: Summary, warn: Callable[[str], None]
) -> tuple[str | None, str | None]:
    """Make up for a record that an earlier process did not come to, where one is missing.

    A process that was killed after its last commit leaves a run that never ends, without a report;
    a store that was down then has neither.

    Args:
        plan: of a job of which all rows are in the output.
        summary: of that.
        warn: shows a line to the user.

    Returns:
        The report, None where what draws it is not installed; and the id of the run that was
        ended, None where there was nothing to do.
    """
    calls = _Calls()
    runs, recorded = list[Run](), list[str]()

    def render_for(run: Run | None) -> str | None:
        run_id = run.info.run_id if run else plan.state.run_id or "-"
        engines = run.data.tags.get(_ENGINE_TAG, "") if run else ""
        return _render(plan, summary, run_id, engines)

    def record() -> None:
        begun_as = plan.state.run_id
        run = _find_run(begun_as) if begun_as else None
        if run is not None:
            runs.append(run)
            whole = run.data.tags.get(_OUTCOME_TAG) == Outcome.COMPLETE.value
            if whole and run.info.status == "FINISHED":
                return
            run = mlflow.start_run(run_id=run.info.run_id)
        elif begun_as and begun_as.startswith(_UNTRACKED):  # else somebody has deleted it
            run = _start_in_place_of(plan, begun_as)
            runs.append(run)
        else:
            return
        described = _describe(plan, run, warn)
        _record(described, summary, described.engines, render_for(run))
        recorded.append(described.id)

    failure = calls.wait_for(record, _END_S)
    calls.close()
    if failure:
        warn(f"MLflow did not take the run's record ({failure}){_TRY_AGAIN}")
    return render_for(runs[0] if runs else None), recorded[0] if recorded else None


class _Calls:
    """MLflow's functions, called one after another in a thread of their own.

    A store may take minutes to say that it does not answer. The thread has an active run of its
    own in MLflow, too, so one that the caller's code has begun stays what it is.
    """

    def __init__(self) -> None:
        self._waiting: queue.Queue[tuple[Callable[[], None], Future[None]] | None]
        self._waiting = queue.Queue(_MOST_WAITING)
        self._moved = time.monotonic()
        # daemon: the process may end before the store has answered
        threading.Thread(target=self._run, name="mlflow", daemon=True).start()

    def submit(self, call: Callable[[], None]) -> "Future[None] | None":
        """Have something called soon; None where too much waits already."""
        future: Future[None] = Future()
        try:
            self._waiting.put_nowait((call, future))
        except queue.Full:
            return None
        return future

    def wait_for(self, call: Callable[[], None], patience_s: float) -> str | None:
        """Have something called, and wait while the store answers anything.

        Returns:
            What went wrong, in words that quote nothing; None where nothing did.
        """
        future = self.submit(call)
        if future is None:
            return "it does not answer"
        begun = time.monotonic()
        while not future.done():
            left_s = max(begun, self._moved) + patience_s - time.monotonic()
            if left_s <= 0:
                return "it does not answer"
            wait([future], left_s)
        error = future.exception()
        return _kind(error) if error else None

    def close(self) -> None:
        """Let the thread end when it has nothing left to do."""
        with suppress(queue.Full):  # of a store that hangs: it ends with the process
            self._waiting.put_nowait(None)

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            call, future = waiting
            try:
                call()
            except BaseException as error:  # for whoever waits for it
                future.set_exception(error)
            else:
                future.set_result(None)
            self._moved = time.monotonic()


def _kind(error: BaseException) -> str:
    """What an error of MLflow is. Not its text, which may quote what was to be logged."""
    code = getattr(error, "error_code", None)
    return f"{type(error).__name__}, {code}" if code else type(error).__name__


def _start(plan: ScoringPlan, warn: Callable[[str], None]) -> _MlflowRun:
    """Begin the run of a job, or resume it, and say what is scored with what."""
    begun_as, name = plan.state.run_id, f"score {plan.options.input.text}"
    run: Run
    if "MLFLOW_RUN_ID" in os.environ:  # which `mlflow run` sets
        try:
            run = mlflow.start_run(run_name=name)
        except MlflowException:
            if "MLFLOW_RUN_ID" in os.environ:  # else MLflow has forgotten what it cannot start
                raise
            run = mlflow.start_run(run_name=name)
            warn(f"MLFLOW_RUN_ID names no run that can go on: this is run {run.info.run_id}")
    elif begun_as is None:
        run = mlflow.start_run(run_name=name)
    elif before := _find_run(begun_as):
        run = mlflow.start_run(run_id=before.info.run_id)
    else:
        run = _start_in_place_of(plan, begun_as)
        if not begun_as.startswith(_UNTRACKED):
            warn(
                f"MLflow's run {begun_as} of this job is gone (deleted, or in another store): the"
                f" job goes on in run {run.info.run_id}"
            )
    return _describe(plan, run, warn)


def _describe(plan: ScoringPlan, run: Run, warn: Callable[[str], None]) -> _MlflowRun:
    """Log what a run is about, as far as it does not say so already."""
    options = plan.options
    params = {
        "fingerprint": plan.run.fingerprint,
        "model": options.model,
        "model_version": plan.job.model.resolved_uri,
        "input": options.input.text,
        "input_version": plan.job.input.version,
        "output": options.output.text,
        "limit": options.limit,
        "mode": options.mode,
        "ids": ",".join(options.ids) or None,
        "chunks": plan.chunk_count,
        # parameters too, and texts as digests
        **{name: value for name, value in plan.run.settings.items() if name != "model"},
    }
    there = run.data.params  # `mlflow run` has logged some, quoted for its shell
    new = {k: value for k, value in params.items() if value is not None and k not in there}
    # the links that MLflow shows: the table that was read, and the model that read it
    dataset, model_id = _dataset(plan.job.input), _model_in_store(plan.job.model.info.model_id)
    # mlflow.log_inputs(models=...) refuses every store but Databricks', the client none
    models = [LoggedModelInput(model_id)] if model_id else []
    failure = _try_each(
        lambda: mlflow.log_params(new),
        lambda: _log_dataset(dataset),
        lambda: mlflow.MlflowClient().log_inputs(run.info.run_id, models=models),
    )
    if failure:
        warn(f"MLflow did not take all that describes the run ({_kind(failure)}); the job goes on")
    return _MlflowRun(run.info.run_id, run.data.tags.get(_ENGINE_TAG, ""), dataset, model_id)


def _find_run(begun_as: str) -> Run | None:
    """The run that a job has in the store: its first one, or that which went on with it."""
    try:
        run = mlflow.get_run(begun_as)
        if run.info.lifecycle_stage == LifecycleStage.ACTIVE:
            return run
    except MlflowException:
        pass
    found: list[Run] = mlflow.search_runs(
        filter_string=f"tags.`{_GOES_ON_WITH}` = '{begun_as}'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
        output_format="list",
    )
    return found[0] if found else None


def _start_in_place_of(plan: ScoringPlan, begun_as: str) -> Run:
    """A new run, for the table has the id of one that is not there."""
    name = f"score {plan.options.input.text}"
    return mlflow.start_run(run_name=name, tags={_GOES_ON_WITH: begun_as})


def _record(run: _MlflowRun, summary: Summary, engines: str, page: str | None) -> None:
    """Log what a run has come to, and end it."""
    progress, statistics = summary.progress, summary.statistics
    assert statistics is not None  # an interrupted job records nothing
    metrics: dict[str, float] = {
        "rows": progress.rows_done,
        "rows_with_errors": statistics.errors.total(),
        "prompt_tokens": statistics.prompt_tokens,
        "completion_tokens": statistics.completion_tokens,
        **{f"errors.{code}": count for code, count in statistics.errors.items()},
    }
    if progress.seconds:  # else it was another process that scored
        metrics |= {
            "requests": progress.requests_done,
            "retries": progress.retries,
            "completion_tokens_per_second": progress.tokens_per_second,
            "seconds": progress.seconds,
        }
    if summary.balance:
        metrics |= {
            "rows_missing": summary.balance.missing,
            "rows_doubled": summary.balance.doubled,
        }
    # tags, for a run that was resumed ends at another version than it stopped at
    tags = {
        "output_version": summary.output_version,
        "output_path": summary.output_path,
        _ENGINE_TAG: engines,
    }
    steps: list[Callable[[], object]] = [
        lambda: mlflow.log_metrics(
            metrics, model_id=run.model_id, dataset=run.dataset, run_id=run.id
        ),
        lambda: mlflow.set_tags({name: value for name, value in tags.items() if value != ""}),
    ]
    if page is not None:
        steps.append(partial(mlflow.log_text, page, "report.html", run_id=run.id))
    failure = _try_each(*steps)
    if failure is None:  # last: it says that the record is whole
        mlflow.set_tag(_OUTCOME_TAG, summary.outcome.value)
    _end(run.id, "FINISHED")
    if failure:
        raise failure


def _try_each(*steps: Callable[[], object]) -> Exception | None:
    """Call several functions, whatever others raise: what one store refuses, another may take."""
    failures = []
    for step in steps:
        try:
            step()
        except Exception as error:  # whatever a store's client may raise
            failures.append(error)
    return failures[0] if failures else None


def _end(run_id: str, status: str) -> None:
    """End a run, even where the JVM has died: MLflow asks the Spark session for its registry."""
    try:
        mlflow.end_run(status)
    except JVM_GONE_ERRORS:
        mlflow.MlflowClient(registry_uri=mlflow.get_tracking_uri()).set_terminated(run_id, status)


def _join(engines: Iterable[str], before: str) -> str:
    """Names of engines, those that a run had before it was resumed too."""
    return ", ".join(sorted({*engines, *filter(None, before.split(", "))}))


def _log_dataset(dataset: Dataset) -> None:
    try:
        mlflow.log_input(dataset, context="scoring")
    except MlflowException:
        # a store has each dataset once, and another driver has entered it between this one's look
        # and its own entry: now it is found
        mlflow.log_input(dataset, context="scoring")


def _render(plan: ScoringPlan, summary: Summary, run_id: str, engines: str) -> str | None:
    if not can_be_drawn():
        return None
    from phi3_batch.report.page import render  # it imports matplotlib, which takes a second

    return render(_report(plan, summary, run_id, engines))


def _report(plan: ScoringPlan, summary: Summary, run_id: str, engines: str) -> RunReport:
    statistics = summary.statistics
    assert statistics is not None  # an interrupted job has no report
    input_version, uri = plan.job.input.version, plan.job.model.resolved_uri
    packages = ("phi3-batch", "pyspark", "delta-spark", "mlflow-skinny")
    return RunReport(
        state=summary.outcome.value,
        model=f"{uri} ({plan.work.model.kind.value})" if plan.work else uri,
        input=plan.options.input.text,
        output=summary.output_path,
        fingerprint=plan.run.fingerprint,
        run_id=run_id,
        rows_expected=plan.total,
        rows=statistics.rows,
        requests=sum(chunk.requests for chunk in plan.chunks) if plan.work else None,
        prompt_tokens=statistics.prompt_tokens,
        completion_tokens=statistics.completion_tokens,
        errors=statistics.errors,
        chunks=statistics.chunks,
        prompt_lengths=statistics.prompt_lengths,
        completion_lengths=statistics.completion_lengths,
        parameters={
            **plan.run.settings,
            "mode": plan.options.mode,
            "chunks": str(plan.chunk_count),
            "tasks at once": str(plan.slots),
            "retries": str(summary.progress.retries),
        },
        versions={
            "input": "-" if input_version is None else f"version {input_version}",
            "output": f"version {summary.output_version}",
            "engine": engines or "-",
            "python": platform.python_version(),
            **_versions(packages),
        },
    )


def _versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed under these names."""
    found = {}
    for name in packages:
        with suppress(PackageNotFoundError):  # pyspark, where there is pyspark-client
            found[name] = version(name)
    return found


def _model_in_store(model_id: str | None) -> str | None:
    """The logged model's id, unless it is a folder, or its store is another than the runs'."""
    if model_id is None:
        return None
    try:
        mlflow.MlflowClient().get_logged_model(model_id)
    except Exception:  # whatever a store's client may raise: the run does without the link
        return None
    return model_id


def _dataset(table: InputTable) -> Dataset:
    # metadata alone: MLflow's dataset of a DataFrame would count rows, and keep a profile
    return MetaDataset(  # type: ignore[abstract]  # MLflow's own, without a profile
        _dataset_source(table), name=table.location.text
    )


def _dataset_source(table: InputTable) -> DatasetSource:
    if table.path is None:
        return SparkDatasetSource(table_name=table.location.text)
    if table.version is None:
        return SparkDatasetSource(path=table.path)
    return DeltaDatasetSource(path=table.path, delta_table_version=table.version)
