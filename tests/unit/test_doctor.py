"""The doctor names what is wrong, and goes on to the next check."""

import platform
import re

from packaging.requirements import Requirement

from phi3_batch import doctor
from phi3_batch.engines import spec


def findings(monkeypatch, **replaced):
    monkeypatch.setattr(doctor, "_delta", lambda: "not started here")
    monkeypatch.setattr(doctor, "_model_store", lambda: "not asked here")
    for name, value in replaced.items():
        monkeypatch.setattr(doctor, name, value)
    return {finding.name: finding for finding in doctor.check_all()}


def test_this_machine_is_sound(monkeypatch):
    found = findings(monkeypatch)
    assert all(finding.ok for finding in found.values()), found
    assert "pandas 2." in found["packages"].text
    assert re.fullmatch(
        r"pyspark [\d.]+, delta-spark [\d.]+, mlflow [\d.]+: tested together",
        found["platform"].text,
    )


def test_without_java_delta_is_not_tried(monkeypatch):
    monkeypatch.setenv("JAVA_HOME", "/nowhere")
    found = findings(monkeypatch)
    assert "install Java 17 or later" in found["java"].text
    assert found["delta"] == ("delta", False, "not tried without Java")
    assert found["packages"].ok


def test_a_package_of_another_version_is_named_with_its_remedy(monkeypatch):
    real = doctor.version
    found = findings(monkeypatch, version=lambda name: "3.0.1" if name == "pandas" else real(name))
    assert not found["packages"].ok
    assert found["packages"].text == "pandas 3.0.1 is not supported: pip install 'pandas<3,>=2.2'"
    advised = Requirement(found["packages"].text.split("'")[1])
    assert advised.specifier.contains(real("pandas"))
    assert not advised.specifier.contains("3.0.1")


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    def version(name):
        if name == "tokenizers":
            raise doctor.PackageNotFoundError(name)
        return real(name)

    real = doctor.version
    found = findings(monkeypatch, version=version)
    assert found["packages"].text.startswith("tokenizers is not installed: pip install 'tokenizers")


def test_an_engine_that_this_machine_has_not_is_named(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    found = findings(monkeypatch)["engines"]
    assert found.ok
    assert found.text == (
        "native (not here: there is no native for aarch64);"
        " openvino (not here: there is no openvino for aarch64); onnxruntime-genai; transformers"
    )


def test_a_machine_without_an_engine_for_builds_is_told(monkeypatch):
    def version(name):
        if "genai" in name or name == "onnx":
            raise spec.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(spec, "version", version)
    found = findings(monkeypatch)["engines"]
    assert not found.ok
    assert found.text.startswith("nothing runs an ONNX build: native (not here: onnx is not")


def test_a_container_with_little_memory_is_told(monkeypatch):
    found = findings(monkeypatch, memory_bytes=lambda: 2**31)
    assert not found["memory"].ok
    assert found["memory"].text.startswith("2.0 GiB: too little for Phi-3-mini")


def test_a_store_that_does_not_answer_is_named_and_another_may_be_set(monkeypatch, tmp_path):
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(doctor, "_delta", lambda: "not started here")
    try:
        mlflow.set_tracking_uri("http://127.0.0.1:9")
        found = {finding.name: finding for finding in doctor.check_all()}
        mlflow.set_tracking_uri(None)  # as in a new process, which the variable is read by
        monkeypatch.setenv(found["model store"].text.split()[-1], f"sqlite:///{tmp_path}/mlflow.db")
        then = {finding.name: finding for finding in doctor.check_all()}
    finally:
        mlflow.set_tracking_uri(before)
    assert not found["model store"].ok
    assert found["model store"].text.startswith("http://127.0.0.1:9 does not answer")
    assert then["model store"] == ("model store", True, f"sqlite:///{tmp_path}/mlflow.db answers")
