"""Lines that Spark's readers would make something else of, found and told by their numbers."""

import json

import pytest

from phi3_batch.scoring.delta.lines import OTHER_CONTENT, examine_csv, examine_json


def lines(text: str | bytes) -> list[bytes]:
    data = text if isinstance(text, bytes) else text.encode()
    return data.split(b"\n")


def test_lines_of_white_space_are_counted_and_are_no_rows():
    found = examine_json(lines('\n{"prompt": "a"}\r\n \t\r\n{"prompt": "b"}\n'))
    assert found["problem"] is None
    assert found["columns"] == {"prompt": {"text": 2}}
    assert found["lines"] == 5


@pytest.mark.parametrize(
    ("broken", "what"),
    [
        ('{"prompt": "secret"', "is not JSON"),
        ('{"prompt": "secret"} {"prompt": "secret"}', "is not JSON"),
        ('{"prompt": "secret\tx"}', "is not JSON"),
        ('["secret"]', "is not a JSON object"),
        ("null", "is not a JSON object"),
        ('{"prompt": "a", "prompt": "secret"}', "has an object with the same key twice"),
        ('{"meta": [{"a": 1, "a": 1}]}', "has an object with the same key twice"),
        (r'{"prompt": "secret \ud83d"}', "has a lone surrogate, which is no character"),
        (r'{"\ude00": "secret"}', "has a lone surrogate, which is no character"),
        ('{"prompt": "café"}'.encode("latin-1"), "is not UTF-8 text"),
        ('{"prompt": "a"}'.encode("utf-16"), "is not UTF-8 text"),
        ('{"x": ' + "[" * 10**5 + "]" * 10**5 + "}", "is nested too deeply"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_line_that_is_no_object_of_valid_text_is_named(broken, what):
    good = b'{"prompt": "a"}'
    broken = broken if isinstance(broken, bytes) else broken.encode()
    found = examine_json([good, b"", broken, good, broken])
    assert found["problem"] == (3, what, 2)


def test_escapes_of_whole_characters_and_of_backslashes_are_text():
    text = r'{"prompt": "\ud83d\ude00 \\ud83d", "t": NaN, "big": 1e999}'
    assert examine_json(lines(text))["problem"] is None


def test_each_column_is_told_with_the_kinds_of_its_values():
    rows = [{"a": "x", "b": None}, {"a": 1, "c": [1]}, {"a": 1.5, "c": {"d": 1}}, {"a": True}]
    found = examine_json([json.dumps(row).encode() for row in rows])
    assert found["columns"] == {
        "a": {"text": 1, "a number": 2, "true or false": 4},
        "b": {},
        "c": {"a list": 2, "an object": 3},
    }


@pytest.mark.parametrize("content", [[{"type": "text", "text": "a"}], [], {}, 1])
def test_messages_whose_contents_are_not_all_text_are_noticed(content):
    chats = [[{"role": "user", "content": "a"}, {"role": "user"}, {"content": None}]]
    chats.append([None, "a", {"role": "user", "content": content}])
    found = examine_json([json.dumps({"messages": chat}).encode() for chat in chats])
    assert found["columns"] == {"messages": {"a list": 1, OTHER_CONTENT: 2}}


def test_csv_is_counted_record_by_record():
    found = examine_csv(lines('prompt,note\r\n\n"a, ""b""\nc",\r\n007,NA\n'))
    assert found == {
        "lines": 6,
        "problem": None,
        "header": ["prompt", "note"],
        "records": 2,
        "characters": len('a, "b"\nc') + len("007NA"),
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('p,n\n"a\nb",c\nd, secret,e\nf,g,h', (4, "3, not 2", 2)),
        ("p,n\na", (2, "1, not 2", 1)),
        ('p,n\na,b\nc,"secret\ne,f\n', (3, "opens a quote that is never closed", 1)),
        ('p,n\n"say "hi"",b', (2, "has a quote or a line break where CSV has none", 1)),
        ("p,n\ra,b\r", (1, "has a quote or a line break where CSV has none", 1)),
        ("p,n\na,b\n\ncafé,b".encode("latin-1"), (4, "is not UTF-8 text", 1)),
        ("p,n\na,b".encode("utf-16"), (1, "is not UTF-8 text", 1)),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_record_that_is_no_csv_or_not_as_long_as_the_header_is_named(text, problem):
    line, what, count = problem
    found = examine_csv(lines(text))["problem"]
    assert (found.line, found.lines) == (line, count)
    assert what in found.what


def test_long_fields_are_no_problem_for_csv():
    found = examine_csv([b"prompt", b"x" * 200_000])
    assert (found["problem"], found["characters"]) == (None, 200_000)
