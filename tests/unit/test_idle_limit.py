"""A worker is taken for one that hangs by what its rows may take, not by what others took."""

from typing import Any, cast

import pytest

from phi3_batch.scoring.rows import idle_limit
from phi3_batch.scoring.rows.idle_limit import IDLE_LIMIT, IdleLimit, first_limit
from phi3_batch.scoring.rows.model import ModelKind, ScoringModel

# 256 rows, one of which may have 128 answers of 4,000 tokens
HEAVY_S = 255 * 2.0 * 10 + 128 * 4_000 * 2.0


class Settings(dict[str, str]):
    """A session's settings."""

    @property
    def conf(self) -> "Settings":
        return self

    def set(self, name: str, value: str) -> None:
        self[name] = value


def limit_after(kind: ModelKind, *chunks: tuple[float, float], heaviest_s: float) -> int:
    """The limit after chunks that took so long, of what they may take, on two slots."""
    model, settings = ScoringModel("", "", "", kind, {}, {}, None), Settings()
    limit = IdleLimit(cast(Any, settings), model, heaviest_s)
    settings.set(IDLE_LIMIT, first_limit(heaviest_s))
    for seconds, allowed_s in chunks:
        limit.learn(seconds, 2, allowed_s)
    return int(settings[IDLE_LIMIT].removesuffix("s"))


def test_a_fast_chunk_makes_no_heavy_row_one_that_hangs() -> None:
    # 128 choices at once on two cores: 60 tokens a second, two and a half hours
    takes = 128 * 4_000 / 60
    for kind in (ModelKind.CHAT, ModelKind.USAGE, ModelKind.BARE):
        assert limit_after(kind, (1.0, 5_000.0), heaviest_s=HEAVY_S) > takes


def test_a_machine_that_is_slow_has_more_time() -> None:
    # a chunk took all that it may, and a day for it
    assert limit_after(ModelKind.USAGE, (86_400, 172_800), (1, 99), heaviest_s=172_800) > 5 * 86_400


def test_what_a_chunk_takes_to_begin_says_nothing_of_the_next_one() -> None:
    assert limit_after(ModelKind.USAGE, (500, 10.0), heaviest_s=10_000) == 600 + 10_000


@pytest.mark.parametrize("kind", [ModelKind.TEXT, ModelKind.ONE_BY_ONE])
def test_another_model_has_ten_times_what_its_chunks_took(kind: ModelKind) -> None:
    heaviest_s = 512 * 512.0  # of equal rows: a task each on two slots takes a minute
    assert limit_after(kind, heaviest_s=heaviest_s) == 600 + heaviest_s
    assert limit_after(kind, (60, heaviest_s), heaviest_s=heaviest_s) == 600 + 10 * 60 * 2
    # and a row that is ten times as heavy has ten times as long
    assert limit_after(kind, (60, 1_000.0), heaviest_s=10_000.0) == 600 + 10 * 60 * 2 * 10
    # by the slowest: the fastest may have been of the shortest rows
    assert limit_after(kind, (60, 1_000.0), (1, 1_000.0), heaviest_s=1_000.0) == 600 + 1_200


def test_no_limit_is_beyond_spark_s_clock() -> None:
    assert first_limit(1e30) == f"{idle_limit._LONGEST_S}s"
