"""A job that cannot work ends before the first row: exit code 1, one line, nothing written."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from pyspark.sql import SparkSession

from tests.delta_files import write_table
from tests.spark.conftest import with_ids
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
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table with nothing wrong: the columns id and prompt, one row."""
    return write_table(tmp_path_factory.mktemp("source") / "prompts", with_ids([SPAIN]))


def test_no_such_table(fails_with: FailsWith, tmp_path: Path) -> None:
    assert fails_with(f"{tmp_path}/nowhere").startswith(f"no Delta table at {tmp_path}/nowhere")
    assert "cannot read no_such_table" in fails_with("no_such_table")
    assert "`no_such_table` cannot be found" in fails_with("no_such_table")
    assert "cannot read not a name" in fails_with("not a name")
    assert fails_with("my-prompts").endswith("; for a folder give ./my-prompts")


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
    assert fails_with(table).startswith("files of a table are gone that its version lists")


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
        "input column 'Model' has the name of an output column: rename it, or leave it out with"
        " --keep id,prompt"
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


def test_weights_that_are_not_what_was_logged(
    fails_with: FailsWith, source: str, model_uri: str, tmp_path: Path
) -> None:
    logged = mlflow.artifacts.download_artifacts(model_uri)
    copy = Path(shutil.copytree(logged, tmp_path / "model"))
    [data] = copy.rglob("model.onnx.data")
    data.write_bytes(bytes(data.stat().st_size))
    assert fails_with(source, model=str(copy)) == (
        f"{copy} cannot be loaded: {data} is not the file that was logged (its SHA-256 is"
        " another): the copy is damaged, copy it again, or log the model again"
    )


def test_a_model_that_takes_something_else(fails_with: FailsWith, source: str) -> None:
    signature = ModelSignature(Schema([ColSpec("double", "x")]), Schema([ColSpec("double")]))
    info = mlflow.pyfunc.log_model(
        name="doubler",
        python_model=str(Path(__file__).parent / "other_models" / "miscounting.py"),
        pip_requirements=["mlflow"],
        signature=signature,
    )
    said = fails_with(source, model=info.model_uri)
    assert said == f"{info.model_uri} has no input 'prompt' or 'messages', its inputs are x"


def test_a_logged_model_that_is_no_pyfunc(
    fails_with: FailsWith, source: str, tmp_path: Path
) -> None:
    folder = tmp_path / "not-pyfunc"
    folder.mkdir()
    mlflow.models.Model(flavors={"onnx": {}}).save(str(folder / "MLmodel"))
    said = fails_with(source, model=str(folder))
    assert said == f"{folder} is not a pyfunc, its flavors are onnx"


def test_output_in_a_place_that_cannot_be_written(
    fails_with: FailsWith, source: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    said = fails_with(source, output=f"{tmp_path}/file/below/out")
    assert said.endswith(f"cannot be written: {tmp_path}/file is no folder to write to")


def test_parameters_that_the_model_has_not(fails_with: FailsWith, source: str) -> None:
    from phi3_batch.models.log import log_prompt_model
    from tests.conftest import TINY_MODEL

    bare = log_prompt_model(TINY_MODEL, params=False).model_uri
    said = fails_with(source, "--max-tokens", "5", model=bare)
    assert said == f"{bare} has no parameter 'max_tokens', it takes none at all"


@pytest.fixture(scope="module")
def chats(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A table of one chat and columns of many types."""
    path = str(tmp_path_factory.mktemp("source") / "chats")
    row = spark.sql(
        "select array(struct('user' role, 'Hi' content)) messages, 'Spain' country,"
        " array('x') words, 1.5D warmth, 3 most, array(struct('user' role, 7 content)) numbers"
    )
    row.write.format("delta").save(path)
    return path


def test_options_that_a_model_of_prompts_cannot_follow(
    fails_with: FailsWith, source: str, model_uri: str
) -> None:
    said = fails_with(source, "--user-template", "{prompt}")
    assert said == (
        f"--user-template is for models of messages, and {model_uri} takes prompts: log the same"
        " folder with phi3-batch log chat"
    )
    assert fails_with(source, "--param", "n=col:id").startswith("--param is for models of messages")
    assert "--keep-response keeps chat completions" in fails_with(source, "--keep-response")
    assert "has no parameter 'n', it takes max_tokens" in fails_with(source, "--n", "2")


def test_options_that_a_model_of_chats_cannot_follow(
    fails_with: FailsWith, chats: str, chat_uri: str
) -> None:
    def said(*options: str) -> str:
        return fails_with(chats, *options, model=chat_uri)

    assert said("--n", "0") == "n must be a whole number from 1 to 128"
    assert "--system needs --user-template" in said("--system", "Be brief.")
    assert "give one of them" in said("--column", "messages", "--user-template", "{country}")
    assert "names 'town', but the columns of" in said("--user-template", "{town}")
    assert "the user template cannot be read" in said("--user-template", "{country")
    assert "names 'words', which is array<string>" in said("--user-template", "{words}")
    assert "is not of the form NAME=col:COLUMN" in said("--param", "temperature=0.5")
    assert "--param n is given twice" in said("--param", "n=col:a", "--param", "n=col:b")
    assert "has no parameter 'seed' of its own" in said("--param", "seed=col:most")
    assert "has no column 'heat' for temperature" in said("--param", "temperature=col:heat")
    assert "is double, and max_tokens is long" in said("--param", "max_tokens=col:warmth")
    assert "is string, and stop is array<string>" in said("--param", "stop=col:country")


def test_columns_that_are_no_messages(
    fails_with: FailsWith, source: str, chats: str, chat_uri: str
) -> None:
    assert "or make messages with --user-template" in fails_with(source, model=chat_uri)
    said = fails_with(source, "--column", "prompt", model=chat_uri)
    assert said.endswith(
        "is string, not messages: make messages of it with --user-template '{prompt}'"
    )
    said = fails_with(chats, "--column", "numbers", model=chat_uri)
    assert said.endswith("not array<struct<role:string,content:string>>")
    assert "is array<string>, not array<struct" in fails_with(
        chats, "--column", "words", model=chat_uri
    )


def test_a_model_of_chats_that_is_not_ours(fails_with: FailsWith, chats: str) -> None:
    class Echo(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):
            return ["x"] * len(model_input)

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "messages")]), outputs=Schema([ColSpec("string")])
    )
    with mlflow.start_run():
        info = mlflow.pyfunc.log_model(name="echo", python_model=Echo(), signature=signature)
    said = fails_with(chats, model=info.model_uri)
    assert "takes messages and is neither one of ours nor a transformers pipeline" in said
