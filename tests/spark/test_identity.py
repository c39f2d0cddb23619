"""Equal requests have equal ids, different ones different ids, whatever the session is set to."""

import contextlib
import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from phi3_batch.errors import TableError
from phi3_batch.scoring.delta import balance, tables, verify
from phi3_batch.scoring.delta.record import RunIdentity
from phi3_batch.scoring.delta.tables import Location
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.hidden import with_texts
from phi3_batch.scoring.rows.model import ModelKind, ScoringModel
from phi3_batch.scoring.rows.source import Source
from phi3_batch.scoring.rows.user_template import UserTemplate
from tests.spark.conftest import before

SETTINGS = "s"
DEFAULTS = {"temperature": 0.0, "max_tokens": 256, "stop": (), "n": 1, "stream": False}
CHAT = ScoringModel("m", "m", "m", ModelKind.CHAT, {}, DEFAULTS, None)

_CHAR_IS_A_TYPE = "spark.sql.preserveCharVarcharTypeInfo"
# What shapes text or names in Spark, each unlike its default.
ODD_SESSION = {
    "spark.sql.session.timeZone": "Asia/Tokyo",
    "spark.sql.ansi.enabled": "false",
    "spark.sql.caseSensitive": "true",
    "spark.sql.jsonGenerator.ignoreNullFields": "false",
    "spark.sql.legacy.timeParserPolicy": "LEGACY",
    "spark.sql.datetime.java8API.enabled": "true",
    "spark.sql.legacy.castComplexTypesToString.enabled": "true",
    "spark.sql.mapKeyDedupPolicy": "LAST_WIN",
    "spark.sql.timestampType": "TIMESTAMP_NTZ",
}
HAS_VARIANTS = not before("4.0")  # and collations, and values of type char
if HAS_VARIANTS:
    ODD_SESSION[_CHAR_IS_A_TYPE] = "true"

ROWS = 40
# One job for all that is generated: what counts is how many values there are, not examples.
ONE_JOB = settings(
    max_examples=1,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def session_with(spark: SparkSession, conf: Mapping[str, str], locale: str) -> Iterator[None]:
    """A session with these settings, on a JVM of this locale; then as it was."""
    before = {name: spark.conf.get(name) for name in conf}
    locales = spark._jvm.java.util.Locale
    locale_before = locales.getDefault()
    try:
        locales.setDefault(locales.forLanguageTag(locale))
        for name, value in conf.items():
            spark.conf.set(name, value)
        yield
    finally:
        locales.setDefault(locale_before)
        for name, value in before.items():
            spark.conf.set(name, value)


def at(micros: Column) -> Column:
    """A timestamp without a zone, so many microseconds after 1970."""
    return F.lit("1970-01-01").cast("timestamp_ntz") + duration(micros)


def duration(micros: Column) -> Column:
    """An interval of so many microseconds."""
    return F.make_dt_interval(secs=(micros / 10**6).cast("decimal(18,6)"))


def template(text: str) -> Source:
    return Source(user_template=UserTemplate.parse(text))


def asked(source: Source, rows: DataFrame) -> Column:
    """The content of a row's last message, byte by byte."""
    messages = source.requests(CHAT, rows.schema).inputs["messages"]
    return F.hex(F.element_at(messages, -1)["content"])


def beside(rows: DataFrame, *sources: Source) -> DataFrame:
    """Rows with what a plan must not show beside them."""
    return with_texts(rows.sparkSession, rows, [text for of in sources for text in of.texts(CHAT)])


def ids(rows: DataFrame, *columns: str) -> Column:
    return identity.request_id(rows.schema, columns, SETTINGS)


# --- what was right before is as it was ---

KNOWN = (
    "prompt string, messages array<struct<role:string,content:string,name:string>>, n long,"
    " temperature double, stop array<string>, day date, price decimal(10,2), flag boolean,"
    " extra map<string,array<struct<b:double,c:string,d:date>>>"
)
KNOWN_ROW = (
    "What?",
    [("system", 'Be "brief".\n', "x"), ("user", "é\x01", None)],
    5,
    0.5,
    ["a", None, '"'],
    dt.date(2024, 1, 1),
    Decimal("1.50"),
    True,
    {"k": [(1.5, None, dt.date(1999, 12, 31))]},
)

OLD_IDS_OF_VALUES = [
    "bfb1d9b2d2250830e45b69a16f31a6d4",
    "1894057803a3ee552b79f7b3e15842de",
    "2527e4c8970ba49a25916d22c41c2c9f",
    "c192331e60391d7b5794fffc54141e3f",
    "806942f64bdcee577f22609d14340e23",
    "cb4fe57619dc1fb8a857415eb3a9063d",
    "bf3f8023051dc9c8eafd359e27533917",
    "b79b53d92d77080ceac23da9de85e24d",
    "34bd827f9f4f2d6b03fd8a1605a8c759",
]
OLD_IDS_OF_NULLS = [
    "060ce21cd36bc2239bea2885abb05bfc",
    "d97246a35e388e468c88aaa0eeec2a3c",
    "dfd14a3595c441389863c33a18e90960",
    "8c5265f776da481c1cc8fdcac1383087",
    "9f2f5ff6f6fb76ed01801e984405c654",
    "4ba7a6246a94eccccfd836c16166dead",
    "06c380de42bcc3ef887024e22e44e1cc",
    "7502514f1d23b5a284d2b68265546ae9",
    "44fba5bd429d4be2369c7e2873231c3f",
]
OLD_DIGESTS_OF_ROWS = [4377683453421962576, -5091975031279963712]
OLD_DIGEST_OF_ALL = "2 rows, 11348419128964763096"


def test_requests_that_were_told_apart_keep_their_ids(spark: SparkSession) -> None:
    """Else an output with ids would look changed, all of it, to a new release."""
    rows = spark.createDataFrame([KNOWN_ROW, (None,) * 9], KNOWN)
    columns = ["prompt", "messages", "n", "temperature", "stop", "day", "price", "flag"]
    found = rows.select(*[ids(rows, name) for name in columns], ids(rows, "PROMPT", "N")).collect()
    assert [list(row) for row in found] == [OLD_IDS_OF_VALUES, OLD_IDS_OF_NULLS]
    digest = identity.row_digest(rows.schema, rows.columns)
    assert [row[0] for row in rows.select(digest).collect()] == OLD_DIGESTS_OF_ROWS
    assert tables.content_digest(rows) == OLD_DIGEST_OF_ALL
    assert identity.rendering(rows.schema, rows.columns) == {}
    assert identity.sampling(rows.schema, 5) == {"limit": 5}


# --- the session ---


def every_type(spark: SparkSession) -> DataFrame:
    """Rows with all that a session's settings may render otherwise, nested too."""
    is_char = spark.conf.get(_CHAR_IS_A_TYPE, "false") == "true"
    padded = (
        F.expr("cast(id as char(4))") if is_char else F.rpad(F.col("id").cast("string"), 4, " ")
    )
    base = spark.range(12).select(
        "id",
        # one local hour of Amsterdam that comes twice, and microseconds
        F.timestamp_micros(F.lit(1_729_989_000_000_000) + F.col("id") * 1_800_000_001).alias("Ts"),
        at(F.lit(1_704_067_200_000_000) + F.col("id")).alias("local"),
        (F.col("id").cast("decimal(20,10)") / 10**9).cast("decimal(20,10)").alias("tiny"),
        F.date_add(F.lit("1200-01-01").cast("date"), F.col("id").cast("int")).alias("day"),
        F.array(
            F.struct(F.lit("user").alias("Role"), F.col("id").cast("string").alias("Content"), "id")
        ).alias("messages"),
        F.when(F.col("id") % 2 == 0, F.col("id").cast("float") / 3).alias("half"),
        padded.alias("padded"),
    )
    nested = F.create_map("Ts", F.array(F.struct("local", "Ts", "half", "padded")))
    base = base.withColumn("nested", nested)
    if not HAS_VARIANTS:
        return base
    return base.withColumns(
        {
            "collated": F.expr("cast(id as string) collate UNICODE_CI"),
            "variant": F.to_variant_object(F.struct("Ts", "tiny")),
        }
    )


PLAIN = ("Ts", "local", "tiny", "day", "padded", *(("collated", "variant") * HAS_VARIANTS))


def all_that_tells_apart(spark: SparkSession) -> list[Any]:
    rows = every_type(spark)
    names = [name.lower() for name in PLAIN]
    together = template("|".join(f"{{{name}}}" for name in names))
    found = (
        beside(rows, together)
        .orderBy("id")
        .select(
            asked(together, rows),
            ids(rows, *names),
            asked(Source(), rows),
            ids(rows, "MESSAGES", "tiny", "half"),
            identity.row_digest(rows.schema, rows.columns),
        )
    )
    sample = identity.limited(rows.repartition(3), 4).select("id").collect()
    return [
        *map(tuple, found.collect()),
        {row[0] for row in sample},
        tables.content_digest(rows),
    ]


def test_nothing_of_a_session_changes_what_is_asked_or_what_it_is_known_by(
    spark: SparkSession,
) -> None:
    with session_with(spark, {"spark.sql.session.timeZone": "UTC"}, "en-US"):
        here = all_that_tells_apart(spark)
    with session_with(spark, ODD_SESSION, "ar-EG-u-nu-arab"):
        there = all_that_tells_apart(spark)
    assert there == here
    assert bytes.fromhex(here[1][0]).decode() == (
        "2024-10-27 01:00:00.000001|2024-01-01 00:00:00.000001|0.0000000010|1200-01-02|1   "
        + '|1|{"Ts":"2024-10-27 01:00:00.000001+00:00","tiny":0.000000001}' * HAS_VARIANTS
    )
    assert len({row[1] for row in here[:12]}) == len({row[3] for row in here[:12]}) == 12


def test_rows_scored_in_utc_are_complete_in_tokyo(spark: SparkSession) -> None:
    columns = ("Ts", "tiny")
    with session_with(spark, {"spark.sql.session.timeZone": "UTC"}, "en-US"):
        rows = every_type(spark)
        sample = identity.limited(rows, 5)
        written = [tuple(row) for row in sample.select(ids(rows, *columns)).collect()]
        said = identity.rendering(rows.schema, columns)
    run = RunIdentity(f"{SETTINGS}-0", said, "t", None, 0, columns, (), False, 5)
    with session_with(spark, ODD_SESSION, "ar-EG-u-nu-arab"):
        there = identity.limited(every_type(spark), run.limit)
        rows_in = verify._with_request_ids(there, run, Location("t"), ())
        rows_out = spark.createDataFrame(written, f"{schema.REQUEST_ID} string")
        assert str(balance.compare(rows_in, rows_out, ())) == (
            "5 in, 5 out, 0 missing, 0 doubled, 0 orphaned"
        )


def test_ids_that_an_earlier_release_gave_are_not_verified_wrongly(spark: SparkSession) -> None:
    rows = spark.range(1).select(F.timestamp_micros("id").alias("ts"), "id")
    run = RunIdentity(f"{SETTINGS}-0", {}, "t", None, 0, ("ts",), (), False, None)
    with pytest.raises(TableError, match="the run read ts in another way: by an earlier release"):
        verify._with_request_ids(rows, run, Location("t"), ())


# --- values ---


MICROS = st.one_of(
    st.integers(0, 3), st.sampled_from([10**6, 86_400 * 10**6, -1, 1_729_990_800_000_000])
).flatmap(lambda start: st.integers(start, start + 2))
TEXTS = st.text(alphabet='a"\\{}, \0nul\ufffdé', max_size=4)
BYTES = st.one_of(
    TEXTS.map(str.encode),
    st.lists(st.sampled_from([b"a", b"\xff", b"\xfe", b"\xef\xbf\xbd", b"FF"]), max_size=2).map(
        b"".join
    ),
)
DECIMALS = st.integers(-30, 30).map(lambda unscaled: Decimal(unscaled).scaleb(-10))
FLOATS = st.sampled_from(
    [0.0, -0.0, 1.0, 0.1, 0.1 + 2**-56, 1e-7, 1e16, 5e-324, float("nan"), float("inf"), -1.5]
)
JSONS = st.sampled_from(
    ['"5"', "5", "5.0", "null", '"null"', '{"a":1}', '{"a":1.0}', "[1]", "true", '"true"', "1e-9"]
)

# name: how it is generated, as what it comes to Spark, and what is made of that
TYPES: dict[str, tuple[st.SearchStrategy[Any], str, Callable[[Column], Column]]] = {
    "text": (BYTES, "binary", lambda column: column.cast("string")),
    "byte": (st.integers(-3, 3), "tinyint", lambda column: column),
    "short": (st.integers(-3, 3), "smallint", lambda column: column),
    "int": (st.integers(-3, 3), "int", lambda column: column),
    "long": (st.integers(2**53, 2**53 + 5), "bigint", lambda column: column),
    "float": (FLOATS, "float", lambda column: column),
    "double": (FLOATS, "double", lambda column: column),
    "decimal": (DECIMALS, "decimal(20,10)", lambda column: column),
    "wide": (st.integers(10**37, 10**37 + 5).map(Decimal), "decimal(38,0)", lambda column: column),
    "boolean": (st.booleans(), "boolean", lambda column: column),
    "date": (st.dates(dt.date(1, 1, 1), dt.date(1, 1, 9)), "date", lambda column: column),
    "instant": (MICROS, "bigint", F.timestamp_micros),
    "local": (MICROS, "bigint", at),
    "duration": (MICROS, "bigint", duration),
    "months": (st.integers(-14, 14), "int", lambda column: F.make_ym_interval(F.lit(0), column)),
}
if HAS_VARIANTS:
    TYPES["variant"] = (JSONS, "string", F.parse_json)
    TYPES["collated"] = (TEXTS, "string", lambda column: F.collate(column, "UTF8_LCASE"))


def frame(spark: SparkSession, values: Sequence[Sequence[Any]]) -> DataFrame:
    """A row of every type for each of the values' rows."""
    raw = spark.createDataFrame(
        values, ", ".join(f"`{name}` {came}" for name, (_, came, _) in TYPES.items())
    )
    return raw.select(*[made(F.col(name)).alias(name) for name, (_, _, made) in TYPES.items()])


def check_that_ids_tell_apart(pairs: Sequence[tuple[object, str]]) -> None:
    """Of requests and their ids: equal where and only where these are."""
    by_id, by_request = defaultdict(set), defaultdict(set)
    for request, request_id in pairs:
        by_id[request_id].add(request)
        by_request[request].add(request_id)
    assert [requests for requests in by_id.values() if len(requests) > 1] == []
    assert [request for request, found in by_request.items() if len(found) > 1] == []


@ONE_JOB
@given(
    st.lists(
        st.tuples(*[st.one_of(st.none(), values) for values, _, _ in TYPES.values()]),
        min_size=ROWS,
        max_size=ROWS,
    )
)
def test_texts_made_of_columns_of_every_type(
    spark: SparkSession, values: list[tuple[Any, ...]]
) -> None:
    assume(len({repr(row) for row in values}) > ROWS // 2)
    rows = frame(spark, values)
    columns, pair = [], template("{text}{double}")
    alone = {name: template(f"<{{{name}}}>") for name in TYPES}
    for name, source in alone.items():
        columns += [asked(source, rows), ids(rows, name)]
    columns += [asked(pair, rows), ids(rows, "text", "double")]
    found = beside(rows, pair, *alone.values()).select(*columns).collect()
    for number, name in enumerate(TYPES):
        pairs = [(row[2 * number], row[2 * number + 1]) for row in found]
        check_that_ids_tell_apart(pairs)
        texts = [value and bytes.fromhex(value).decode(errors="replace") for value, _ in pairs]
        sent = [text[1:-1] if text else None for text in texts]
        given = [row[number] for row in values]
        for value, text in zip(given, sent, strict=True):
            if value is None:
                assert text is None
            elif name in ("decimal", "wide"):
                assert text == f"{value:f}" if name == "wide" else f"{value:.10f}"
            elif name in ("instant", "local"):
                moment = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=value)
                written = moment.isoformat(" ", "microseconds")
                assert (
                    text == written.rstrip("0").rstrip(".") if moment.microsecond else written[:19]
                )
    # other columns with the same text between them may have another id, and no other way round
    both = {row[-1]: row[-2] for row in found}
    assert all(both[row[-1]] == row[-2] for row in found)


TURNS = st.lists(
    st.one_of(
        st.none(), st.tuples(*[st.one_of(st.none(), BYTES)] * 2, st.one_of(st.none(), TEXTS))
    ),
    max_size=3,
)
MAPS = st.lists(st.dictionaries(st.sampled_from(["role", "content", "name"]), BYTES), max_size=3)
STOPS = st.lists(st.one_of(st.none(), BYTES), max_size=3)
# What to_json makes one text of: bytes that are no UTF-8, and messages without anything in them.
ALIKE = [
    *(
        ([(b"user", text, None)], [{"role": b"user", "content": text}], [text])
        for text in (b"\xff", b"\xfe", b"\xef\xbf\xbd", b"\xef\xbf\xbdFF", b"FF")
    ),
    ([None], [None], [None]),
    ([(None, None, None)], [{}], []),
]


@ONE_JOB
@given(
    st.lists(
        st.tuples(*[st.one_of(st.none(), v) for v in (TURNS, MAPS, STOPS)]),
        min_size=ROWS,
        max_size=ROWS,
    )
)
def test_chats_and_stop_strings(spark: SparkSession, values: list[tuple[Any, ...]]) -> None:
    assume(len({repr(row) for row in values}) > ROWS // 2)
    raw = spark.createDataFrame(
        [*values, *ALIKE],
        "turns array<struct<Role:binary,content:binary,name:string>>,"
        " maps array<map<string,binary>>, stop array<binary>",
    )
    rows = raw.select(
        F.col("turns").cast("array<struct<Role:string,content:string,name:string>>"),
        F.col("maps").cast("array<map<string,string>>"),
        F.col("stop").cast("array<string>"),
    )
    columns = []
    for name in ("turns", "maps"):
        requests = Source(column=name).requests(CHAT, rows.schema)
        bytes_of = F.transform(
            requests.inputs["messages"],
            lambda turn: F.struct(F.hex(turn["role"]), F.hex(turn["content"])),
        )
        columns += [F.struct(bytes_of, requests.refusal).cast("string"), ids(rows, name)]
    columns += [F.to_json(F.struct(F.transform("stop", F.hex)), {"ignoreNullFields": "false"})]
    found = rows.select(*columns, ids(rows, "stop")).collect()
    for request in (0, 2, 4):
        check_that_ids_tell_apart([(row[request], row[request + 1]) for row in found])


def test_a_parameter_is_known_by_what_is_sent(spark: SparkSession) -> None:
    """Of a float that is another number than the double of the same digits, whatever it was."""
    values = [0.1, 0.5, 0.0, 1e-7, None]
    of = {}
    for kind in ("float", "double"):
        rows = spark.createDataFrame([(value,) for value in values], f"temperature {kind}")
        source = Source(
            user_template=UserTemplate.parse("{temperature}"),
            param_columns={"temperature": "temperature"},
        )
        sent = source.requests(CHAT, rows.schema).inputs["temperature"]
        sound = beside(rows, source)
        of[kind] = [tuple(row) for row in sound.select(sent, ids(rows, "temperature")).collect()]
    for as_float, as_double in zip(of["float"], of["double"], strict=True):
        assert (as_float[0] == as_double[0]) == (as_float[1] == as_double[1])
    assert of["float"][0] != of["double"][0]
