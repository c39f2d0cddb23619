"""docs/cli.md shows the help texts as they are."""

import os
import subprocess
import sys

from tests.conftest import REPOSITORY

COMMANDS = (
    (),
    ("log",),
    ("log", "prompt"),
    ("log", "chat"),
    ("log", "pipeline"),
    ("plan",),
    ("score",),
    ("verify",),
    ("promote",),
    ("build",),
    ("doctor",),
)


def help_of(command: tuple[str, ...]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "phi3_batch", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "80"},
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def rendered() -> str:
    sections = [
        f"## phi3-batch {' '.join(command)}".rstrip() + f"\n```\n{help_of(command)}\n```\n"
        for command in COMMANDS
    ]
    return "# The command line\n" + "\n".join(sections)


def test_docs_show_the_help_texts_as_they_are() -> None:
    """After a change of the command line: python -m tests.unit.test_cli_docs."""
    assert (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8") == rendered()


if __name__ == "__main__":
    (REPOSITORY / "docs" / "cli.md").write_text(rendered(), encoding="utf-8")
