"""A PythonModel that answers slowly, notes what it was asked, and fails as its environment says.

ASKED_LOG: file that gets a line for each prompt, "task" or "driver" and the prompt as JSON.
PAUSE_MS: that each prompt takes.
DIES_OF: prompt that kills the process, in a Spark task; "*" is every prompt.
RAISES_IN_TASKS: whether every prompt raises there.
"""

import json
import os
import signal
import time
from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel
from pyspark import TaskContext


class Noting(PythonModel):
    def predict(self, context, model_input, params=None):
        where = "task" if TaskContext.get() else "driver"
        pause_s = float(os.environ.get("PAUSE_MS", "0")) / 1000
        answers = []
        with Path(os.environ["ASKED_LOG"]).open("a", buffering=1) as log:
            for prompt in model_input["prompt"]:
                time.sleep(pause_s)
                log.write(f"{where} {json.dumps(prompt)}\n")
                if where == "task":
                    self._fail(prompt)
                answers.append(prompt[::-1])  # as `answer_of` in the tests' harness
        return answers

    def _fail(self, prompt):
        if os.environ.get("DIES_OF") in (prompt, "*"):
            os.kill(os.getpid(), signal.SIGKILL)
        if "RAISES_IN_TASKS" in os.environ:
            raise ValueError(f"cannot answer {prompt}")


set_model(Noting())
