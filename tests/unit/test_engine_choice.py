import pytest

from phi3_batch.contract import ENGINE_VARIABLE
from phi3_batch.engines.registry import check_choice, choose
from phi3_batch.errors import InvalidParameterError


@pytest.mark.parametrize("name", ["auto", "native", "openvino", "onnxruntime-genai"])
def test_an_engine_is_known_by_its_name(name):
    assert check_choice(name) == name


@pytest.mark.parametrize("name", ["", "vllm", "OpenVINO", "onnxruntime_genai", " auto"])
def test_another_name_is_refused_with_the_ones_there_are(name):
    with pytest.raises(InvalidParameterError) as caught:
        check_choice(name)
    assert str(caught.value) == (
        f"engine must be one of auto, native, openvino, onnxruntime-genai, not {name!r}"
    )


def test_a_model_has_the_engine_it_was_logged_with(monkeypatch):
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    assert choose("openvino") == "openvino"


def test_the_environment_of_a_machine_overrides_it(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "onnxruntime-genai")
    assert choose("openvino") == "onnxruntime-genai"


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "")
    assert choose("openvino") == "openvino"


def test_a_wrong_name_in_the_environment_says_where_it_is(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "vllm")
    with pytest.raises(InvalidParameterError, match=r"^PHI3_BATCH_ENGINE must be one of"):
        choose("auto")
