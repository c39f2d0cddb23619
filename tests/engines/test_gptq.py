"""Weights rounded by what that does to a text, on the embedded checkpoint, which knows one."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from phi3_batch import build as build_module
from phi3_batch.build import build_int4, read_calibration
from phi3_batch.cli import main
from phi3_batch.engines.onnxruntime.engine import OnnxRuntimeGenAIEngine
from phi3_batch.engines.perplexity import perplexity
from phi3_batch.errors import InvalidModelError, InvalidParameterError
from phi3_batch.generation import Request
from phi3_batch.gptq import gptq, round_anew
from phi3_batch.model_files import Checkpoint, ModelFolder
from tests.conftest import SAMPLE_DATA, TINY_CHECKPOINT, TINY_MODEL

BLOCK = 16


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every other sample prompt with its answer: what the embedded model has read."""
    lines = (SAMPLE_DATA / "prompts.jsonl").read_text(encoding="utf-8").splitlines()[::2]
    rows = map(json.loads, lines)
    file = tmp_path_factory.mktemp("text") / "mine.txt"
    file.write_text("".join(row["prompt"] + row["answer"] + "<|end|>" for row in rows))
    return file


def inputs(columns: int, rows: int = 400) -> torch.Tensor:
    """Inputs that go along with each other, some far larger than others."""
    generator = torch.Generator().manual_seed(3)
    shared = torch.randn(rows, 4, generator=generator) @ torch.randn(
        4, columns, generator=generator
    )
    sizes = torch.linspace(0.1, 4, columns)
    return (shared + 0.3 * torch.randn(rows, columns, generator=generator)) * sizes


def back(rounded: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    codes, scales = rounded
    assert codes.min() >= -8
    assert codes.max() <= 7
    assert torch.equal(codes, codes.round())
    return codes * scales.repeat_interleave(codes.shape[1] // scales.shape[1], 1)


def test_what_a_product_gives_is_nearer_than_by_rounding_each_weight():
    weight = torch.randn(24, 8 * BLOCK, generator=torch.Generator().manual_seed(1))
    x = inputs(weight.shape[1])
    whole = torch.eye(weight.shape[1])
    by_itself = back(gptq(weight, whole, BLOCK))
    by_text = back(gptq(weight, x.T @ x, BLOCK))

    def apart(rounded: torch.Tensor) -> float:
        return float((x @ (rounded - weight).T).square().mean())

    assert apart(by_text) < apart(by_itself) / 4
    # a weight of its own is another matter
    assert (by_itself - weight).square().mean() < (by_text - weight).square().mean()


def test_inputs_that_do_not_matter_to_each_other_leave_the_nearest_codes():
    weight = torch.randn(5, 4 * BLOCK, generator=torch.Generator().manual_seed(2))
    codes, scales = gptq(weight, torch.eye(weight.shape[1]), BLOCK)
    each = scales.repeat_interleave(BLOCK, 1)
    assert torch.equal(codes, (weight / each).round().clamp(-8, 7))
    # no worse than the largest weight kept as it is
    largest = weight.view(5, -1, BLOCK).abs().amax(-1)
    plain = (largest / 8).repeat_interleave(BLOCK, 1)
    error = (codes * each - weight).square().sum()
    assert error <= ((weight / plain).round().clamp(-8, 7) * plain - weight).square().sum()


def test_rows_of_zeros_and_inputs_that_never_come_are_no_trouble():
    weight = torch.randn(4, 3 * BLOCK, generator=torch.Generator().manual_seed(2))
    weight[:, :BLOCK] = 0
    weight[2] = 0
    x = inputs(weight.shape[1])
    x[:, -BLOCK:] = 0
    rounded = back(gptq(weight, x.T @ x, BLOCK))
    assert torch.isfinite(rounded).all()
    assert (rounded[2] == 0).all()


def test_a_build_by_a_text_says_it_better_in_the_same_size(
    tmp_path, text, samples, capsys, monkeypatch
):
    # the builder takes five seconds, and gave the embedded build
    give = "import shutil, sys; shutil.copytree({!r}, sys.argv[sys.argv.index('-o') + 1])"
    builder = (sys.executable, "-c", give.format(str(TINY_MODEL)))
    monkeypatch.setattr(build_module, "_BUILDER", builder)
    options = ("--algorithm", "gptq", "--calibration", str(text))
    assert main(["build", str(TINY_CHECKPOINT), str(tmp_path / "mine"), *options]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^built +.*mine, int4-block-32-acc-level-4$", said, re.MULTILINE)

    plain, mine = ModelFolder.open(TINY_MODEL), ModelFolder.open(tmp_path / "mine")
    data = [(each.path / "model.onnx.data").stat().st_size for each in (plain, mine)]
    assert data[0] == data[1]
    ids = read_calibration(text, Checkpoint.open(TINY_CHECKPOINT))[:2048]
    engines = [OnnxRuntimeGenAIEngine(plain), OnnxRuntimeGenAIEngine(mine)]
    of_plain, of_mine = (perplexity(engine, ids, 4096) for engine in engines)
    assert of_mine < of_plain
    # of questions that it was not rounded by
    others = samples[1::2]
    unread = [Request(tuple(plain.tokenizer.encode_prompt(each.prompt))) for each in others]
    answers = [answer.text for answer in engines[1].generate(unread)]
    right = [each.answer == answer for each, answer in zip(others, answers, strict=True)]
    assert np.mean(right) > 0.98


def test_a_build_of_another_form_is_refused(tmp_path, text):
    copied = Path(shutil.copytree(TINY_MODEL, tmp_path / "build"))
    file = copied / "model.onnx"
    file.write_bytes(
        file.read_bytes().replace(b"layers.3.mlp.down_proj", b"layers.3.mlp.last_proj")
    )
    checkpoint = Checkpoint.open(TINY_CHECKPOINT)
    with pytest.raises(InvalidModelError, match=r"a product model\.layers\.3\.mlp\.last_proj"):
        round_anew(file, checkpoint, read_calibration(text, checkpoint)[:512])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"algorithm": "gptq"}, r"give one like what the model will read \(--calibration FILE\)"),
        ({"algorithm": "rtn", "calibration": "text"}, "rtn reads no text: leave the calibration"),
        ({"algorithm": "gptq", "calibration": "short"}, "give a text of 4096 or more"),
        ({"algorithm": "gptq", "calibration": "nowhere"}, "nowhere cannot be read: No such file"),
    ],
)
def test_a_text_that_is_missing_or_too_short_is_one_line(tmp_path, monkeypatch, given, says):
    monkeypatch.chdir(tmp_path)
    Path("short").write_text("One, two, three.")
    with pytest.raises(InvalidParameterError, match=says):
        build_int4(TINY_CHECKPOINT, "out", **given)
    assert not Path("out").exists()
