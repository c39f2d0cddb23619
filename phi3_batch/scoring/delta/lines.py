"""What the lines of a data file hold, looked at more strictly than Spark's readers look at them.

Spark reads on where a file is broken: it makes nulls of a line that is not JSON, drops fields that
a CSV record has too many, and puts U+FFFD for bytes that are not UTF-8. Here such lines are found.
Plain Python, for this runs in Spark's workers; line numbers are those of an editor.
"""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, TypedDict

# In the kinds of a column: lists of messages with a content that is neither text nor null.
OTHER_CONTENT = "other content"

_KINDS: dict[type, str] = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
_NOT_UTF8 = "is not UTF-8 text"


class Problem(NamedTuple):
    """The first line that is wrong, what it is, and how many lines are."""

    line: int
    what: str
    lines: int


class JsonFile(TypedDict):
    """What a file of JSON Lines, or a part of one, holds.

    Attributes:
        lines: how many.
        problem: None where every line is one JSON object of valid text.
        columns: for each name the kinds of its values, nulls aside, and the line where each is
            seen first.
    """

    lines: int
    problem: Problem | None
    columns: dict[str, dict[str, int]]


class CsvFile(TypedDict):
    """What a CSV file holds.

    Attributes:
        lines: how many.
        problem: None where it is CSV and every record has as many fields as the header.
        header: names of the columns; empty where the file is.
        records: how many, without the header.
        characters: of all their fields together.
    """

    lines: int
    problem: Problem | None
    header: list[str]
    records: int
    characters: int


class _BrokenError(Exception):
    """A line is not what it has to be; says why, and quotes nothing of it."""


def examine_json(lines: Iterable[bytes]) -> JsonFile:
    """Look at a file of JSON Lines; lines of white space alone are none."""
    first: tuple[int, str] | None = None
    broken = 0
    columns: dict[str, dict[str, int]] = {}
    number = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line)
        except _BrokenError as error:
            first = first or (number, str(error))
            broken += 1
            continue
        for name, value in row.items():
            kinds = columns.setdefault(name, {})
            if value is not None:
                kinds.setdefault(_KINDS[type(value)], number)
            if isinstance(value, list) and any(map(_has_other_content, value)):
                kinds.setdefault(OTHER_CONTENT, number)
    problem = Problem(*first, broken) if first else None
    return {"lines": number, "problem": problem, "columns": columns}


def examine_csv(lines: Iterable[bytes]) -> CsvFile:
    """Look at a CSV file: commas, quotes, doubled quotes within them, and a header."""
    csv.field_size_limit(sys.maxsize)
    first: tuple[int, str] | None = None
    broken = records = characters = 0
    header: list[str] = []
    reader = csv.reader(_decoded(lines), strict=True)
    begins = 1
    try:
        for fields in reader:
            if not fields:  # an empty line
                pass
            elif not header:
                header = fields
            elif len(fields) != len(header):
                broken += 1
                what = f"has not as many fields as the header ({len(fields)}, not {len(header)})"
                first = first or (begins, what)
            else:
                records += 1
                characters += sum(map(len, fields))
            begins = reader.line_num + 1
    except _BrokenError as error:
        first, broken = first or (reader.line_num + 1, str(error)), broken + 1
    except csv.Error as error:
        what = "has a quote or a line break where CSV has none"
        if "unexpected end of data" in str(error):
            what = "opens a quote that is never closed"
        first, broken = first or (begins, what), broken + 1
    return {
        "lines": reader.line_num,
        "problem": Problem(*first, broken) if first else None,
        "header": header,
        "records": records,
        "characters": characters,
    }


def _parse(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
        row = json.loads(text, object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise _BrokenError(_NOT_UTF8) from None
    except RecursionError:
        raise _BrokenError("is nested too deeply") from None
    except ValueError:
        raise _BrokenError("is not JSON") from None
    if not isinstance(row, dict):
        raise _BrokenError("is not a JSON object")
    if "\\u" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise _BrokenError("has a lone surrogate, which is no character") from None
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _BrokenError("has an object with the same key twice")
    return found


def _has_other_content(message: object) -> bool:
    return isinstance(message, dict) and not isinstance(message.get("content"), str | None)


def _decoded(lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        try:
            yield line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            raise _BrokenError(_NOT_UTF8) from None
