"""Builds by the real model builder, of the embedded checkpoint: some seconds each."""

import dataclasses
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime_genai as og
import pytest
from safetensors.numpy import load_file, save_file

from phi3_batch import build as build_module
from phi3_batch.build import build_int4, check_build, estimate_build, fetch_checkpoint
from phi3_batch.cli import main
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.perplexity import SAMPLE_TEXT, perplexity, read_text
from phi3_batch.errors import (
    EngineError,
    EnvironmentProblemError,
    InvalidModelError,
    InvalidParameterError,
)
from phi3_batch.generation import Request
from phi3_batch.model_files import Checkpoint, Dimensions, ModelFolder
from tests.conftest import REPOSITORY, TINY_CHECKPOINT

# microsoft/Phi-3-mini-4k-instruct, config.json
PHI3_MINI = {
    "model_type": "phi3",
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
HUB_NAME = "somebody/phi3-tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return build_int4(TINY_CHECKPOINT, tmp_path_factory.mktemp("builds") / "of" / "mine")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the embedded checkpoint that a test may change."""
    return Path(shutil.copytree(TINY_CHECKPOINT, tmp_path / "checkpoint"))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where a build that fails would be, in a folder of its own."""
    return tmp_path / "builds" / "mine"


@pytest.fixture
def run_instead(monkeypatch: pytest.MonkeyPatch):
    """Replaces the builder by Python code, which finds the folder to write in `out`."""

    def run_instead(code: str) -> None:
        head = (
            "import os, pathlib, signal, sys, time\n"
            "out = pathlib.Path(sys.argv[sys.argv.index('-o') + 1])\n"
            "out.mkdir()\n"
            "(out / 'model.onnx').write_text('half a graph')\n"
        )
        monkeypatch.setattr(build_module, "_BUILDER", (sys.executable, "-c", head + code))

    return run_instead


def checkpoint_of_shape(folder: Path, **config: object) -> Checkpoint:
    """A checkpoint without weights: what a build takes is told by config.json."""
    (folder / "config.json").write_text(json.dumps(PHI3_MINI | config), encoding="utf-8")
    dimensions = Dimensions(layers=32, key_value_heads=32, head_size=96, hidden_size=3072)
    return Checkpoint(folder, 4096, 32064, (32000,), ("config.json",), dimensions, "bfloat16")


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


# --- what is built -------------------------------------------------------------------------------


def test_a_build_says_what_it_is(built):
    assert built.path.name == "mine"
    assert built.precision == "int4-block-32-acc-level-4"
    assert built.context_length == 4096
    assert built.end_token_ids == (1000, 1001, 1007)


def test_a_build_gives_the_exact_answers(built, samples):
    engine = OnnxRuntimeGenAIEngine(built)
    chosen = samples[::8]
    assert len(chosen) > 40
    encode = engine.tokenizer.encode_prompt
    completions = engine.generate([Request(tuple(encode(sample.prompt))) for sample in chosen])
    assert [completion.text for completion in completions] == [sample.answer for sample in chosen]


def test_a_build_has_the_tokenizer_of_its_checkpoint_and_no_other(built):
    assert names(built.path) == {
        "config.json",
        "genai_config.json",
        "model.onnx",
        "model.onnx.data",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (built.path / name).read_bytes() == (TINY_CHECKPOINT / name).read_bytes()


def test_a_prompt_beyond_the_sliding_window_runs_without_our_engine(built, nonsense):
    # not by the engine, which makes up for the builds of others
    model = og.Model(str(built.path))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=2300)
    generator = og.Generator(model, params)
    generator.append_tokens(np.array(nonsense(2200), dtype=np.int32))
    generator.generate_next_token()
    assert generator.token_count() == 2201


def test_a_build_does_not_depend_on_the_repository_around_the_packages(built):
    producer = onnx_ir.load(built.path / "model.onnx").producer_version
    assert producer == f"{og.__version__}+{og.__commit__[:7]}"


def test_nothing_is_left_beside_a_build(built):
    assert names(built.path.parent) == {"mine"}


def test_another_block_size_and_accuracy_level_quietly_into_an_empty_folder(tmp_path, capfd):
    target = tmp_path / "empty"
    target.mkdir()
    folder = build_int4(str(TINY_CHECKPOINT), str(target), block_size=128, accuracy_level=0)
    assert capfd.readouterr() == ("", "")
    assert folder.path == target
    assert folder.precision == "int4-block-128-acc-level-0"
    data = (target / "model.onnx.data").stat().st_size
    estimate = estimate_build(Checkpoint.open(TINY_CHECKPOINT), block_size=128).output_bytes
    assert estimate == pytest.approx(data, rel=0.005)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (None, "algo_config=default block_size"),
        ("rtn", "algo_config=rtn block_size"),
        ("k_quant", "algo_config=k_quant block_size"),
        ("rtn_last", "algo_config=rtn matmul_mixed_precision=last_matmul:int8 block_size"),
        (
            "k_quant_mixed",
            "algo_config=k_quant matmul_mixed_precision=last_matmul:int8,mixed_layers:int8 block",
        ),
    ],
)
def test_the_builder_is_told_how_to_round(target, run_instead, algorithm, options):
    run_instead("raise ValueError(' '.join(sys.argv))")
    given = {"algorithm": algorithm} if algorithm else {}
    with pytest.raises(EngineError, match=f"--extra_options {options}"):
        build_int4(TINY_CHECKPOINT, target, **given)


def test_a_builder_that_rounds_otherwise_than_told_is_found(built):
    # as with the option's old name, which the builder takes and does nothing with
    linears, _ = build_module._weights(Checkpoint.open(TINY_CHECKPOINT))
    with pytest.raises(InvalidModelError) as error:
        build_module._check_graph(built.path / "model.onnx", linears, "default_last", 32)
    assert re.fullmatch(
        r"the model builder lost layers: \d+ weights in int4 in blocks of 32 lead to the logits, of"
        r" \d+ weights in int4 and \d+ weights in int8 in the checkpoint",
        str(error.value),
    )


def test_a_build_reads_a_text_nearly_as_well_as_its_checkpoint(built):
    trial = check_build(built, Checkpoint.open(TINY_CHECKPOINT))
    assert trial.answer == "The capital of Spain is Madrid."
    assert trial.no_chat is None
    assert trial.text_tokens == 2048
    assert trial.perplexity == pytest.approx(trial.checkpoint_perplexity, rel=0.3)


def test_a_checkpoint_that_memory_has_no_room_for_is_left_out(built, monkeypatch):
    monkeypatch.setattr(build_module, "available_memory_bytes", lambda: 10**9)
    assert check_build(built, Checkpoint.open(TINY_CHECKPOINT)).checkpoint_perplexity is None


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(built):
    class Even:
        def read_logits(self, token_ids):
            return np.full((len(token_ids), 1024), 7.0, np.float32)

    ids = read_text(SAMPLE_TEXT, built.tokenizer)
    assert perplexity(Even(), ids, context_length=4096) == pytest.approx(1024)
    assert perplexity(Even(), ids, context_length=100) == pytest.approx(1024)


def test_logits_that_are_no_numbers_have_no_perplexity(built, tmp_path):
    broken = shutil.copytree(built.path, tmp_path / "broken")
    data = broken / "model.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)
    engine = OnnxRuntimeGenAIEngine(ModelFolder.open(broken))
    with pytest.raises(EngineError, match=r"^the model's logits are not finite numbers$"):
        perplexity(engine, read_text(SAMPLE_TEXT, built.tokenizer), context_length=4096)


def test_a_build_that_does_not_run_is_found(built):
    short = dataclasses.replace(built, context_length=4)
    with pytest.raises(EngineError, match=f"^{built.path} does not run: .*4") as error:
        check_build(short, Checkpoint.open(TINY_CHECKPOINT))
    assert "Spain" not in str(error.value)


# --- what is refused, and leaves nothing ---------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_there_already_is_not_touched(tmp_path, kind):
    target = tmp_path / "mine"
    file = target / "notes.txt" if kind == "folder" else target
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine", encoding="utf-8")
    with pytest.raises(InvalidParameterError, match=f"^{target} is there already"):
        build_int4(TINY_CHECKPOINT, target)
    assert file.read_text(encoding="utf-8") == "mine"
    assert names(tmp_path) == {"mine"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    target = tmp_path / "file" / "mine"
    with pytest.raises(InvalidParameterError, match=f"^{target} cannot be written: "):
        build_int4(TINY_CHECKPOINT, target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 48}, "block_size must be one of 16, 32, 64, 128, 256, not 48"),
        ({"block_size": 32.0}, "block_size must be one of 16, 32, 64, 128, 256, not 32.0"),
        ({"accuracy_level": 5}, "accuracy_level must be one of 0, 1, 2, 3, 4, not 5"),
        (
            {"algorithm": "awq"},
            "algorithm must be one of default, rtn, k_quant, gptq, default_last, rtn_last,"
            " k_quant_last, gptq_last, default_mixed, rtn_mixed, k_quant_mixed, gptq_mixed, not"
            " 'awq'",
        ),
        ({"accuracy_level": True}, "accuracy_level must be one of 0, 1, 2, 3, 4, not True"),
    ],
)
def test_an_option_that_the_builder_does_not_take_is_refused(target, options, message):
    with pytest.raises(InvalidParameterError) as error:
        build_int4(TINY_CHECKPOINT, target, **options)
    assert str(error.value) == message
    assert not target.parent.exists()


def test_a_folder_that_is_no_checkpoint_is_refused(tiny_folder, target):
    (target.parent).mkdir()
    with pytest.raises(InvalidModelError, match=r"has no model\.safetensors"):
        build_int4(tiny_folder.path, target)
    assert names(target.parent) == set()


@pytest.mark.parametrize("package", ["torch", "transformers", "onnx_ir"])
def test_without_the_build_extra_it_is_named(target, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentProblemError) as error:
        build_int4(TINY_CHECKPOINT, target)
    assert str(error.value) == f"{package} cannot be found: pip install 'phi3-batch[build]'"


def test_a_builder_that_fails_half_way_leaves_nothing(target, run_instead):
    run_instead("print('chatter'); print('Loading', file=sys.stderr); raise ValueError('no luck')")
    with pytest.raises(EngineError) as error:
        build_int4(TINY_CHECKPOINT, target)
    assert str(error.value) == "the model builder failed (exit code 1): ValueError: no luck"
    assert names(target.parent) == set()


def test_a_builder_that_was_killed_is_told_what_it_needs(target, run_instead):
    run_instead("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EngineError, match=r"was killed.* needs about 0\.7 GB, \d+\.\d GB are free"):
        build_int4(TINY_CHECKPOINT, target)
    assert names(target.parent) == set()


def is_running(pid: str) -> bool:
    """Whether there is such a process that is not a zombie."""
    try:
        state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_an_interrupt_ends_the_builder_and_leaves_nothing(target, run_instead, tmp_path):
    note = tmp_path / "pid"
    run_instead(
        f"pathlib.Path({str(note)!r}).write_text(str(os.getpid()))\n"
        "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    )
    with pytest.raises(KeyboardInterrupt):
        build_int4(TINY_CHECKPOINT, target)
    assert names(target.parent) == set()
    deadline = time.monotonic() + 10  # killed it is, and ends when the kernel comes to it
    while is_running(note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_damaged_weights_are_one_line(checkpoint, target):
    weights = checkpoint / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(
        EngineError, match=r"^the model builder failed .*SafetensorError.*$"
    ) as error:
        build_int4(checkpoint, target)
    assert "\n" not in str(error.value)
    assert names(target.parent) == set()


def test_layers_that_the_builder_loses_are_missed(checkpoint, target):
    # 512 inner sizes make gate_up_proj's outputs as many as the vocabulary: the builder takes the
    # one of the first layer for the lm_head
    weights = load_file(checkpoint / "model.safetensors")
    for name, weight in weights.items():
        if "mlp" in name:
            wider = np.zeros((1024, 192) if "gate_up" in name else (192, 512), dtype=weight.dtype)
            wider[: weight.shape[0], : weight.shape[1]] = weight
            weights[name] = wider
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps(config | {"intermediate_size": 512}))
    with pytest.raises(
        InvalidModelError, match=r"^the model builder lost layers: 344064 .* 1966080 "
    ):
        build_int4(checkpoint, target)
    assert names(target.parent) == set()


# --- what it takes -------------------------------------------------------------------------------


def test_the_size_of_a_build_is_known_before(built):
    estimate = estimate_build(Checkpoint.open(TINY_CHECKPOINT), 32)
    # all but the weights of the norms
    assert estimate.output_bytes == (built.path / "model.onnx.data").stat().st_size - 9 * 192 * 4


def test_phi3_mini_takes_what_was_measured(tmp_path):
    estimate = estimate_build(checkpoint_of_shape(tmp_path), 32)
    # Microsoft's own build, cpu-int4-rtn-block-32-acc-level-4: 2.72 GB
    assert estimate.output_bytes == pytest.approx(2.72e9, rel=0.005)
    assert estimate.memory_bytes == pytest.approx(22.1e9, rel=0.01)


@pytest.mark.parametrize(
    ("config", "memory_gb", "data_bytes"),
    [
        # measured: peak of the builder's anonymous memory, size of model.onnx.data
        ({"num_hidden_layers": 2}, 4.38, 598750000),
        ({"num_hidden_layers": 16}, 12.58, 1590000000),
    ],
)
def test_fewer_layers_take_what_was_measured(tmp_path, config, memory_gb, data_bytes):
    estimate = estimate_build(checkpoint_of_shape(tmp_path, **config), 32)
    assert estimate.memory_bytes / 1e9 == pytest.approx(memory_gb, rel=0.04)
    assert estimate.output_bytes == pytest.approx(data_bytes, rel=0.001)


def test_larger_blocks_make_a_smaller_build(tmp_path):
    checkpoint = checkpoint_of_shape(tmp_path)
    sizes = [estimate_build(checkpoint, block).output_bytes for block in (16, 32, 64, 128, 256)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 5


def test_a_tied_embedding_is_stored_once(tmp_path):
    apart = estimate_build(checkpoint_of_shape(tmp_path), 32).output_bytes
    tied = estimate_build(checkpoint_of_shape(tmp_path, tie_word_embeddings=True), 32).output_bytes
    assert apart - tied == 32064 * 3072 * 4


def test_grouped_heads_make_a_smaller_build(tmp_path):
    all_heads = estimate_build(checkpoint_of_shape(tmp_path), 32).output_bytes
    grouped = estimate_build(checkpoint_of_shape(tmp_path, num_key_value_heads=8), 32).output_bytes
    assert all_heads - grouped == 32 * 2 * 24 * 96 * 3072 * 5 // 8


def test_a_configuration_without_a_shape_is_damaged(tmp_path):
    checkpoint = checkpoint_of_shape(tmp_path, hidden_size=None)
    with pytest.raises(InvalidModelError, match=f"^{tmp_path / 'config.json'} is damaged: "):
        estimate_build(checkpoint, 32)


# --- where checkpoints come from -----------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[str]:
    """Hugging Face as far as a download goes, with the embedded checkpoint and more; its URL."""
    files = {file.name: file.read_bytes() for file in TINY_CHECKPOINT.iterdir()}
    files |= {"pytorch_model.bin": b"the weights again", "README.md": b"# Phi-3"}
    tree = [
        {"type": "file", "path": name, "size": len(content), "oid": f"{number:040x}"}
        for number, (name, content) in enumerate(files.items())
    ]

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].lstrip("/")
            if path == f"api/models/{HUB_NAME}/revision/main":
                self.answer(json.dumps({"id": HUB_NAME, "sha": COMMIT}).encode())
            elif path == f"api/models/{HUB_NAME}/tree/{COMMIT}":
                self.answer(json.dumps(tree).encode())
            elif path.startswith(f"{HUB_NAME}/resolve/{COMMIT}/"):
                self.answer(files[path.rpartition("/")[2]])
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{len(content)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(tmp_path: Path):
    """Fetches in a process of its own: huggingface_hub reads its settings when it is imported."""

    def fetch(name: str, **settings: str) -> str:
        code = (
            "import sys\n"
            "from phi3_batch.build import fetch_checkpoint\n"
            "from phi3_batch.errors import InvalidModelError\n"
            "try: print(fetch_checkpoint(sys.argv[1]))\n"
            "except InvalidModelError as error: print(error)\n"
        )
        settings = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"} | settings
        done = subprocess.run(
            [sys.executable, "-c", code, name],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | settings,
            cwd=REPOSITORY,
        )
        return done.stdout.removesuffix("\n")

    return fetch


def test_a_folder_is_its_own_checkpoint():
    assert fetch_checkpoint(str(TINY_CHECKPOINT)) == TINY_CHECKPOINT


@pytest.mark.parametrize(
    "path",
    ["/nowhere/phi3", "./phi3", "../some/phi3", "~/phi3", "models/of/phi3", "phi3", "a/b/"],
)
def test_what_looks_like_a_path_is_not_asked_of_the_hub(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InvalidModelError, match=f"^no folder {path}: give the folder"):
        fetch_checkpoint(path)


def test_a_file_is_no_folder(monkeypatch):
    monkeypatch.chdir(TINY_CHECKPOINT.parent)
    with pytest.raises(InvalidModelError, match=r"^no folder phi3-tiny/config.json: give"):
        fetch_checkpoint("phi3-tiny/config.json")


def test_without_the_build_extra_nothing_is_fetched(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        EnvironmentProblemError, match=r"^huggingface_hub cannot be found: pip inst"
    ):
        fetch_checkpoint(HUB_NAME)


def test_a_checkpoint_is_downloaded_without_what_is_not_needed(fetch, hub):
    folder = Path(fetch(HUB_NAME, HF_ENDPOINT=hub))
    assert names(folder) == names(TINY_CHECKPOINT)
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (TINY_CHECKPOINT / weights).read_bytes()


def test_a_checkpoint_in_the_cache_needs_no_network(fetch, tmp_path):
    repository = tmp_path / "cache" / "models--somebody--phi3-tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    snapshot = shutil.copytree(TINY_CHECKPOINT, repository / "snapshots" / COMMIT)
    settings = {"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    assert fetch(HUB_NAME, **settings) == str(snapshot)


def test_a_name_that_the_hub_does_not_know_is_one_line(fetch, hub):
    message = fetch("somebody/else", HF_ENDPOINT=hub)
    assert message.startswith("no folder somebody/else, and Hugging Face does not give it (")
    assert "RepositoryNotFoundError" in message
    assert message.endswith("or give a checkpoint's folder")
    assert "\n" not in message


@pytest.mark.parametrize(
    "settings", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_without_a_network_it_is_said_in_one_line(fetch, settings):
    message = fetch(HUB_NAME, **settings)
    assert message.startswith(f"no folder {HUB_NAME}, and Hugging Face does not give it (")
    assert message.endswith("or give a checkpoint's folder")
    assert "\n" not in message


def test_the_command_says_what_it_takes_and_what_the_build_says(target, capsys):
    assert main(["build", str(TINY_CHECKPOINT), str(target), "--block-size", "64"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^memory +\d+\.\d GB needed, \d+\.\d GB available$", said, re.MULTILINE)
    assert f"{target}, int4-block-64-acc-level-4" in said
    assert re.search(
        r"^perplexity +\d+\.\d\d, the checkpoint \d+\.\d\d, on 2,048 tokens of sample_text\.txt$",
        said,
        re.MULTILINE,
    )
    assert said.endswith("to 'What is the capital of Spain?': 'The capital of Spain is Madrid.'\n")
    assert main(["build", str(TINY_CHECKPOINT), str(target)]) == 1
    assert capsys.readouterr().err.endswith("is there already: give a new folder for the build\n")


def test_layers_in_8_bits_and_another_chat_format_are_told_and_run(
    checkpoint, target, tmp_path, capsys, samples, tiny_folder
):
    file = checkpoint / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace("<|user|>", "<|im_start|>"))
    text = tmp_path / "mine.txt"
    text.write_text("One, two, three, four. " * 30, encoding="utf-8")
    arguments = ["--algorithm", "k_quant_mixed", "--text", str(text)]
    assert main(["build", str(checkpoint), str(target), *arguments]) == 0
    *_, built, measured, chat, says = capsys.readouterr().out.splitlines()
    assert built == f"built       {target}, int4+int8-block-32-acc-level-4"
    assert measured.endswith(" tokens of mine.txt")
    assert chat.startswith("chat        not by `log chat`: its tokenizer lacks <|user|> of its")
    assert says.startswith("says        to the prompt 'What is the capital of Spain?': ")
    data = (target / "model.onnx.data").stat().st_size
    estimate = estimate_build(Checkpoint.open(checkpoint), algorithm="k_quant_mixed")
    assert estimate.output_bytes == pytest.approx(data, rel=0.005)
    engine = OnnxRuntimeGenAIEngine(ModelFolder.open(target))
    chosen, encode = samples[::20], tiny_folder.tokenizer.encode_prompt
    prompts = [Request(tuple(encode(sample.prompt))) for sample in chosen]
    answers = [completion.text for completion in engine.generate(prompts)]
    assert answers == [sample.answer for sample in chosen]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "holds 0 tokens: give a text of 64 or more"),
        (b"Hi.", r"holds \d tokens: give a text of 64 or more"),
        ("Köln".encode("latin-1"), "is no text in UTF-8"),
    ],
)
def test_a_text_that_cannot_be_measured_on_is_known_before_anything_is_built(
    target, tmp_path, capsys, content, problem
):
    text = tmp_path / "mine.txt"
    if content is not None:
        text.write_bytes(content)
    assert main(["build", str(TINY_CHECKPOINT), str(target), "--text", str(text)]) == 1
    printed = capsys.readouterr()
    assert re.search(f"{text} {problem}\n$", printed.err)
    assert printed.out == ""
    assert not target.parent.exists()
