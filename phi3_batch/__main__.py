"""``python -m phi3_batch`` is the command ``phi3-batch``."""

from phi3_batch.cli import run

run()
