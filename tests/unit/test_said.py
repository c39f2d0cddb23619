"""What an error says in one line, and what it must not."""

import pytest
from pyspark.errors import AnalysisException, PySparkTypeError, UnknownException

from phi3_batch.scoring.said import first_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError("[Errno 28] No space left\non device"), "[Errno 28] No space left"),
        (RuntimeError(), "RuntimeError"),
        # before any row: names, which the user has given
        (
            AnalysisException("[PATH_NOT_FOUND] Path does not exist: /x. SQLSTATE: 42K03\n\tat a"),
            "[PATH_NOT_FOUND] Path does not exist: /x.",
        ),
        (UnknownException("java.lang.IllegalStateException: secret"), "UnknownException"),
    ],
)
def test_an_error_says_one_line(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_values_are_left_out_of_spark_s_messages() -> None:
    parameters = {"expected_type": "a\nsecret", "arg_name": "secret a\nsecret", "arg_type": "int"}
    error = PySparkTypeError(errorClass="NOT_EXPECTED_TYPE", messageParameters=parameters)
    assert "secret" in str(error)
    assert first_line(error) == "[NOT_EXPECTED_TYPE] Argument `…` should be …, got …."
