import pytest
import workloads
from workloads import Row, Texts, spread, workload

from phi3_batch.model_files import Checkpoint
from phi3_batch.text import Message


def prompt_tokens(rows: tuple[Row, ...]) -> int:
    return sum(len(row.prompt_ids) for row in rows)


def output_tokens(rows: tuple[Row, ...]) -> int:
    return sum(row.max_tokens for row in rows)


def test_w_and_q_are_the_rows_of_the_prototype():
    few, many = workload("W").rows, workload("Q").rows

    assert (len(few), prompt_tokens(few), output_tokens(few)) == (32, 4272, 1837)
    assert (len(many), prompt_tokens(many), output_tokens(many)) == (320, 41_991, 20_931)


def test_a_workload_is_the_same_each_time():
    assert workload("W") == workload("W")


def test_the_tokenizer_makes_a_rows_ids_of_its_text():
    template = Checkpoint.open(workloads.TOKENIZER).chat_template

    for row in (*workload("W").rows, *workload("S").rows):
        turns = [Message("system", row.system)] if row.system else []
        ids = template.encode([*turns, Message("user", row.question)])
        assert tuple(ids) == row.prompt_ids


def test_rows_of_s_share_their_system_prompt_and_no_more():
    rows = workload("S").rows

    assert len({row.prompt_ids[: workloads.PREFIX_TOKENS] for row in rows}) == 1
    # the next token begins the user's turn
    assert len({row.prompt_ids[workloads.PREFIX_TOKENS + 1 :] for row in rows}) == len(rows)


def test_rows_of_w_have_nothing_but_their_first_token_in_common():
    rows = workload("W").rows

    assert len({row.prompt_ids[1:4] for row in rows}) == len(rows)
    assert workload("W").warm_up.prompt_ids[1:4] not in {row.prompt_ids[1:4] for row in rows}


def test_some_rows_stand_for_all():
    every = workload("Q").rows
    some = workload("Q").take(12).rows

    assert len(some) == 12
    assert prompt_tokens(some) / 12 == pytest.approx(prompt_tokens(every) / 320, rel=0.1)
    assert output_tokens(some) / 12 == pytest.approx(output_tokens(every) / 320, rel=0.1)


def test_all_rows_are_taken_where_no_fewer_are_asked_for():
    assert workload("W").take(None) == workload("W")
    assert workload("W").take(100) == workload("W")


def test_spread_takes_the_middle_of_each_share():
    rows = [Texts(seed=0).row(16, tokens) for tokens in (1, 2, 3, 4, 5, 6)]

    assert [row.max_tokens for row in spread(rows, 2)] == [2, 5]
    assert [row.max_tokens for row in spread(rows, 1)] == [4]
