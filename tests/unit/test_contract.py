"""What driver and model say to each other, and what each understands of the other's."""

import os
from pathlib import Path

import pytest
from mlflow.models import Model

import phi3_batch
from phi3_batch import contract
from phi3_batch.errors import InvalidModelError
from phi3_batch.models.chat import ChatModel
from phi3_batch.models.prompt import PromptModel
from phi3_batch.scoring.rows import answers, requests, schema
from phi3_batch.scoring.rows.model import find_model


@pytest.mark.parametrize("message", ["message 2 has no content", "is: not", "", "a: b: c"])
def test_an_error_is_read_as_it_was_written(message: str) -> None:
    reason = contract.error_reason("invalid_messages", message)
    assert contract.split_reason(reason) == ("invalid_messages", message)


@pytest.mark.parametrize(
    ("metadata", "newer"),
    [
        (None, None),
        ({"phi3_batch": "0.1.0"}, None),  # before there was a number
        (contract.model_metadata("0.1.0"), None),
        ({"phi3_batch": "9.0", contract.PROTOCOL_KEY: contract.PROTOCOL + 1}, "9.0"),
        ({"phi3_batch": "9.0", contract.PROTOCOL_KEY: "two"}, "9.0"),
        ({"somebody": "else's"}, None),
    ],
)
def test_a_model_that_speaks_another_protocol_is_known(
    metadata: dict[str, object] | None, newer: str | None
) -> None:
    assert contract.find_newer_release(metadata) == newer


def test_a_model_of_a_later_protocol_is_refused_in_one_line(tmp_path: Path) -> None:
    later = {"phi3_batch": "9.0", contract.PROTOCOL_KEY: contract.PROTOCOL + 1}
    Model(flavors={"python_function": {}}, metadata=later).save(str(tmp_path / "MLmodel"))
    with pytest.raises(InvalidModelError) as error:
        find_model(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path} was logged by phi3-batch 9.0, and this release, {phi3_batch.__version__}, is"
        " too old to score it: pip install --upgrade phi3-batch"
    )


def test_a_process_tells_its_own_engine_and_no_child_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(contract.LOADED_ENGINE_VARIABLE, raising=False)
    assert contract.loaded_engine() is None
    contract.tell_loaded_engine("engine 1.0")
    assert contract.loaded_engine() == "engine 1.0"
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert contract.loaded_engine() is None


def test_both_sides_have_the_columns_of_the_contract() -> None:
    assert tuple(schema.USAGE_RESULT.fieldNames()) == contract.USAGE_COLUMNS
    assert tuple(answers.DETAILS.fieldNames()) == contract.DETAILS
    assert tuple(requests.PARAM_TYPES) == (*contract.CHAT_PARAMS, *contract.MORE_CHAT_PARAMS)
    assert isinstance(PromptModel(), contract.PlannableModel)
    assert isinstance(ChatModel(), contract.PlannableModel)
