"""What the Makefile hands on to what it starts."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_what_is_imported_may_be_compiled_once_for_all_processes() -> None:
    # container images often forbid it, and pip was told not to
    show = 'show: ; @echo "[$$PYTHONDONTWRITEBYTECODE]"'
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", show, "show"],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
