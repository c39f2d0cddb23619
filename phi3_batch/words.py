"""Things that are said in more than one place, in the same words everywhere."""

from collections.abc import Mapping


def first_line(error: Exception) -> str:
    """What an error says, cut to one short line; its class where it says nothing.

    For errors that quote no row: of runtimes, which are given token ids alone, of stores and of
    files. What Spark and the JVM say is read by :mod:`phi3_batch.scoring.said`.
    """
    return str(error).partition("\n")[0][:200] or type(error).__name__


def format_duration(seconds: float) -> str:
    """A time as people say it, such as "3 h 12 min", "2 min 5 s" or "4.2 s"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{:,} h {} min".format(*divmod(round(seconds / 60), 60))


def in_brackets(counts: Mapping[str, int]) -> str:
    """Counts by code behind a number, nothing where there are none."""
    listed = ", ".join(f"{code}: {count:,}" for code, count in counts.items())
    return f" ({listed})" if listed else ""
