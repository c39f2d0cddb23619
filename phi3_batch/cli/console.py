"""What the commands print with: results on stdout, everything else on stderr."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

# What a shell says of a process that SIGPIPE has ended.
UNREAD = 141


class _Console(Console):
    """A console that ends the process quietly when nobody reads it any more (``| head``)."""

    def on_broken_pipe(self) -> None:
        """Say nothing more, and leave."""
        out.quiet = err.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.file.fileno())  # for what Python writes when it ends
        raise SystemExit(UNREAD)


out = _Console(highlight=False, soft_wrap=True)
err = _Console(stderr=True, highlight=False, soft_wrap=True)


def print_field(name: str, value: str) -> None:
    """One line of a plan or a summary."""
    out.print(Text.assemble((f"{name:<10}", "bold"), "  ", value))


@contextmanager
def status(text: str) -> Iterator[None]:
    """A spinner on a terminal, a plain line elsewhere."""
    if err.is_terminal:
        with err.status(text):
            yield
    else:
        err.print(text)
        yield
