"""Names of columns on the command line."""

import shlex

import pytest

from phi3_batch.scoring.rows.columns import join_names, split_names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("id", ("id",)),
        ("a.b, c", ("a.b", " c")),
        ("`a,b`,c", ("a,b", "c")),
        ("`a``b`", ("a`b",)),
        ("a`b", ("a`b",)),
        ("", ()),
        ("a,", ("a", "")),
    ],
)
def test_names_are_read(text: str, names: tuple[str, ...]) -> None:
    assert split_names(text) == names


@pytest.mark.parametrize("names", [(), ("a", "b"), ("a,b", "c d"), ("a`b", "'"), ("$x", "")])
def test_names_that_are_advised_are_read_back(names: tuple[str, ...]) -> None:
    (word,) = shlex.split(join_names(names))
    assert split_names(word) == names
