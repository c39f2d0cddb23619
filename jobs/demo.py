"""``make demo``: the whole way on the embedded model, by the commands one would type.

Log and register the model, load prompts into a Delta table, score it, look at the result. All of
it stays in the folder ``demo``; a second run registers another version and scores again.
"""

import os
import shlex
import sys
from pathlib import Path

import mlflow
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from phi3_batch.cli import main
from phi3_batch.scoring.session import get_session

SAMPLE_DATA = Path(__file__).resolve().parent.parent / "sample_data"
FOLDER = Path("demo").resolve()
ROWS_SHOWN = 10
COUNTS = ("finish_reason", "prompt_tokens", "completion_tokens")

# a pipe has no width, and 80 columns are too few for this table
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def phi3_batch(command: str) -> None:
    """Show a command and run it; the demo ends where a command fails."""
    console.print(f"\n[bold]$ phi3-batch {command}[/]", soft_wrap=True)
    if code := main(shlex.split(command)):
        sys.exit(code)


def load_prompts() -> None:
    """Make a Delta table of sample_data/prompts.jsonl."""
    console.print("\n[bold]# sample_data/prompts.jsonl becomes the Delta table ./prompts[/]")
    prompts = get_session().read.json(str(SAMPLE_DATA / "prompts.jsonl"))
    prompts.write.format("delta").mode("overwrite").save(str(FOLDER / "prompts"))


def show_completions() -> None:
    """Print ten rows of the output, spread over the table."""
    completions = get_session().read.format("delta").load(str(FOLDER / "completions"))
    rows = completions.orderBy("id").collect()
    first, others = rows[:2], [row for row in rows[2:] if len(row["prompt"]) < 70]
    table = Table(
        title=f"{ROWS_SHOWN} of {len(rows)} rows of ./completions",
        title_justify="left",
        box=box.SIMPLE,
    )
    table.add_column("prompt", ratio=5)
    table.add_column("completion", ratio=4)
    for name in COUNTS:
        table.add_column(name, justify="right")
    for row in [*first, *others[:: len(others) // (ROWS_SHOWN - 2) + 1]][:ROWS_SHOWN]:
        cells = (escape(row["prompt"].replace("\n", "")), escape(row["completion"]))
        table.add_row(*cells, *(str(row[name]) for name in COUNTS))
    console.print()
    console.print(table)


NEXT = """
Next, with your own model and table:

  phi3-batch log prompt FOLDER_OF_YOUR_ONNX_BUILD --register phi3 --alias champion
  phi3-batch score --model models:/phi3@champion --input TABLE_OR_PATH --column prompt --output PATH

or, for a table of chats, or of plain columns to make chats of:

  phi3-batch log chat FOLDER_OF_YOUR_ONNX_BUILD --register phi3-chat --alias champion
  phi3-batch score --model models:/phi3-chat@champion --input TABLE_OR_PATH --output PATH

docs/tutorial.md says where to get Phi-3-mini's int4 build, docs/cluster.md how to run on a cluster.
"""

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    os.chdir(FOLDER)  # a local store keeps its artifacts where it is started
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    console.print("[bold]$ cd demo[/]")
    model = os.path.relpath(SAMPLE_DATA / "phi3-tiny-int4")
    phi3_batch(f"log prompt {shlex.quote(model)} --register phi3-tiny --alias champion")
    load_prompts()
    phi3_batch(
        "score --model models:/phi3-tiny@champion --input ./prompts --output ./completions"
        " --mode overwrite"
    )
    show_completions()
    console.print(NEXT, soft_wrap=True)
