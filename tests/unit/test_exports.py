import subprocess
import sys

import pytest

import phi3_batch
from phi3_batch import errors

HEAVY = ["mlflow", "pyspark", "delta", "onnxruntime_genai", "tokenizers", "pandas", "numpy"]


def test_the_public_names_are_these():
    assert phi3_batch.__all__ == [
        "Phi3BatchError",
        "__version__",
        "complete",
        "log_chat_model",
        "log_pipeline_model",
        "log_prompt_model",
        "plan",
        "promote",
        "score",
        "spark_udf",
        "verify",
    ]


def test_every_public_name_is_there():
    for name in phi3_batch.__all__:
        assert getattr(phi3_batch, name) is not None


def test_the_public_names_are_the_real_things():
    assert phi3_batch.Phi3BatchError is errors.Phi3BatchError
    assert phi3_batch.log_prompt_model.__module__ == "phi3_batch.models.log"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'phi3_batch' has no attribute 'log_everything'"):
        _ = phi3_batch.log_everything


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, phi3_batch; print(sorted(set(sys.modules) & set({HEAVY})))"
    answer = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert answer.stdout == "[]\n"


@pytest.mark.parametrize(
    "name",
    [
        "InvalidModelError",
        "InvalidParameterError",
        "EngineError",
        "TableError",
        "EnvironmentProblemError",
        "ScoringError",
    ],
)
def test_every_error_raised_on_purpose_is_of_one_family(name):
    assert issubclass(getattr(errors, name), errors.Phi3BatchError)


def test_the_codes_of_the_error_column_are_these():
    assert [str(code) for code in errors.RowErrorCode] == [
        "null_prompt",
        "empty_prompt",
        "invalid_text",
        "invalid_messages",
        "invalid_parameter",
        "prompt_too_long",
        "answer_cut",
        "engine_error",
        "worker_crashed",
    ]
