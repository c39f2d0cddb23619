"""From a Phi-3 checkpoint to an int4 ONNX build, by onnxruntime-genai's own model builder.

The builder runs in a process of its own. It prints, sets up the root logger, puts its modules on
``sys.path`` and takes several times the weights' size in memory; where that is not there, the
kernel kills the builder, and what is left can say so.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phi3_batch.engines import registry
from phi3_batch.engines.perplexity import SAMPLE_TEXT, perplexity, read_text, read_tokens
from phi3_batch.errors import (
    EngineError,
    EnvironmentProblemError,
    InvalidModelError,
    InvalidParameterError,
)
from phi3_batch.generation import GenerationParams, Request
from phi3_batch.machine import available_memory_bytes
from phi3_batch.model_files import Checkpoint, ModelFolder
from phi3_batch.text import Message
from phi3_batch.words import first_line

BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 2, 3, 4)

# How weights are rounded, and which layers are kept in 8 bits: the last one (_last), or that and
# those that rounding harms most (_mixed), which OpenVINO does not run. By the perplexity of a real
# model (docs/benchmarks.md), "default" is the best of the builder's own in 4 bits; "gptq" is that,
# rounded anew by what it does to a text.
_GPTQ = "gptq"
_METHODS = ("default", "rtn", "k_quant", _GPTQ)
_IN_8_BITS = {"": (), "_last": ("last_matmul",), "_mixed": ("last_matmul", "mixed_layers")}
ALGORITHMS = tuple(method + suffix for suffix in _IN_8_BITS for method in _METHODS)

# -P: a folder "quantization" where the user stands would be imported instead of the builder's
_BUILDER = (sys.executable, "-P", "-m", "onnxruntime_genai.models.builder")
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",  # all it needs is in the checkpoint's folder
    # else it writes the commit of whatever repository the packages lie in into the graph, and the
    # same checkpoint gives another build after each commit
    "GIT_DIR": os.devnull,
}
_BUILD_PACKAGES = ("huggingface_hub", "onnx_ir", "onnxruntime", "torch", "transformers")
_GRAPH = "model.onnx"
_CONFIG = "config.json"
# The builder saves what transformers makes of the tokenizer, which differs from one release of
# transformers to the next: the checkpoint's own files take their place.
_OWN_FILES = (_CONFIG, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer*")

# that the weights are rounded by
_FEWEST_TOKENS, _MOST_TOKENS = 8 * 512, 64 * 512

QUESTION = "What is the capital of Spain?"
_MAX_TOKENS = 16


@dataclass(frozen=True)
class BuildEstimate:
    """What a build will take.

    Attributes:
        memory_bytes: that the builder needs at its peak.
        memory_available_bytes: that this machine can give now.
        output_bytes: size of the build's weights on disk.
    """

    memory_bytes: int
    memory_available_bytes: int
    output_bytes: int


@dataclass(frozen=True)
class Trial:
    """What a build says when it is tried.

    Attributes:
        answer: the beginning of its answer to QUESTION.
        no_chat: why it was asked without a chat template, if it was: "its tokenizer lacks…".
        perplexity: on the text.
        checkpoint_perplexity: of the checkpoint in float32, on the same; None where there is too
            little memory for it.
        text_tokens: that were read of the text.
    """

    answer: str
    no_chat: str | None
    perplexity: float
    checkpoint_perplexity: float | None
    text_tokens: int


def estimate_build(
    checkpoint: Checkpoint, block_size: int = 32, algorithm: str = "default"
) -> BuildEstimate:
    """What :func:`build_int4` will take, from the numbers in config.json alone.

    Raises:
        InvalidModelError: config.json does not say the shape of the weights.
        InvalidParameterError: the builder does not take this block size or algorithm.
    """
    _require_one_of("block_size", block_size, BLOCK_SIZES)
    _require_one_of("algorithm", algorithm, ALGORITHMS)
    linears, float_weights = _weights(checkpoint)
    sizes = [inputs * outputs for inputs, outputs in linears]
    has_zero_points = algorithm.startswith("k_quant")
    output_bytes = 4 * float_weights
    for (inputs, outputs), bits in zip(linears, _bits(len(linears), algorithm), strict=True):
        # a block is its weights and a float32 scale; the last block of a row is filled up
        blocks = math.ceil(inputs / block_size)
        row_bytes = blocks * (block_size * bits // 8 + 4)
        row_bytes += math.ceil(blocks * bits / 8) if has_zero_points else 0
        output_bytes += outputs * row_bytes
    return BuildEstimate(
        # The graph in float32, its int4 form in part twice, and what the largest layer takes while
        # it is rounded, 17 bytes a weight by rtn (float32 twice, float64, uint8). Measured on 2 to
        # 16 layers of Phi-3-mini and with a vocabulary of 100,352: within 4 %. On a model of 135
        # million weights "default" took less, by 11 of the 17 bytes, and k_quant more, by 22.
        memory_bytes=int(
            4 * float_weights
            + 5.15 * sum(sizes)
            + (40 if has_zero_points else 17) * max(sizes)
            + 0.65e9
        ),
        memory_available_bytes=available_memory_bytes(),
        output_bytes=output_bytes,
    )


def build_int4(
    checkpoint_dir: str | Path,
    out: str | Path,
    *,
    algorithm: str = "default",
    calibration: str | Path | None = None,
    block_size: int = 32,
    accuracy_level: int = 4,
) -> ModelFolder:
    """Build the int4 ONNX form of a checkpoint; takes seconds to minutes, by gptq up to hours.

    The build appears at ``out`` whole and checked, or not at all.

    Args:
        checkpoint_dir: folder of a Phi-3 checkpoint, as transformers writes it.
        out: folder to write, which must not exist or be empty.
        algorithm: how weights are rounded, one of ALGORITHMS; those with ``_last`` and ``_mixed``
            keep some layers in 8 bits.
        calibration: for gptq, a file of text like what the model will read. Its first 32,768 tokens
            are read, and control tokens in it are control tokens.
        block_size: weights that share one scale, one of BLOCK_SIZES. Larger ones are smaller and
            faster, and less exact.
        accuracy_level: what activations are rounded to, one of ACCURACY_LEVELS: 1 is float32, 4
            int8, which is fastest; 0 leaves it to the runtime.

    Raises:
        EngineError: the builder failed, or was killed.
        EnvironmentProblemError: torch or another package that the builder needs is missing.
        InvalidModelError: the folder is not a Phi-3 checkpoint, or the build lacks some of its
            weights.
        InvalidParameterError: ``out`` is taken or cannot be written; the builder does not take the
            algorithm, the block size or the accuracy level; or there is no text for gptq.
    """
    check_options(
        out,
        algorithm=algorithm,
        calibration=calibration,
        block_size=block_size,
        accuracy_level=accuracy_level,
    )
    _require_packages()
    checkpoint = Checkpoint.open(checkpoint_dir)
    token_ids = calibration and read_calibration(calibration, checkpoint)
    linears, _ = _weights(checkpoint)
    out = Path(out).resolve()  # "." too can be replaced by its name
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            built = Path(scratch, "build")
            options = _rounding(algorithm) | {
                "block_size": block_size,
                "accuracy_level": accuracy_level,
            }
            _run_builder(checkpoint, built, Path(scratch, "cache"), options)
            _use_own_files(checkpoint, built)
            ModelFolder.open(built)
            if token_ids:
                from phi3_batch.gptq import round_anew  # torch takes seconds to import

                round_anew(built / _GRAPH, checkpoint, token_ids)
            _check_graph(built / _GRAPH, linears, algorithm, block_size)
            built.rename(out)
    except OSError as error:
        raise InvalidParameterError(f"{out} cannot be written: {error}") from error
    return ModelFolder.open(out)


def check_options(
    out: str | Path,
    *,
    algorithm: str = "default",
    calibration: str | Path | None = None,
    block_size: int = 32,
    accuracy_level: int = 4,
) -> None:
    """See whether :func:`build_int4` could start, before gigabytes are fetched for it.

    Raises:
        InvalidParameterError: as of :func:`build_int4`.
    """
    _require_one_of("algorithm", algorithm, ALGORITHMS)
    _require_one_of("block_size", block_size, BLOCK_SIZES)
    _require_one_of("accuracy_level", accuracy_level, ACCURACY_LEVELS)
    if algorithm.startswith(_GPTQ) and not calibration:
        raise InvalidParameterError(
            f"{algorithm} rounds weights by what that does to a text: give one like what the model"
            " will read (--calibration FILE)"
        )
    if calibration and not algorithm.startswith(_GPTQ):
        raise InvalidParameterError(
            f"{algorithm} reads no text: leave the calibration out, or choose gptq"
        )
    out = Path(out)
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InvalidParameterError(f"{out} is there already: give a new folder for the build")
        above = next(folder for folder in out.resolve().parents if folder.exists())
    except OSError as error:
        raise InvalidParameterError(f"{out} cannot be written: {error}") from error
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise InvalidParameterError(f"{out} cannot be written: {above} is no folder to write to")


def read_calibration(file: str | Path, checkpoint: Checkpoint) -> list[int]:
    """The tokens that gptq rounds by.

    Raises:
        InvalidParameterError: the file cannot be read, is not UTF-8, or holds too little.
    """
    encode = checkpoint.tokenizer.encode_prompt
    return read_tokens(Path(file), encode, _FEWEST_TOKENS, _MOST_TOKENS)


def check_build(folder: ModelFolder, checkpoint: Checkpoint, text: Path = SAMPLE_TEXT) -> Trial:
    """Try a build: ask it for the capital of Spain, greedily, and let it read a text.

    Args:
        folder: the build.
        checkpoint: that it was made of.
        text: a file of text.

    Raises:
        EngineError: onnxruntime-genai cannot load the build or run it.
        InvalidParameterError: the text cannot be read, or is too short.
    """
    # not by this_process, which would keep the engine until the process ends
    from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine

    ids = read_text(text, folder.tokenizer)
    engine = OnnxRuntimeGenAIEngine(folder)
    try:
        prompt, no_chat = folder.chat_template.encode([Message("user", QUESTION)]), None
    except InvalidModelError as error:
        no_chat, prompt = str(error), engine.tokenizer.encode_prompt(QUESTION)
    request = Request(tuple(prompt), GenerationParams(max_tokens=_MAX_TOKENS))
    (completion,) = engine.generate([request])
    if completion.error:
        raise EngineError(f"{folder.path} does not run: {completion.error.message}")
    found = perplexity(engine, ids, folder.context_length)
    del engine  # its memory is for the next
    return Trial(completion.text, no_chat, found, _checkpoint_perplexity(checkpoint, ids), len(ids))


def _checkpoint_perplexity(checkpoint: Checkpoint, token_ids: list[int]) -> float | None:
    if registry.memory_bytes(checkpoint, len(token_ids)) > available_memory_bytes():
        return None
    from phi3_batch.engines.torch.engine import TransformersEngine

    return perplexity(TransformersEngine(checkpoint), token_ids, checkpoint.context_length)


def fetch_checkpoint(name_or_path: str) -> Path:
    """The folder of a checkpoint: the one named, or one downloaded from Hugging Face.

    Args:
        name_or_path: a folder, or a name such as ``microsoft/Phi-3-mini-4k-instruct``; what
            Hugging Face's cache holds is not downloaded again.

    Raises:
        EnvironmentProblemError: huggingface_hub, which downloads, is missing.
        InvalidModelError: there is no such folder, or Hugging Face does not give the checkpoint.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists() or not _HUB_NAME.fullmatch(name_or_path):
        raise InvalidModelError(
            f"no folder {name_or_path}: give the folder of a Phi-3 checkpoint, or its name at"
            " Hugging Face such as microsoft/Phi-3-mini-4k-instruct"
        )
    _require_packages("huggingface_hub")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name_or_path, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # of its own, of the HTTP client, of the file system
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InvalidModelError(
            f"no folder {name_or_path}, and Hugging Face does not give it ({reason}):"
            " check the name and the network, or give a checkpoint's folder"
        ) from error


def _require_one_of(
    name: str, value: int | str, allowed: tuple[int, ...] | tuple[str, ...]
) -> None:
    if type(value) is not type(allowed[0]) or value not in allowed:
        raise InvalidParameterError(
            f"{name} must be one of {', '.join(map(str, allowed))}, not {value!r}"
        )


def _require_packages(*names: str) -> None:
    missing = [name for name in names or _BUILD_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise EnvironmentProblemError(
            f"{', '.join(missing)} cannot be found: pip install 'phi3-batch[build]'"
        )


def _weights(checkpoint: Checkpoint) -> tuple[list[tuple[int, int]], int]:
    """(inputs, outputs) of every linear layer, and how many weights stay float32 beside them."""
    file = checkpoint.path / _CONFIG
    config = json.loads(file.read_text(encoding="utf-8"))
    try:
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        heads = config["num_attention_heads"]
        key_value_heads = config.get("num_key_value_heads") or heads
        head_size = config.get("head_dim") or hidden // heads
        attention = [
            (hidden, (heads + 2 * key_value_heads) * head_size),
            (heads * head_size, hidden),
        ]
        mlp = [(hidden, inner), (hidden, inner), (inner, hidden)]
        lm_head = (hidden, checkpoint.vocab_size)
        linears = (attention + mlp) * config["num_hidden_layers"] + [lm_head]
        # a tied embedding is the lm_head's weights once more
        embedding = 0 if config.get("tie_word_embeddings") else math.prod(lm_head)
        rotary_tables = config["max_position_embeddings"] * head_size
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InvalidModelError(f"{file} is damaged: {type(error).__name__} {error}") from error
    return linears, embedding + rotary_tables


def _rounding(algorithm: str) -> dict[str, object]:
    """The builder's options for an algorithm."""
    method = next(method for method in _METHODS if algorithm.startswith(method))
    places = _IN_8_BITS[algorithm.removeprefix(method)]
    # by these names: `int4_algo_config`, as it was called, is taken and does nothing
    options: dict[str, object] = {"algo_config": "default" if method == _GPTQ else method}
    if places:
        options["matmul_mixed_precision"] = ",".join(f"{place}:int8" for place in places)
    return options


def _bits(linears: int, algorithm: str) -> list[int]:
    """Of the weights of each linear layer, in the order of :func:`_weights`.

    As make_matmul_mixed_precision in the builder's base.py has it.
    """
    method = next(method for method in _METHODS if algorithm.startswith(method))
    places = _IN_8_BITS[algorithm.removeprefix(method)]
    layers = linears // 5
    bits = []
    for layer in range(layers):
        at_an_end = layer < layers / 8 or layer >= 7 * layers / 8
        chosen = at_an_end or (layer - round(layers / 8)) % 3 == 2
        raised = 8 if chosen and "mixed_layers" in places else 4
        bits += [raised, 4, 4, 4, raised]  # of qkv_proj and down_proj
    return [*bits, 8 if "last_matmul" in places else 4]


def _run_builder(
    checkpoint: Checkpoint, out: Path, cache: Path, given: Mapping[str, object]
) -> None:
    source = checkpoint.path.absolute()
    where = ["-i", str(source), "-o", str(out.absolute()), "-c", str(cache.absolute())]
    options = [
        *(f"{name}={value}" for name, value in given.items()),
        # Else 0.18.0 names the sliding window of Phi-3-mini in genai_config.json, and the runtime
        # sizes its cache by it while the graph attends to everything: longer prompts fail.
        "windowed_kv_cache=false",
        "hf_token=false",
    ]
    done = subprocess.run(
        [*_BUILDER, *where, "-p", "int4", "-e", "cpu", "--extra_options", *options],
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env=os.environ | _ENVIRONMENT,
    )
    if done.returncode == -signal.SIGKILL:
        estimate = estimate_build(checkpoint)
        raise EngineError(
            "the model builder was killed, for want of memory as it seems: it needs about"
            f" {estimate.memory_bytes / 1e9:.1f} GB,"
            f" {estimate.memory_available_bytes / 1e9:.1f} GB are free"
        )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception)\b", line)]
        raise EngineError(
            f"the model builder failed (exit code {done.returncode}): {(errors or lines)[-1]}"
        )


def _use_own_files(checkpoint: Checkpoint, built: Path) -> None:
    for leftover in (*built.glob("*token*"), *built.glob("chat_template*")):
        leftover.unlink()
    for name in _OWN_FILES:
        if (checkpoint.path / name).is_file():
            shutil.copyfile(checkpoint.path / name, built / name)


def _check_graph(
    file: Path, linears: list[tuple[int, int]], algorithm: str, block_size: int
) -> None:
    """Every linear layer is in the graph, in its number of bits, on the way to the logits.

    The builder takes any linear layer with as many outputs as the vocabulary for the lm_head: the
    logits then come from the middle of the model, and layers behind it lead nowhere.
    """
    import onnx_ir

    graph = onnx_ir.load(file).graph
    unread = [output.producer() for output in graph.outputs if output.name == "logits"]
    on_the_way = set()
    while unread:
        node = unread.pop()
        if node is not None and node not in on_the_way:
            on_the_way.add(node)
            unread += [value.producer() for value in node.inputs if value is not None]
    found, expected = Counter[int](), Counter[int]()
    for node in on_the_way:
        numbers = {k: v.as_int() for k, v in node.attributes.items() if v.type.name == "INT"}
        if node.op_type == "MatMulNBits" and numbers.get("block_size") == block_size:
            found[numbers.get("bits", 4)] += numbers["K"] * numbers["N"]
    for (inputs, outputs), bits in zip(linears, _bits(len(linears), algorithm), strict=True):
        expected[bits] += inputs * outputs
    if found != expected:
        raise InvalidModelError(
            f"the model builder lost layers: {_by_bits(found)} in blocks of {block_size} lead to"
            f" the logits, of {_by_bits(expected)} in the checkpoint"
        )


def _by_bits(weights: Counter[int]) -> str:
    counts = [f"{count} weights in int{bits}" for bits, count in sorted(weights.items())]
    return " and ".join(counts) or "no weights"
