"""Why jobs fail."""

import pytest
from py4j.protocol import Py4JError, Py4JNetworkError
from pyspark.errors import PySparkException

from phi3_batch.errors import InputGoneError, RowErrorCode
from phi3_batch.scoring import session
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.job import faults
from phi3_batch.scoring.job.faults import Fault, classify, why
from phi3_batch.scoring.rows.worker import MISCOUNTED

OUTPUT = Location("/tables/out")
WORKER_DIED = """An error occurred while calling o1.append.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 1
times, most recent failure: Lost task 0.0 in stage 3.0 (TID 3) (localhost executor driver):
org.apache.spark.SparkException: Python worker exited unexpectedly (crashed)
Caused by: java.io.EOFException"""
WORKER_DIED_YOUNG = """An error occurred while calling o1.save.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 3.0 failed 1
times, most recent failure: Lost task 0.0 in stage 3.0 (TID 3) (localhost executor driver):
java.io.EOFException
\tat java.base/java.io.DataInputStream.readInt(DataInputStream.java:386)
\tat org.apache.spark.security.SocketAuthHelper.authToServer(SocketAuthHelper.scala:101)
\tat org.apache.spark.api.python.PythonWorkerFactory.createWorker$1(PythonWorkerFactory.scala:195)
"""
MODEL_RAISED = """org.apache.spark.api.python.PythonException: Traceback (most recent call last):
  File "worker.py", line 1, in main
ValueError: cannot answer my secret question
"""
QUOTED_NOTHING = """[PYTHON_EXCEPTION] Traceback (most recent call last):
  File "model.py", line 1, in predict
    raise Refusal(prompt)
RuntimeError: the model raised Refusal
 SQLSTATE: 38000"""
OURS = MODEL_RAISED + "phi3_batch.errors.EngineError: onnxruntime-genai cannot load it"


@pytest.mark.parametrize(
    ("text", "fault", "said"),
    [
        (WORKER_DIED, Fault.CRASH, "a Python worker died while the model ran"),
        (WORKER_DIED_YOUNG, Fault.CRASH, "a Python worker died"),
        ("ExecutorLostFailure (executor 1 exited)", Fault.CRASH, "a Python worker died"),
        (MODEL_RAISED, Fault.RAISED, "the model raised ValueError in a Spark task"),
        (QUOTED_NOTHING, Fault.RAISED, "the model raised Refusal in a Spark task"),
        (OURS, Fault.FATAL, "onnxruntime-genai cannot load it"),
        (f"RuntimeError: {MISCOUNTED}", Fault.FATAL, "another number of results than rows"),
        ("java.io.IOException: No space left on device", Fault.FATAL, "the disk is full"),
        (WORKER_DIED + "\nNo space left on device", Fault.FATAL, "the disk is full"),
        ("[FAILED_READ_FILE.FILE_NOT_EXIST] part-0", Fault.FATAL, "files of a table are gone"),
        ("[SOMETHING] else\n\tat a.b.c", Fault.FATAL, "[SOMETHING] else"),
    ],
)
def test_a_failure_is_known_by_what_spark_says_of_it(text: str, fault: Fault, said: str) -> None:
    assert classify(RuntimeError(text)) is fault
    line = why(RuntimeError(text))
    assert said in line
    assert "\n" not in line
    assert "secret" not in line


@pytest.mark.parametrize(
    "error",
    [
        Py4JNetworkError("Answer from Java side is empty"),
        Py4JError("An error occurred while calling None.java.util.ArrayList"),
        Py4JError("java.util.ArrayList does not exist in the JVM"),
        ConnectionRefusedError(111, "Connection refused"),
        ConnectionResetError(104, "Connection reset by peer"),
    ],
)
def test_a_jvm_that_is_gone_is_said_to_be(error: Exception) -> None:
    assert classify(error) is Fault.FATAL
    assert why(error).startswith("Spark's driver JVM is gone (killed, or out of memory:")
    assert not isinstance(faults.failure(error, OUTPUT), InputGoneError)


def test_what_a_jvm_says_at_its_end_is_not_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    error = Py4JError("An error occurred while calling o7.head. Trace:\nNullPointerException")
    assert "gone" not in why(error)
    monkeypatch.setattr(session, "has_ended", lambda: True)
    assert why(error).startswith("Spark's driver JVM is gone (killed, or out of memory:")
    assert "gone" in why(PySparkException("[INTERNAL_ERROR] java.lang.NullPointerException"))


def test_a_jvm_that_answers_is_not_gone() -> None:
    answer = "An error occurred while calling o1.x. Trace:\npy4j.Py4JException: no such method"
    assert "is gone" not in why(Py4JError(answer))


LOST_TASK = """An error occurred while calling o1486.append.
: org.apache.spark.SparkException: Job aborted due to stage failure: Task 0 in stage 9.0 failed 1
times, most recent failure: Lost task 0.0 in stage 9.0 (TID 21) (localhost executor driver):
"""
BLOCK = "/tmp/blockmgr-5e6f5a0b-6a0c-4be6-8a43-3d0f7a3d6a11/0c/temp_shuffle_7d0a9a0e"
READING = "[FAILED_READ_FILE.FILE_NOT_EXIST] Encountered error while reading file file:{}."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # whose file is missing
        (READING.format("/tables/in/part-0.parquet"), "files of the input's version are gone"),
        (READING.format("/tables/out/part-0.parquet"), "files of the output are gone"),
        (
            "[TASK_WRITE_FAILED] Task failed while writing rows to file:/tables/out.\n"
            f"Caused by: java.io.FileNotFoundException: {READING.format('/tables/in/part-0')}",
            "files of the input's version are gone",
        ),
        (
            f"java.io.FileNotFoundException: {BLOCK} (No such file or directory)",
            "Spark's temporary files are gone (somebody has cleaned spark.local.dir",
        ),
        (
            f"java.nio.file.NoSuchFileException: {BLOCK}\nCaused by: FetchFailed",
            "Spark's temporary files are gone",
        ),
        # what Java calls a file that is not found, and is there
        (
            f"java.io.FileNotFoundException: {BLOCK} (Too many open files)",
            "too many files are open",
        ),
        (
            "java.io.FileNotFoundException: /out/part-0 (Permission denied)",
            "a file may not be read",
        ),
        ("java.nio.file.AccessDeniedException: /out/_delta_log", "a file may not be read"),
        (
            f"java.io.FileNotFoundException: {BLOCK} (Read-only file system)",
            "a file is on a f",
        ),
        (f"java.io.IOException: {BLOCK}: No space left on device", "the disk is full"),
        ("java.io.IOException: Mkdirs failed to create file:/out", "the output's folder cannot be"),
        (
            "[DELTA_CANNOT_CREATE_LOG_PATH] Cannot create file:/out/_delta_log",
            "the output's folder cannot be made or written",
        ),
        ("java.lang.OutOfMemoryError: Java heap space", "Spark's JVM has no memory left"),
        (
            "java.lang.OutOfMemoryError: GC overhead limit exceeded",
            "Spark's JVM has no memory left",
        ),
    ],
)
def test_a_fault_of_the_machine_is_told_for_what_it_is(text: str, said: str) -> None:
    error = RuntimeError(LOST_TASK + text)
    assert classify(error) is Fault.FATAL
    failure = faults.failure(error, OUTPUT)
    assert str(failure).startswith(said)
    assert isinstance(failure, InputGoneError) == said.startswith("files of the input's")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
        ("OSError: [Errno 24] Too many open files: '/x'", "too many files are"),
        ("FileNotFoundError: [Errno 2] No such file: '/x'", "the model raised FileNotFoundError"),
        ("PermissionError: [Errno 13] Permission denied: '/x'", "the model raised PermissionError"),
        # what a model quotes is no diagnosis
        ("ValueError: 'Why Permission denied, /blockmgr-?'", "the model raised ValueError"),
        ("ValueError: java.lang.OutOfMemoryError, why?", "the model raised ValueError"),
    ],
)
def test_what_a_model_raises_is_the_model_s(raised: str, said: str) -> None:
    line = why(RuntimeError(MODEL_RAISED.replace(MODEL_RAISED.splitlines()[-1], raised)))
    assert line.startswith(said)
    assert "why?" not in line.lower()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(13, "Permission denied", "/report"), "/report may not be read or written"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (OSError(24, "Too many open files"), "too many files are"),
        (
            OSError(30, "Read-only file system", "/cache"),
            "/cache is on a file system",
        ),
    ],
)
def test_what_python_is_refused_is_no_dead_jvm(error: OSError, said: str) -> None:
    assert classify(error) is Fault.FATAL
    assert why(error).startswith(said)


def test_what_a_culprits_row_says() -> None:
    assert faults.row_error(RuntimeError(WORKER_DIED))[0] is RowErrorCode.WORKER_CRASHED
    code, message = faults.row_error(RuntimeError(MODEL_RAISED))
    assert (code, message) == (RowErrorCode.ENGINE_ERROR, "the model raised ValueError")
