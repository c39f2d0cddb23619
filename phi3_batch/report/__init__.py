"""The report of one scoring run: a page that stands on its own, to be mailed, printed and kept.

Counts, times and names only: no text of a prompt or a completion can get into it. What draws it is
imported when one is written: ``page``, and nothing else, needs matplotlib, and takes a second.
"""

from importlib.util import find_spec


def can_be_drawn() -> bool:
    """Whether what draws a report is installed here."""
    return find_spec("matplotlib") is not None
