"""Jobs as real processes, what they say, what they run on, and what they leave in a table."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Condition, Thread
from typing import IO, Any
from urllib.parse import unquote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import Sample
from tests.delta_files import write_table

# A JVM that lives for seconds had better not compile much; Java's own limit of compiled code is
# too small for Spark at this level, and what it says of it goes to stdout.
_JAVA = (
    f"{os.environ.get('JDK_JAVA_OPTIONS', '')} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
    " -XX:ReservedCodeCacheSize=256m -Dspark.sql.codegen.wholeStage=false"
    " -Dspark.sql.codegen.factoryMode=NO_CODEGEN"
)
_PATIENCE_S = 300

SEED = int(os.environ.get("PHI3_BATCH_SEED", time.time_ns() % 10**6))

Row = dict[str, Any]


# rows


def distinct_rows(samples: Sequence[Sample], number: int) -> list[Row]:
    """Rows of which no two have the same prompt; the first ones are the samples as they are."""
    rows = []
    for place in range(number):
        sample, variation = samples[place % len(samples)], place // len(samples)
        prompt = sample.prompt.replace("<|end|>", f" ({variation})<|end|>", 1)
        rows.append(
            {
                "id": place,
                "sample": sample.id,
                "language": sample.language if place % 3 else None,
                "prompt": prompt if variation else sample.prompt,
            }
        )
    assert len({row["prompt"] for row in rows}) == number
    return rows


def write_rows(rows: Sequence[Row], path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_versions(place: "Workplace", *versions: Sequence[Row]) -> Path:
    """A Delta table with these versions."""
    tables = map(pa.Table.from_pylist, versions)
    return Path(write_table(place.folder / "versions", *tables))


def answer_of(prompt: str) -> str:
    """What noting_model.py answers."""
    return prompt[::-1]


def asked_in_tasks(log: Path) -> list[str]:
    """The prompts that noting_model.py was asked, in order; not those of the driver's pilot."""
    if not log.exists():
        return []
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0]  # one may be about to be written
    lines = [line.partition(" ") for line in whole.splitlines()]
    return [json.loads(prompt) for where, _, prompt in lines if where == "task"]


# processes


@dataclass(frozen=True)
class Workplace:
    """Where jobs run: a folder, and the environment of their processes."""

    folder: Path
    environment: Mapping[str, str]
    jobs: list["Job"] = field(default_factory=list)

    def enter(self, name: str) -> "Workplace":
        """Make a folder below, for other jobs."""
        below = replace(self, folder=self.folder / name)
        below.folder.mkdir()
        return below

    def clear(self) -> None:
        """Kill the jobs that a test which failed has left."""
        for job in self.jobs:
            if job.process.poll() is None:
                job.kill()

    @property
    def asked_log(self) -> Path:
        return self.folder / "asked.log"

    def await_asked(self, more: int, job: "Job") -> None:
        """Wait until a job has asked noting_model.py so many prompts more, or has ended."""
        enough = len(asked_in_tasks(self.asked_log)) + more
        while len(asked_in_tasks(self.asked_log)) < enough and not job.ends_within(0.05):
            pass

    def start(self, *arguments: str | Path, **variables: str) -> "Job":
        """Start ``phi3-batch score``, with more variables."""
        command = [sys.executable, "-m", "phi3_batch", "score", *map(str, arguments)]
        return self.start_command(command, **variables)

    def start_command(self, command: Sequence[str], **variables: str) -> "Job":
        scratch = self.folder / "scratch"  # of what a killed process leaves behind
        scratch.mkdir(exist_ok=True)
        ours = {
            "ASKED_LOG": str(self.asked_log),
            "JDK_JAVA_OPTIONS": _JAVA,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",  # of MLflow, about the models of these tests
            "SPARK_LOCAL_DIRS": str(scratch),
            "TMPDIR": str(scratch),
        }
        job = Job(command, {**self.environment, **ours, **variables}, self.folder)
        self.jobs.append(job)
        return job


class Job:
    """A process in a session of its own, and the lines that it writes."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], cwd: Path) -> None:
        self.started = time.monotonic()
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self.process = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._said, self._reading = Condition(), 2
        for stream, lines in (
            (self.process.stdout, self.stdout),
            (self.process.stderr, self.stderr),
        ):
            assert stream is not None
            Thread(target=self._read, args=(stream, lines), daemon=True).start()

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._said:
                lines.append(line.rstrip("\n"))
                self._said.notify_all()
        with self._said:
            self._reading -= 1
            self._said.notify_all()

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started

    def await_progress(self, is_enough: Callable[[int, int], bool]) -> tuple[int, int] | None:
        """Wait for a line of progress, by rows done and rows in all; None if the job ends first."""

        def seen() -> tuple[int, int] | None:
            return next((found for found in self.progress() if is_enough(*found)), None)

        with self._said:
            in_time = self._said.wait_for(lambda: seen() or not self._reading, _PATIENCE_S)
            assert in_time, self.words()
            return seen()

    def await_scoring(self) -> bool:
        """Wait for the first line of progress; False if the job ends first."""
        return self.await_progress(lambda done, rows: True) is not None

    def progress(self) -> list[tuple[int, int]]:
        """The lines of progress: rows done, rows in all."""
        # under spark-submit, what a driver says on stderr comes out of stdout
        lines = (*self.stderr, *self.stdout)
        found = (re.match(r"scoring: ([\d,]+) of ([\d,]+) rows", line) for line in lines)
        return [(to_int(match.group(1)), to_int(match.group(2))) for match in found if match]

    def ends_within(self, seconds: float) -> bool:
        """Wait for the end, so long at most."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def finish(self) -> int:
        """Wait for the end and for the last line; returns the exit code."""
        try:
            code = self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        with self._said:
            assert self._said.wait_for(lambda: not self._reading, 60), self.words()
        return code

    def kill(self) -> None:
        """SIGKILL to the driver and its JVM."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def kill_jvm(self) -> None:
        """SIGKILL to the driver's JVM alone."""
        (jvm,) = find_below(self.process.pid, "org.apache.spark.deploy.SparkSubmit")
        os.kill(jvm, signal.SIGKILL)

    def field(self, name: str) -> str | None:
        """A field of the summary."""
        found = (re.fullmatch(rf"{name} {{2,}}(.*)", line) for line in self.stdout)
        return next((match.group(1) for match in found if match), None)

    def words(self) -> str:
        """All that it said, for a failed assertion."""
        return "\n".join(["", *self.stdout, *self.stderr[-60:]])


def to_int(text: str) -> int:
    return int(text.replace(",", ""))


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    command: str


def _processes() -> Iterator[_Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended in the meantime
            continue
        yield _Process(int(folder.name), int(parent), command)


def _below(ancestor: int) -> list[_Process]:
    """The processes that descend from one."""
    everybody = list(_processes())
    found, parents = [], {ancestor}
    while parents:
        children = [process for process in everybody if process.parent in parents]
        found += children
        parents = {process.pid for process in children}
    return found


def find_below(ancestor: int, command_part: str) -> list[int]:
    """Process ids below a process, by a part of their command line."""
    return [process.pid for process in _below(ancestor) if command_part in process.command]


def find_workers(ancestor: int) -> list[int]:
    """The Python workers below a process: they are forks of a daemon, with its command line."""
    daemons = [process for process in _below(ancestor) if "pyspark.daemon" in process.command]
    pids = {process.pid for process in daemons}
    return [process.pid for process in daemons if process.parent in pids]


def await_busy_worker(ancestor: int, ends_within: Callable[[float], bool]) -> int:
    """Wait for a Python worker that computes half a second long; returns its process id.

    Args:
        ancestor: a process id that it is below.
        ends_within: waits so many seconds for the end of the job.
    """
    since: dict[int, float] = {}
    before: dict[int, float] = {}
    while not ends_within(0.05):
        for pid in find_workers(ancestor):
            with contextlib.suppress(OSError):  # it has ended in the meantime
                used_s = processor_seconds(pid)
                # and goes on to: it has not just come to its end
                if before.get(pid, used_s) < used_s > since.setdefault(pid, used_s) + 0.5:
                    return pid
                before[pid] = used_s
    raise AssertionError("the job has ended")


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used."""
    # https://docs.kernel.org/filesystems/proc.html: user and system time
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


# tables


@dataclass(frozen=True)
class ChunkCommit:
    """A commit of the job's, as the table's log has it."""

    chunk: int
    rows: int


def _actions(table: Path) -> Iterator[list[Row]]:
    """The actions of each commit of a Delta table, oldest first."""
    for commit in sorted(table.glob("_delta_log/[0-9]*.json")):
        yield [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines()]


def is_there(table: Path) -> bool:
    return any(_actions(table))


def read_table(table: Path) -> pd.DataFrame:
    """The rows of a Delta table, by its log alone."""
    files: dict[str, None] = {}
    for actions in _actions(table):
        for action in actions:
            if remove := action.get("remove"):
                files.pop(remove["path"], None)
            if add := action.get("add"):
                assert "deletionVector" not in add  # which this reader does not know
                files[add["path"]] = None
    tables = [pq.ParquetFile(table / unquote(name)).read() for name in files]
    return pa.concat_tables(tables).to_pandas()


def chunk_commits(table: Path) -> list[ChunkCommit]:
    """The commits that wrote a chunk."""
    found = []
    for actions in _actions(table):
        info = next(action["commitInfo"] for action in actions if "commitInfo" in action)
        ours = json.loads(info.get("userMetadata", "{}")).get("phi3_batch", {})
        stats = [json.loads(action["add"]["stats"]) for action in actions if "add" in action]
        if ours.get("chunk") is not None:
            found.append(ChunkCommit(ours["chunk"], sum(stat["numRecords"] for stat in stats)))
    return found


def largest_chunk(table: Path) -> int:
    """Rows of the largest chunk, which are its requests where all prompts are distinct."""
    return max(commit.rows for commit in chunk_commits(table))


@dataclass(frozen=True)
class Comparison:
    """Rows in against rows out; a row is all of its input columns."""

    rows: int
    lost: int
    doubled: int
    strange: int
    with_error: int
    wrong: int

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.strange or self.with_error or self.wrong)


def compare(rows: Sequence[Row], output: Path, answers: Mapping[str, str]) -> Comparison:
    """Compare a table with what was to become of its input.

    Args:
        rows: of the input.
        output: the table.
        answers: what the model is known to answer, by prompt.
    """
    columns = list(rows[0])
    table = read_table(output)
    wanted = Counter(tuple(row[name] for name in columns) for row in rows)
    there = Counter(table[columns].itertuples(index=False, name=None))
    both = zip(table["prompt"], table["completion"], strict=True)
    return Comparison(
        rows=there.total(),
        lost=(wanted - there).total(),
        doubled=sum(count - 1 for count in there.values()),
        strange=len(set(there) - set(wanted)),
        with_error=int(table["error"].notna().sum()),
        wrong=sum(answers.get(prompt, completion) != completion for prompt, completion in both),
    )


def assert_each_row_once(rows: Sequence[Row], output: Path) -> None:
    """Every row is there once, with the answer of noting_model.py."""
    found = compare(rows, output, {row["prompt"]: answer_of(row["prompt"]) for row in rows})
    assert found.ok, found
    assert found.rows == len(rows)
