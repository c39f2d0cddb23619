"""Models that refer to their weights: fetched once on a machine, checked, shared."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pytest

from phi3_batch import folder_cache
from phi3_batch.errors import EnvironmentProblemError, InvalidModelError
from phi3_batch.model_files import Manifest, ModelFolder
from phi3_batch.models.log import log_chat_model, log_pipeline_model, log_prompt_model
from phi3_batch.models.reference import Reference
from tests.conftest import TINY_CHECKPOINT, TINY_MODEL

WEIGHTS = "model.onnx.data"
PROMPT = "<|user|>\nWhat is the capital of Spain?<|end|>\n<|assistant|>\n"
MADRID = "The capital of Spain is Madrid."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's cache, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "phi3_batch" / "weights"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The weights on shared storage."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "shared storage" / "phi3"))


@pytest.fixture
def manifest() -> Manifest:
    return ModelFolder.open(TINY_MODEL).read_manifest()


def files_in(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_size for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("as_uri", [str, Path.as_uri])
def test_a_logged_model_has_no_weights_and_answers_by_them(
    as_uri: type, shared: Path, cache: Path
) -> None:
    logged = log_prompt_model(TINY_MODEL, by_reference=as_uri(shared))
    held = files_in(Path(mlflow.artifacts.download_artifacts(logged.model_uri)))
    assert WEIGHTS not in held
    assert sum(held.values()) < 2e6  # of the package
    model = mlflow.pyfunc.load_model(logged.model_uri)
    assert model.predict({"prompt": PROMPT}) == [MADRID]
    [fetched] = cache.glob(f"*/{WEIGHTS}")
    # what is there is not fetched again, and the shared copy is not needed any more
    shutil.rmtree(shared)
    changed = fetched.stat().st_mtime_ns
    assert mlflow.pyfunc.load_model(logged.model_uri).predict({"prompt": PROMPT}) == [MADRID]
    assert fetched.stat().st_mtime_ns == changed
    assert not list(cache.glob("fetching-*"))


def test_weights_come_from_whatever_mlflow_reads(cache: Path) -> None:
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(TINY_MODEL), "weights")
    where = f"runs:/{run.info.run_id}/weights"
    logged = log_chat_model(TINY_MODEL, by_reference=where)
    chat = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
    [answer] = mlflow.pyfunc.load_model(logged.model_uri).predict(chat)
    assert answer["choices"][0]["message"]["content"] == MADRID
    assert list(cache.glob(f"*/{WEIGHTS}"))


def test_a_pipeline_is_logged_alone_and_answers_by_its_checkpoint(
    tmp_path: Path, cache: Path
) -> None:
    shared = shutil.copytree(TINY_CHECKPOINT, tmp_path / "shared" / "phi3")
    with mlflow.start_run() as run:
        logged = log_pipeline_model(TINY_CHECKPOINT, by_reference=str(shared))
    there = mlflow.search_logged_models(filter_string=f"source_run_id = '{run.info.run_id}'")
    assert list(there["name"]) == ["phi3-pipeline"]
    held = files_in(Path(mlflow.artifacts.download_artifacts(logged.model_uri)))
    assert "model.safetensors" not in held
    chat = {"messages": [{"role": "user", "content": "What is the capital of Spain?"}]}
    [answer] = mlflow.pyfunc.load_model(logged.model_uri).predict(chat)
    assert answer["choices"][0]["message"]["content"] == MADRID
    assert list(cache.glob("*/model.safetensors"))
    shutil.copyfile(TINY_CHECKPOINT / "config.json", shared / "model.safetensors")
    with pytest.raises(InvalidModelError, match=r"has model\.safetensors with .* bytes"):
        log_pipeline_model(TINY_CHECKPOINT, by_reference=str(shared))


def test_what_is_elsewhere_has_to_be_the_folder(shared: Path) -> None:
    before = len(mlflow.search_logged_models(output_format="list"))
    with (shared / WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(InvalidModelError, match=rf"{WEIGHTS} with [\d,]+ bytes, and .* with"):
        log_prompt_model(TINY_MODEL, by_reference=str(shared))
    (shared / WEIGHTS).unlink()
    with pytest.raises(InvalidModelError, match=f"{WEIGHTS} not at all, and .*: copy the folder"):
        log_prompt_model(TINY_MODEL, by_reference=str(shared))
    with pytest.raises(InvalidModelError, match="is no folder: copy the weights there first"):
        log_prompt_model(TINY_MODEL, by_reference=str(shared / "nothing"))
    with pytest.raises(InvalidModelError, match=r"cannot be listed .*: copy the weights there"):
        log_prompt_model(TINY_MODEL, by_reference="runs:/0123456789abcdef0123456789abcdef/weights")
    assert len(mlflow.search_logged_models(output_format="list")) == before


def test_a_fetch_that_was_cut_goes_on(shared: Path, cache: Path, manifest: Manifest) -> None:
    staging = cache / f"fetching-{manifest.digest[:32]}"
    cache.mkdir(parents=True, mode=0o700)
    staging.mkdir()
    whole = (shared / WEIGHTS).read_bytes()
    (staging / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    (cache / "fetching-of another").mkdir()
    # only what is missing is read: the first half there is not what it was
    (shared / WEIGHTS).write_bytes(bytes(len(whole) // 2) + whole[len(whole) // 2 :])
    folder = Reference.to(str(shared)).fetch(manifest)
    assert (folder / WEIGHTS).read_bytes() == whole
    manifest.check(folder)
    assert [path.name for path in cache.glob("fetching-*")] == []


def test_another_file_is_told_and_nothing_of_it_is_kept(
    shared: Path, cache: Path, manifest: Manifest
) -> None:
    damaged = bytearray((shared / WEIGHTS).read_bytes())
    sound = bytes(damaged)
    damaged[1000] ^= 1
    (shared / WEIGHTS).write_bytes(damaged)
    reference = Reference.to(str(shared))
    said = f"{WEIGHTS} at {shared} is not the file that was logged .*: put that one there"
    with pytest.raises(InvalidModelError, match=said):
        reference.fetch(manifest)
    (shared / WEIGHTS).write_bytes(sound)  # the advice
    manifest.check(reference.fetch(manifest))
    (shared / WEIGHTS).unlink()
    shutil.rmtree(cache)
    with pytest.raises(InvalidModelError, match=f"{WEIGHTS} cannot be fetched .*No such file"):
        reference.fetch(manifest)


def test_what_is_damaged_in_the_cache_is_fetched_again(
    shared: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    reference = Reference.to(str(shared))
    folder = reference.fetch(manifest)
    (folder / WEIGHTS).write_bytes(b"nothing")
    manifest.check(reference.fetch(manifest))
    assert "is damaged, and is made again" in caplog.text


def test_a_full_disk_is_one_line(
    shared: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(folder_cache.shutil, "disk_usage", lambda _: full)
    with pytest.raises(EnvironmentProblemError, match=r"cannot be kept on this machine .*has no"):
        Reference.to(str(shared)).fetch(manifest)


def test_processes_of_one_machine_fetch_once(shared: Path, cache: Path, manifest: Manifest) -> None:
    code = (
        "import sys; from phi3_batch.model_files import Manifest\n"
        "from phi3_batch.models import reference\n"
        "get = reference.Reference._get\n"
        "def noted(self, name, file): print(name); get(self, name, file)\n"
        "reference.Reference._get = noted\n"
        "reference.Reference.to(sys.argv[1]).fetch(Manifest.from_json(sys.argv[2]))"
    )
    command = [sys.executable, "-c", code, str(shared), manifest.to_json()]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        for _ in range(3)
    ]
    fetched = [name for process in running for name in process.communicate()[0].split()]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert sorted(fetched) == sorted(manifest.files)
