"""A worker is taken for one that hangs by what its rows may take, not by what others took."""

import pytest

from phi3_batch.scoring.rows.model import ModelKind, ScoringModel
from phi3_batch.scoring.rows.time_limit import TimeLimit

# 256 rows, one of which may have 128 answers of 4,000 tokens
HEAVY_S = 255 * 2.0 * 10 + 128 * 4_000 * 2.0


def factor_after(kind: ModelKind, *chunks: tuple[float, float]) -> float:
    """The factor after chunks that took so long, of what they may take, on two slots."""
    limit = TimeLimit(ScoringModel("", "", "", kind, {}, {}, None))
    for seconds, allowed_s in chunks:
        limit.learn(seconds, 2, allowed_s)
    return limit.factor


def test_a_fast_chunk_makes_no_heavy_row_one_that_hangs() -> None:
    # 128 choices at once on two cores: 60 tokens a second, two and a half hours
    takes = 128 * 4_000 / 60
    for kind in (ModelKind.CHAT, ModelKind.USAGE, ModelKind.BARE):
        assert HEAVY_S * factor_after(kind, (1.0, 5_000.0)) > takes


def test_a_machine_that_is_slow_has_more_time() -> None:
    # a chunk took all that it may, and a day for it
    assert 172_800 * factor_after(ModelKind.USAGE, (86_400, 172_800), (1, 99)) > 5 * 86_400


def test_what_a_chunk_takes_to_begin_says_nothing_of_the_next_one() -> None:
    assert factor_after(ModelKind.USAGE, (500, 10.0)) == 1
    assert factor_after(ModelKind.USAGE, (500, 0.0)) == 1


@pytest.mark.parametrize("kind", [ModelKind.TEXT, ModelKind.ONE_BY_ONE])
def test_another_model_has_ten_times_what_its_chunks_took(kind: ModelKind) -> None:
    assert factor_after(kind) == 1
    assert 1_000 * factor_after(kind, (60, 1_000.0)) == 10 * 60 * 2
    # by the slowest: the fastest may have been of the shortest rows
    assert 1_000 * factor_after(kind, (60, 1_000.0), (1, 1_000.0)) == 1_200
