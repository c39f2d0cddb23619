"""The report of one scoring run: a page that stands on its own, to be mailed, printed and kept.

Counts, times and names only: no text of a prompt or a completion can get into it. What draws it is
imported when one is written: ``page``, and nothing else, needs matplotlib and jinja.
"""

from importlib.util import find_spec


def missing_packages() -> list[str]:
    """What draws a report and is not installed here."""
    return [name for name in ("matplotlib",) if find_spec(name) is None]
