"""A logged model needs nothing of the repository that it was logged from."""

import json
import os
import subprocess
import sys
import sysconfig

import pytest

# -S leaves site-packages out, and so the .pth file that leads to the repository; it comes back as
# a plain folder, whose .pth files nobody reads. What is None in sys.modules cannot be imported.
PROGRAM = """
import importlib.util, json, sys
sys.path.append(sys.argv[1])
sys.modules |= dict.fromkeys(["torch", "transformers", "onnx", "pyspark", "delta"])
if importlib.util.find_spec("phi3_batch") is not None:
    sys.exit("phi3_batch can be imported without the model")
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[2])
prompts = json.loads(sys.argv[3])
answers = model.predict({"prompt": prompts})
import phi3_batch
print(json.dumps([phi3_batch.__file__, answers]))
"""


@pytest.fixture(scope="module")
def elsewhere(logged, samples, tmp_path_factory):
    """File of the package, and answers, in a process without the repository, torch and Spark."""
    prompts = json.dumps([sample.prompt for sample in samples[:20]])
    packages = sysconfig.get_paths()["purelib"]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answer = subprocess.run(
        [sys.executable, "-S", "-c", PROGRAM, packages, logged.model_uri, prompts],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout.splitlines()[-1])


def test_the_package_comes_out_of_the_model(elsewhere, store_folder):
    assert elsewhere[0].startswith(str(store_folder))
    assert elsewhere[0].endswith("/code/phi3_batch/__init__.py")


def test_the_model_answers_without_the_repository_torch_and_spark(elsewhere, samples):
    assert elsewhere[1] == [sample.answer for sample in samples[:20]]
