"""``make demo-real``: a real language model answers a table of questions.

It is SmolLM2, of 135 million parameters: small enough to come as a Python package, and large enough
to talk. All of it stays in the folder ``demo-real``, but for the checkpoint, which is in
benchmarks/.models. ``make demo-real ASK='…'`` asks it something else.
"""

import os
import shlex
import sys
from pathlib import Path

import mlflow
from demo import console, phi3_batch
from rich import box
from rich.markup import escape
from rich.table import Table
from smollm2 import smollm2

from phi3_batch.scoring.session import get_session

FOLDER = Path("demo-real").resolve()
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "Name three things that people eat for breakfast.",
]


def load_questions(questions: list[str]) -> None:
    """Make a Delta table of questions."""
    rows = list(enumerate(questions, start=1))
    table = get_session().createDataFrame(rows, "id long, question string")
    table.write.format("delta").mode("overwrite").save(str(FOLDER / "questions"))


def show_answers() -> None:
    """Print the output table."""
    answers = get_session().read.format("delta").load(str(FOLDER / "answers"))
    table = Table(box=box.SIMPLE)
    table.add_column("question", ratio=2)
    table.add_column("completion", ratio=5)
    for row in answers.orderBy("id").collect():
        table.add_row(escape(row["question"]), escape(row["completion"]))
    console.print(table)


if __name__ == "__main__":
    checkpoint = smollm2()
    FOLDER.mkdir(exist_ok=True)
    os.chdir(FOLDER)  # a local store keeps its artifacts where it is started
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    console.print("[bold]$ cd demo-real[/]")
    if not Path("smollm2-int4").exists():
        build = shlex.quote(os.path.relpath(checkpoint))
        phi3_batch(f"build {build} smollm2-int4 --algorithm k_quant_mixed")
    phi3_batch("log chat smollm2-int4 --register smollm2 --alias champion")
    load_questions(sys.argv[1:] or QUESTIONS)
    phi3_batch(
        "score --model models:/smollm2@champion --input ./questions --output ./answers"
        " --user-template '{question}' --keep id,question --max-tokens 120 --mode overwrite"
    )
    show_answers()
