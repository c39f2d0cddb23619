"""Files are read exactly as they are, or refused in one line; nothing is changed in silence."""

import bz2
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import Row, SparkSession

from phi3_batch.errors import TableError
from phi3_batch.scoring.delta.input_files import file_format, read_files
from phi3_batch.scoring.delta.tables import Location, open_input
from tests.spark.conftest import before

Read = Callable[[str], list[Row]]


@pytest.fixture
def read_file(spark: SparkSession) -> Read:
    """The rows of a file or a folder, in its own order."""

    def read(path: str) -> list[Row]:
        format_name = file_format(path)
        assert format_name is not None
        return read_files(spark, path, format_name).collect()

    return read


@pytest.mark.parametrize("name", ["a.JSONL", "a.json.gz", "a.csv.bz2", "a.csv.GZ", "b/*.ndjson"])
def test_text_files_are_read_packed_too(name: str) -> None:
    assert file_format(name) == ("csv" if "csv" in name else "json")


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.jsonl.zst", "a.gz", "a.txt", "a", "jsonl"])
def test_other_names_are_no_files(name: str) -> None:
    assert file_format(name) is None


def test_json_lines_are_read_as_they_are(read_file: Read, tmp_path: Path) -> None:
    folder = tmp_path / "in [1].jsonl"  # with what would be a pattern
    folder.mkdir()
    (folder / "c.jsonl").write_text('{"prompt": "c", "_corrupt_record": "mine"}')
    (folder / "a.jsonl").write_bytes(
        b'\xef\xbb\xbf{"prompt": "caf\xc3\xa9"}\r\n\r\n{"prompt": 1.10}'
    )
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(rb'{"prompt": "\ud83d\ude00 \\ud83d"}'))
    rows = read_file(str(folder))
    number = "1.1" if before("4.0") else "1.10"  # which Spark reads as a number first
    assert sorted(row["prompt"] for row in rows) == [number, "c", "café", "😀 \\ud83d"]
    assert {row["_corrupt_record"] for row in rows} == {None, "mine"}


def test_the_broken_line_of_a_file_is_named_wherever_spark_splits_it(
    spark: SparkSession, read_file: Read, tmp_path: Path
) -> None:
    good = json.dumps({"prompt": "x" * 90})
    (tmp_path / "day 2.jsonl").write_text("\n".join([*[good] * 29, '{"prompt": "secret', good]))
    (tmp_path / "day 1.jsonl").write_text(good)
    split = "spark.sql.files.maxPartitionBytes"
    before = spark.conf.get(split)
    spark.conf.set(split, "500")
    try:
        with pytest.raises(TableError) as error:
            read_file(f"{tmp_path}/day *.jsonl")
    finally:
        spark.conf.set(split, before)
    assert str(error.value) == (
        "line 30 of day 2.jsonl is not JSON: mend it or leave it out; each line is one JSON"
        " object, in UTF-8"
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [{"prompt": "a"}, {"prompt": ["a"]}],
            "column 'prompt' is a list in line 2 of rows.jsonl and text in line 1 of rows.jsonl:"
            " it has to be the same everywhere",
        ),
        (
            [{"prompt": "a"}, {"Prompt": "b"}],
            "columns 'prompt' and 'Prompt' of the input differ only in the case of letters:"
            " rename one",
        ),
        ([], "rows.jsonl has no row that says what its columns are"),
    ],
    ids=["kinds", "case", "empty"],
)
def test_what_spark_would_make_text_of_is_refused(
    rows: list[Any], said: str, read_file: Read, tmp_path: Path
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(TableError) as error:
        read_file(str(path))
    assert str(error.value) == said


@pytest.mark.skipif(before("4.0"), reason="Spark reads no such file")
def test_contents_that_are_lists_of_parts_are_their_text(read_file: Read, tmp_path: Path) -> None:
    looks_like_parts = '[{"type": "text", "text": "a"}]'
    contents: dict[str, tuple[Any, str | None]] = {
        "text": ("Hi", "Hi"),
        "text that looks like parts": (looks_like_parts, looks_like_parts),
        "parts": ([{"type": "text", "text": "Hi "}, {"type": "text", "text": '"you"'}], 'Hi "you"'),
        "an image": ([{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}], None),
        "texts": (["a"], None),
        "object": ({"type": "text", "text": "a"}, None),
        "number": (5, None),
        "null": (None, None),
    }
    path = tmp_path / "chats.jsonl"
    chats = [
        {"id": id, "messages": [{"role": "user", "content": given}]}
        for id, (given, _) in contents.items()
    ]
    path.write_text("\n".join(map(json.dumps, chats)))
    rows = read_file(str(path))
    got = {row["id"]: row["messages"][0]["content"] for row in rows}
    assert got == {id: text for id, (_, text) in contents.items()}
    assert rows[0]["messages"][0]["role"] == "user"


def test_csv_is_read_as_it_is(read_file: Read, tmp_path: Path) -> None:
    path = tmp_path / "in.csv.bz2"
    text = 'prompt,note\n"a ""b"" c, d",\n,""\n007,NA\n"multi\r\nline",x\n'
    path.write_bytes(bz2.compress(text.encode()))
    rows = [tuple(row) for row in read_file(str(path))]
    assert rows == [('a "b" c, d', None), (None, None), ("007", "NA"), ("multi\r\nline", "x")]


@pytest.mark.parametrize(
    ("ending", "pack"), [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress)]
)
def test_csv_as_windows_writes_it(
    ending: str, pack: Callable[[bytes], bytes], read_file: Read, tmp_path: Path
) -> None:
    path = tmp_path / f"in.csv{ending}"
    text = '\ufeffprompt,note\r\n"multi\nline",x\r\nHi,\r\n'
    path.write_bytes(pack(text.encode()))
    rows = read_file(str(path))
    assert [row.asDict() for row in rows] == [
        {"prompt": "multi\nline", "note": "x"},
        {"prompt": "Hi", "note": None},
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,note\na,b\nhello, world,b\n", "line 3 of in.csv has not as many fields as the"),
        # Spark would leave a line feed's carriage return in the text
        ("prompt,note\na,b\nc,d\r\n", "in.csv cannot be read as it is: write it as JSONL"),
        # and would take it from a text where all lines end with both
        ('prompt,note\r\n"a\r\nb",c\r\n', "in.csv cannot be read as it is: write it as JSONL"),
        ("id;prompt\n1;a\n", "the columns of in.csv seem to have a semicolon between them:"),
        ("prompt,Prompt\n1,a\n", "in.csv has two columns 'prompt': rename one"),
    ],
    ids=["comma", "line ends", "line ends in a text", "semicolon", "names"],
)
def test_csv_that_spark_would_read_otherwise_is_refused(
    text: str, said: str, read_file: Read, tmp_path: Path
) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes(text.encode())
    with pytest.raises(TableError) as error:
        read_file(str(path))
    assert str(error.value).startswith(said)


def test_a_folder_of_parquet_has_the_columns_of_all_files(
    spark: SparkSession, read_file: Read, tmp_path: Path
) -> None:
    folder = tmp_path / "in.parquet"
    folder.mkdir()
    with pytest.raises(TableError, match=r"^in.parquet has no Parquet file in it$"):
        read_file(str(folder))
    spark.createDataFrame([("a",)], "prompt string").toPandas().to_parquet(folder / "a.parquet")
    more = spark.createDataFrame([("b", "n")], "prompt string, note string").toPandas()
    more.to_parquet(folder / "b.parquet")
    assert sorted(tuple(row) for row in read_file(str(folder))) == [("a", None), ("b", "n")]


def test_a_name_that_is_no_table_says_which_files_are_read(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.tsv").write_text("prompt\nHi\n")
    for name in ("prompts.tsv", f"{tmp_path}/prompts.tsv"):
        with pytest.raises(TableError, match=r"names end in \.jsonl, .*, those of text with \.gz"):
            open_input(spark, Location(name))
