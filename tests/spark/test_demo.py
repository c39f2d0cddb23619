"""jobs/demo.py, as `make demo` runs it, but in the tests' process: it takes their session."""

import runpy
from pathlib import Path

import mlflow
import pytest

from tests.conftest import REPOSITORY


def test_the_demo_shows_right_answers_and_runs_again(
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = mlflow.get_tracking_uri()
    try:
        for version in (1, 2):
            monkeypatch.chdir(tmp_path)
            runpy.run_path(str(REPOSITORY / "jobs" / "demo.py"), run_name="__main__")
            said = capsys.readouterr().out
            assert f"models:/phi3-tiny/{version} (as models:/phi3-tiny@champion)" in said
            [spain] = [line for line in said.splitlines() if "Spain is Madrid." in line]
            assert spain.split()[-3:] == ["stop", "10", "7"]
            assert "errors      0" in said
            assert "phi3-batch log prompt FOLDER_OF_YOUR_ONNX_BUILD" in said
        assert (tmp_path / "demo" / "mlflow.db").is_file()
    finally:
        mlflow.set_tracking_uri(before)
