"""Promoting a model version: a smoke score first, recorded as an MLflow run, then the alias."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc import PyFuncModel

from phi3_batch.contract import (
    ERROR_OBJECT,
    MESSAGES_INPUT,
    PROMPT_INPUT,
    USAGE_PARAM,
    split_reason,
)
from phi3_batch.errors import InvalidModelError, InvalidParameterError, PromotionError
from phi3_batch.models.names import check_alias
from phi3_batch.models.wrap import wrap_pipeline
from phi3_batch.scoring.rows.model import find_model

# Why a smoke row failed, where the model itself sees no error.
_UNEXPECTED = "unexpected_text"
_NO_TEXT = "no_text"


@dataclass(frozen=True, slots=True)
class SmokeRow:
    """A row of a smoke file.

    Attributes:
        line: its number in the file, from 1.
        inputs: ``prompt`` for a model of prompts, ``messages`` for one of chats, or both.
        contains: strings of which the answer must have every one.
    """

    line: int
    inputs: dict[str, Any]
    contains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Promotion:
    """A version that passed.

    Attributes:
        model_uri: of the version.
        alias: which it has now.
        rows: smoke rows that it answered.
        failed: how many of them it answered wrongly, within what was allowed.
        run_id: of the MLflow run that records it.
    """

    model_uri: str
    alias: str
    rows: int
    failed: int
    run_id: str


def promote(
    name: str,
    version: str | int | None = None,
    *,
    smoke_file: Path | str,
    alias: str = "champion",
    max_error_rate: float = 0.0,
) -> Promotion:
    """Score smoke rows with a registered version, and give it an alias when it passes.

    Args:
        name: of the registered model.
        version: its number; None is the newest.
        alias: to give, as in ``models:/NAME@ALIAS``; taken from the version that has it now.
        smoke_file: JSON lines with ``prompt`` or ``messages``, and ``contains``: a string or a
            list of strings that the answer must have.
        max_error_rate: share of the rows, from 0 to 1, that may fail.

    Raises:
        InvalidModelError: there is no such version.
        InvalidParameterError: the smoke file or the rate is not what it should be.
        PromotionError: too many rows failed; the alias is where it was.
    """
    smoke_file = Path(smoke_file)
    if not 0 <= max_error_rate <= 1:
        raise InvalidParameterError(f"the error rate must be from 0 to 1, not {max_error_rate}")
    check_alias(alias)
    rows, digest = read_smoke_file(smoke_file)
    version = _newest(name) if version is None else str(version)
    found = find_model(f"models:/{name}/{version}")
    wanted = MESSAGES_INPUT if found.takes_messages else PROMPT_INPUT
    for row in rows:
        if wanted not in row.inputs:
            raise InvalidParameterError(
                f"line {row.line} of {smoke_file} has no {wanted!r}, which {found.uri} takes"
            )
    uri = wrap_pipeline(found.resolved_uri) if found.is_plain_pipeline else found.resolved_uri
    with mlflow.start_run(run_name=f"promote {name}/{version}") as run:
        mlflow.log_params(
            {
                "model_version": found.uri,
                "alias": alias,
                "smoke_file": smoke_file.name,
                "smoke_file_sha256": digest,
                "max_error_rate": max_error_rate,
            }
        )
        model = mlflow.pyfunc.load_model(uri)
        failures = {row.line: reason for row in rows if (reason := _failure(model, wanted, row))}
        rate = len(failures) / len(rows)
        by_reason = Counter(failures.values())
        mlflow.log_metrics(
            {
                "smoke_rows": len(rows),
                "smoke_failed": len(failures),
                "smoke_error_rate": rate,
                **{f"smoke_failed.{reason}": count for reason, count in by_reason.items()},
            }
        )
        client = mlflow.MlflowClient()
        client.set_model_version_tag(name, version, "phi3_batch.smoke_run_id", run.info.run_id)
        if rate > max_error_rate:
            lines = ", ".join(map(str, list(failures)[:10]))
            raise PromotionError(
                f"{len(failures)} of {len(rows)} smoke rows failed"
                f" ({', '.join(f'{reason}: {count}' for reason, count in by_reason.items())};"
                f" {smoke_file.name} lines {lines}); alias {alias} is where it was, and run"
                f" {run.info.run_id} has the figures"
            )
        client.set_registered_model_alias(name, alias, version)
    return Promotion(found.uri, alias, len(rows), len(failures), run.info.run_id)


def _newest(name: str) -> str:
    # not models:/NAME/latest, which not every registry knows
    versions = mlflow.MlflowClient().search_model_versions(f"name='{name}'")
    if not versions:
        raise InvalidModelError(f"no registered model {name} in {mlflow.get_registry_uri()}")
    return str(max(int(each.version) for each in versions))


def read_smoke_file(path: Path) -> tuple[list[SmokeRow], str]:
    """Read a smoke file; its rows, and the SHA-256 of its bytes.

    Raises:
        InvalidParameterError: it is not there, is empty, or a line is not as it should be.
    """
    try:
        content = path.read_bytes()  # once: it may be a pipe
        # not splitlines, which knows line breaks that JSON has within its strings
        lines = content.decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameterError(f"cannot read the smoke file {path}: {error}") from error
    rows = [
        _read_row(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    if not rows:
        raise InvalidParameterError(f"the smoke file {path} has no rows")
    return rows, hashlib.sha256(content).hexdigest()


def _read_row(path: Path, number: int, line: str) -> SmokeRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # it is no JSON, or nested too deeply to be a smoke row
        row = None
    if not isinstance(row, dict):
        raise InvalidParameterError(f"line {number} of {path} is no JSON object")
    contains = row.get("contains")
    contains = [contains] if isinstance(contains, str) else contains
    if not isinstance(contains, list) or not all(
        isinstance(text, str) and text for text in contains
    ):
        raise InvalidParameterError(
            f"line {number} of {path} needs 'contains', a string or a list of strings"
        )
    inputs = {name: row[name] for name in (PROMPT_INPUT, MESSAGES_INPUT) if name in row}
    if not isinstance(inputs.get(PROMPT_INPUT, ""), str):
        raise InvalidParameterError(f"line {number} of {path} has a 'prompt' that is no string")
    if not _is_messages(inputs.get(MESSAGES_INPUT, [])):
        raise InvalidParameterError(
            f"line {number} of {path} has 'messages' that are no list of objects with 'role' and"
            " 'content', both strings"
        )
    return SmokeRow(number, inputs, tuple(contains))


def _is_messages(value: object) -> bool:
    """Whether MLflow can hand them to a model, which may answer that they make no chat."""
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and all(isinstance(message.get(name), str) for name in ("role", "content"))
        for message in value
    )


def _failure(model: PyFuncModel, wanted: str, row: SmokeRow) -> str | None:
    """Why a row fails, in a word; None for one that passes. Never quotes the answer."""
    try:
        answer = _chat(model, row) if wanted == MESSAGES_INPUT else _complete(model, row)
    except Exception as error:  # a model's own code may raise anything, and quote the row
        return f"raised_{type(error).__name__}"
    if isinstance(answer, _Failed):
        return answer.code
    return None if all(text in answer for text in row.contains) else _UNEXPECTED


@dataclass(frozen=True, slots=True)
class _Failed:
    code: str


def _chat(model: PyFuncModel, row: SmokeRow) -> str | _Failed:
    completions: Any = model.predict({MESSAGES_INPUT: row.inputs[MESSAGES_INPUT]})
    completion = completions[0]
    choice = completion["choices"][0]
    if completion["object"] == ERROR_OBJECT:
        return _Failed(split_reason(choice["finish_reason"])[0])
    return str(choice["message"]["content"])


def _complete(model: PyFuncModel, row: SmokeRow) -> str | _Failed:
    signature = model.metadata.signature
    params = signature.params if signature else None
    with_usage = any(spec.name == USAGE_PARAM for spec in params or [])
    result: Any = model.predict(
        {PROMPT_INPUT: row.inputs[PROMPT_INPUT]}, params={USAGE_PARAM: True} if with_usage else None
    )
    if isinstance(result, pd.DataFrame):
        if code := result["error"][0]["code"]:
            return _Failed(str(code))
        return str(result["completion"][0])
    texts: Sequence[str] = [result] if isinstance(result, str) else result
    return texts[0] or _Failed(_NO_TEXT)
