"""A row that hangs ends its process, where a job has asked for that and nowhere else."""

import multiprocessing
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from phi3_batch.engines.time_limit import seconds_for
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.model_files import Limits

# An engine whose limits are small, that hangs (or is slow) where the token is chosen.
SETTING = """
import faulthandler, pathlib, sys, tempfile, time
from tests.conftest import TINY_CHECKPOINT, TINY_MODEL
from phi3_batch.model_files import Checkpoint, ModelFolder
from phi3_batch.engines import chooser, time_limit
from phi3_batch.engines.{module} import engine as runtime
from phi3_batch.engines.ov.graph import convert
from tests.engines.conftest import pack
from phi3_batch.generation import GenerationParams, Request

time_limit._SECONDS = {seconds}
time_limit._SECONDS_PER_PROMPT_TOKEN = time_limit._SECONDS_PER_NEW_TOKEN = 0.0

def converted(folder):
    target = pathlib.Path(tempfile.mkdtemp())
    runtime.write_model(convert(folder), folder, target)
    return target

engine = {engine}
secret = "What is the capital of Spain?"
prompt = "<|user|>" + secret + "<|end|><|assistant|>"
requests = [Request(tuple(engine.tokenizer.encode_prompt(prompt)))]

def hang_in(seconds):
    choose = chooser.choose_token
    chooser.choose_token = lambda *arguments: time.sleep(seconds) or choose(*arguments)
"""
BATCHING = {
    "native": "runtime.NativeEngine(folder := ModelFolder.open(TINY_MODEL), pack(folder))",
    "ov": "runtime.OpenVINOEngine(folder := ModelFolder.open(TINY_MODEL), converted(folder))",
}
ENGINES = {
    "onnxruntime": "runtime.OnnxRuntimeGenAIEngine(ModelFolder.open(TINY_MODEL), threads=1)",
    "torch": "runtime.TransformersEngine(Checkpoint.open(TINY_CHECKPOINT), threads=1)",
}
both_engines = pytest.mark.parametrize("module", ENGINES)
MADRID = "The capital of Spain is Madrid."


# each process is a fork of one that has imported the runtimes, which takes seconds
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [__name__, *(f"phi3_batch.engines.{module}.engine" for module in (*ENGINES, *BATCHING))]
)


@dataclass(frozen=True)
class Done:
    """How a process ended, and what it wrote."""

    returncode: int | None
    stdout: str
    stderr: str


def execute(code: str, folder: Path, limits: str | None) -> None:
    """What a process does: its streams are files in a folder."""
    for stream in (sys.stdout, sys.stderr):
        with (folder / str(stream.fileno())).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.pop("PHI3_BATCH_TIME_LIMITS", None)
    if limits is not None:
        os.environ["PHI3_BATCH_TIME_LIMITS"] = limits
    exec(code, {"__name__": "code"})


@pytest.fixture
def run(tmp_path):
    """Runs code in a process of its own, with the limits on or off."""

    def run(code, module="onnxruntime", seconds=0.5, limits="1"):
        engine = (ENGINES | BATCHING)[module]
        head = SETTING.format(module=module, seconds=seconds, engine=engine)
        process = PROCESSES.Process(target=execute, args=(head + code, tmp_path, limits))
        process.start()
        process.join(120)
        assert process.exitcode is not None
        said = ((tmp_path / number).read_text() for number in ("1", "2"))
        return Done(process.exitcode, *said)

    return run


ANSWER = "print(engine.generate(requests)[0].text)\n"


@both_engines
def test_a_row_that_hangs_ends_its_process_in_time(run, module):
    done = run("started = time.time(); print(started, flush=True); hang_in(100)\n" + ANSWER, module)
    assert done.returncode == 1
    assert time.time() - float(done.stdout) < 30  # nothing but the start of the answer was printed
    assert "Timeout" in done.stderr
    assert "generate" in done.stderr  # the frames say where
    assert not [word for word in ("Spain", "capital", "Madrid", "<|user|>") if word in done.stderr]


HANGING_STEPS = {
    "native": """
from phi3_batch.engines.native.library import Model
Model.step = lambda *_, **__: time.sleep(100)
""",
    "ov": """
class Hanging:
    def __init__(self, pipeline):
        self.pipeline = pipeline
    def __getattr__(self, name):
        return getattr(self.pipeline, name)
    def step(self):
        time.sleep(100)
engine._pipeline = Hanging(engine._pipeline)
""",
}


@pytest.mark.parametrize("module", HANGING_STEPS)
def test_a_step_that_hangs_ends_its_process_in_time(run, module):
    done = run(HANGING_STEPS[module] + ANSWER, module)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Timeout" in done.stderr
    assert "Madrid" not in done.stderr


@pytest.mark.parametrize("limits", [None, "0", ""])
def test_nothing_is_ended_where_no_job_has_asked_for_it(run, limits):
    done = run("hang_in(0.1)\n" + ANSWER, seconds=0.2, limits=limits)  # 0.8 s
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{MADRID}\n", "")


@both_engines
def test_an_answer_in_time_a_slow_one_that_grows_and_a_failure_end_their_limits(run, module):
    code = """
hang_in(0.2)
print(engine.generate(requests)[0].text)  # 1.6 s, a token after the other
time.sleep(1.5)
print("still here")
def fail(*arguments):
    raise RuntimeError
chooser.choose_token = fail
print(engine.generate(requests)[0].error.code.value)
time.sleep(1.5)
print("still here")
"""
    done = run(code, module, seconds=1.0)
    assert (done.returncode, done.stdout) == (
        0,
        f"{MADRID}\nstill here\nengine_error\nstill here\n",
    )


def test_every_row_has_a_limit_of_its_own(run):
    code = "hang_in(0.05)\nprint(*[answer.text for answer in engine.generate(requests * 5)])\n"
    done = run(code, seconds=1.0)  # a row takes 0.4 s, all of them 2 s
    assert (done.returncode, done.stdout) == (0, " ".join([MADRID] * 5) + "\n")


@pytest.mark.parametrize(
    "without",
    [
        "sys.__stderr__ = None",
        "sys.__stderr__.close()",
        "import io; sys.__stderr__ = io.StringIO()",
    ],
)
def test_the_limit_holds_where_there_is_no_standard_error(run, without):
    done = run(f"{without}\nhang_in(100)\n" + ANSWER)
    assert done.returncode == 1
    assert done.stdout == ""


def test_what_a_notebook_puts_in_place_of_standard_error_does_not_matter(run):
    done = run("import io; sys.stderr = io.StringIO(); hang_in(100)\n" + ANSWER)
    assert done.returncode == 1
    assert "Timeout" in done.stderr


# how long


LIMITS = Limits(context_length=4096, vocab_size=1024)


def of(prompt_tokens, max_tokens):
    return Request((5,) * prompt_tokens, GenerationParams(max_tokens=max_tokens))


def test_a_limit_grows_with_the_tokens():
    assert seconds_for([of(100, 50)], LIMITS) == 120 + 25 + 100


def test_a_limit_for_a_batch_is_as_for_its_rows_one_after_another():
    assert seconds_for([of(100, 50), of(4, 1)], LIMITS) == 120 + 25 + 100 + 1 + 2


def test_no_limit_is_longer_than_the_context_allows():
    assert seconds_for([of(4000, 2**31 - 1)], LIMITS) == 120 + 1000 + 192
