"""A job that cannot work ends before the first row: exit code 1, one line, nothing written."""

import re
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyspark.sql import SparkSession

from tests.spark.test_score import SPAIN, score

WritePrompts = Callable[..., str]


@pytest.fixture
def fails_with(
    tmp_path: Path, model_uri: str, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Run a job that must fail; returns its one line."""

    def run(source: str, *options: str, model: str = model_uri, output: str = "") -> str:
        runs_before = len(mlflow.search_runs(search_all_experiments=True))
        target = output or str(tmp_path / "out")
        capfd.readouterr()
        assert score(model, source, target, *options) == 1
        err = capfd.readouterr().err
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert "Traceback" not in err
        assert not (tmp_path / "out").exists()
        assert len(mlflow.search_runs(search_all_experiments=True)) == runs_before
        return lines[0].removeprefix("error: ")

    return run


FailsWith = Callable[..., str]


@pytest.fixture(scope="module")
def source(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table with nothing wrong: the columns id and prompt, one row."""
    path = str(tmp_path_factory.mktemp("source") / "prompts")
    spark.createDataFrame([(0, SPAIN)], "id long, prompt string").write.format("delta").save(path)
    return path


def test_no_such_table(fails_with: FailsWith, tmp_path: Path) -> None:
    assert fails_with(f"{tmp_path}/nowhere").startswith(f"no Delta table at {tmp_path}/nowhere")
    assert "cannot read no_such_table" in fails_with("no_such_table")
    assert "`no_such_table` cannot be found" in fails_with("no_such_table")
    assert "cannot read not a name" in fails_with("not a name")


def test_no_such_file(fails_with: FailsWith, tmp_path: Path) -> None:
    said = fails_with(f"{tmp_path}/nowhere.jsonl")
    assert "Path does not exist" in said


def test_a_folder_of_something_else(
    fails_with: FailsWith, spark: SparkSession, tmp_path: Path
) -> None:
    spark.range(3).write.parquet(f"{tmp_path}/plain")
    assert fails_with(f"{tmp_path}/plain").startswith(f"no Delta table at {tmp_path}/plain")


def test_a_table_whose_files_are_gone(fails_with: FailsWith, write_prompts: WritePrompts) -> None:
    table = write_prompts([SPAIN])
    for file in Path(table).glob("*.parquet"):
        file.unlink()
    assert fails_with(table).startswith("Spark: ")


def test_no_such_column(fails_with: FailsWith, source: str) -> None:
    said = fails_with(source, "--column", "question")
    assert "has no column 'question', its columns are id, prompt;" in said
    said = fails_with(source, "--keep", "id,nope")
    assert said == "the input has no column 'nope' to keep, its columns are id, prompt"


def test_a_column_that_is_no_string(fails_with: FailsWith, source: str) -> None:
    said = fails_with(source, "--column", "id")
    assert re.search(r"column 'id' of .* is bigint, not string", said)


def test_columns_that_collide(fails_with: FailsWith, spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.createDataFrame([(1, "x", "y")], "id int, prompt string, Model string")
    rows.write.format("delta").save(f"{tmp_path}/in")
    said = fails_with(f"{tmp_path}/in")
    assert said == (
        "input column 'Model' has the name of an output column: leave it out with --keep id,prompt"
    )


def test_columns_that_delta_refuses(fails_with: FailsWith, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("prompt,my note\nhello,x\n")
    assert "columns named like 'my note'" in fails_with(f"{tmp_path}/in.csv")


def test_output_that_is_the_input(fails_with: FailsWith, source: str) -> None:
    said = fails_with(source, "--mode", "overwrite", output=f"{source}/../prompts/")
    assert said.endswith("is the input: give another table")


def test_output_that_exists(
    fails_with: FailsWith, write_prompts: WritePrompts, source: str
) -> None:
    there = write_prompts([SPAIN], name="there")
    said = fails_with(source, output=there)
    assert said == f"output {there} exists: use --mode append or --mode overwrite"
    said = fails_with(source, "--mode", "append", output=there)
    assert said.startswith(f"output {there} has other columns than this job writes (completion,")


def test_names_where_paths_are_meant(
    fails_with: FailsWith, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(source).parent)
    assert fails_with("prompts") == "no table prompts: for the folder of that name give ./prompts"
    assert fails_with(source, output="completions") == (
        "output completions is a table's name, and this Spark session forgets its tables when it"
        " ends: give a path, such as ./completions"
    )


def test_output_that_is_a_file_name(fails_with: FailsWith, source: str) -> None:
    said = fails_with(source, output="completions.csv")
    assert said.startswith("output completions.csv looks like a data file")


def test_models_that_are_not_there(fails_with: FailsWith, source: str) -> None:
    for uri in (
        "models:/nobody/1",
        "models:/nobody@champion",
        "models:/phi3-tiny@nope",
        "models:/phi3-tiny/99",
        "runs:/0123456789abcdef0123456789abcdef/model",
        "/no/such/folder",
        "nonsense",
    ):
        assert fails_with(source, model=uri).startswith(f"no model {uri} in sqlite:///"), uri


def test_a_model_that_takes_something_else(fails_with: FailsWith, source: str) -> None:
    signature = ModelSignature(Schema([ColSpec("double", "x")]), Schema([ColSpec("double")]))
    info = mlflow.pyfunc.log_model(
        name="doubler",
        python_model=str(Path(__file__).parent / "other_models" / "miscounting.py"),
        pip_requirements=["mlflow"],
        signature=signature,
    )
    said = fails_with(source, model=info.model_uri)
    assert said == f"{info.model_uri} has no input 'prompt', its inputs are x"


def test_a_logged_model_that_is_no_pyfunc(
    fails_with: FailsWith, source: str, tmp_path: Path
) -> None:
    folder = tmp_path / "not-pyfunc"
    folder.mkdir()
    mlflow.models.Model(flavors={"onnx": {}}).save(str(folder / "MLmodel"))
    said = fails_with(source, model=str(folder))
    assert said == f"{folder} is not a pyfunc, its flavors are onnx"


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-tokens", "0", "max_tokens must be 1 or above, not 0"),
        ("--temperature", "-1", "temperature must be 0 (greedy) or above, not -1.0"),
        ("--temperature", "nan", "temperature must be a number, not nan"),
        ("--top-p", "0", "top_p must be above 0 and at most 1"),
        ("--top-k", "-3", "top_k must be 0 or above, not -3"),
        ("--seed", "-1", "seed must be 0 or above, not -1"),
        ("--stop", "", "stop must be a list of strings, none of them empty"),
    ],
)
def test_parameters_out_of_range(
    option: str, value: str, said: str, fails_with: FailsWith, source: str
) -> None:
    assert fails_with(source, option, value).startswith(said)


def test_parameters_that_the_model_has_not(fails_with: FailsWith, source: str) -> None:
    from phi3_batch.models.log import log_prompt_model
    from tests.conftest import TINY_MODEL

    bare = log_prompt_model(TINY_MODEL, params=False).model_uri
    said = fails_with(source, "--max-tokens", "5", model=bare)
    assert said == f"{bare} has no parameter 'max_tokens', it takes none at all"
