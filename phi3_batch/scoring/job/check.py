"""The first look at a job: its input, model, output and options, each and together."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql.types import StructField, StructType

from phi3_batch.contract import LOGIT_BIAS
from phi3_batch.errors import InvalidParameterError, TableError
from phi3_batch.generation import GenerationParams
from phi3_batch.scoring import compat, session
from phi3_batch.scoring.delta import incremental, tables
from phi3_batch.scoring.delta.record import RunIdentity
from phi3_batch.scoring.delta.tables import InputTable, OutputTable
from phi3_batch.scoring.job.asked import AskedRequests, ScoreOptions
from phi3_batch.scoring.rows import identity, schema
from phi3_batch.scoring.rows.columns import OURS, find_field, join_names
from phi3_batch.scoring.rows.model import FoundModel, check_params, find_model


@dataclass(frozen=True, slots=True)
class CheckedJob:
    """A job whose parts fit together; what its output has of it was not looked at.

    Attributes:
        options: what was asked for, with names as the table spells them.
        input: the rows, pinned.
        model: that was looked up, and not loaded.
        output: as it is now.
        kept: the input's columns that go into the output.
        added: the columns that scoring adds.
        run: what tells it from others.
    """

    options: ScoreOptions
    input: InputTable
    model: FoundModel
    output: OutputTable
    kept: StructType
    added: StructType
    run: RunIdentity

    @property
    def written(self) -> StructType:
        """The columns of the output."""
        return StructType([*self.kept, *self.added])


def check_job(spark: SparkSession, options: ScoreOptions) -> CheckedJob:
    """Look up what a job names, and see whether it fits together.

    Raises:
        TableError: the input or the output is not what it has to be.
        InvalidModelError: there is no such model, or it takes neither prompts nor chats.
        InvalidParameterError: an option has no meaning for the model.
    """
    table = tables.open_input(spark, options.input)
    table = replace(table, rows=tables.without_limits(table.rows))
    found = find_model(options.model)
    check_requests(options, found, table.rows.schema, table.location.text)
    added = schema.output_columns(keep_response=options.keep_response, answers=options.answers)
    output = tables.open_output(spark, options.output)
    if output.path is not None and output.path == table.path:
        raise TableError(f"output {output.location.text} is the input: give another table")
    is_replaced = options.mode == "overwrite" and output.version is not None
    if is_replaced and not options.output.is_path and not compat.REPLACES_BY_NAME:
        raise TableError(
            f"output {output.location.text} cannot be replaced by its name with this Spark, which"
            " may drop it and its history: give its path, or DROP it first"
        )
    if output.path is not None:
        session.check_writable(spark, output.path)
    kept = kept_fields(table.rows.schema, options.keep, added, any_name=output.takes_any_name)
    tables.check_types(table.rows, kept)
    options = replace(options, ids=incremental.resolve_ids(kept, options.ids))
    table = replace(table, rows=identity.limited(table.rows, options.limit))
    run = _identify(found, table, options, [*kept, *added])
    return CheckedJob(options, table, found, output, kept, added, run)


def check_requests(
    options: AskedRequests, found: FoundModel, table: StructType, where: str
) -> None:
    """See whether a model can be asked what the user wants of a table's rows.

    Raises:
        TableError: a column is missing or of another type.
        InvalidParameterError: an option has no meaning for the model.
    """
    if options.keep_response and not found.takes_messages:
        raise InvalidParameterError(
            f"--keep-response keeps chat completions, and {found.uri} gives plain text"
        )
    options.source.check(found, table, where)
    check_params(found, options.generation)


def _identify(
    found: FoundModel, table: InputTable, options: ScoreOptions, written: Sequence[StructField]
) -> RunIdentity:
    settings = _settings(found, options, table.rows.schema)
    digest = identity.settings_digest({**settings, "model": str(found.info.model_uuid)})
    shape = [(column.name, column.dataType.simpleString()) for column in written]
    sample = identity.sampling(table.rows.schema, options.limit)
    return RunIdentity(
        fingerprint=identity.fingerprint(
            digest, {"input": table.identity, **sample, "columns": shape}
        ),
        settings=settings,
        input=options.input.text,
        input_id=table.delta_id,
        input_version=table.version,
        request_columns=options.source.request_columns(found),
        ids=options.ids,
        delete_removed=options.delete_removed,
        limit=options.limit,
    )


def _settings(found: FoundModel, options: ScoreOptions, table: StructType) -> dict[str, str]:
    """What shapes results, in words that can be shown and kept."""
    source, given = options.source, {}
    for name, value in options.generation.items():
        # beside a column, the value is for rows in which that is null
        key = f"params.{name}.default" if name in source.param_columns else f"params.{name}"
        given[key] = _in_words(name, value)
    values = identity.rendering(table, source.request_columns(found))
    return {"model": found.resolved_uri, **source.settings(), **given, **values}


def _in_words(name: str, value: Any) -> str:
    if name in ("json_schema", "regex"):  # they may quote what completions are about
        return f"sha256 {hashlib.sha256(value.encode()).hexdigest()}"
    if name == LOGIT_BIAS:
        value = [json.dumps(each) for each in value]
    if name in ("stop", "choices", LOGIT_BIAS):
        # no text is empty, so that a list which begins with NUL was never joined by it
        is_joined = not any("\0" in text for text in value)
        texts = "\0".join(value) if is_joined else f"\0{json.dumps(value)}"
        return f"sha256 {hashlib.sha256(texts.encode()).hexdigest()}"
    if isinstance(getattr(GenerationParams(), name, None), float):
        return str(float(value) + 0.0)  # 1 is 1.0, and -0.0 is 0.0
    return str(value)


def kept_fields(
    table: StructType, keep: Sequence[str] | None, added: StructType, *, any_name: bool
) -> StructType:
    """The input columns that go into the output.

    Args:
        table: the input.
        keep: their names; None keeps all.
        added: what scoring adds.
        any_name: whether the output takes names that Delta refuses without column mapping.

    Raises:
        TableError: there is no such column, or its name cannot be kept.
        InvalidParameterError: a column is named twice.
    """
    if keep is None:
        kept = list(table)
    else:
        kept = []
        for name in keep:
            found = find_field(table, name)
            if found is None:
                raise TableError(
                    f"the input has no column {name!r} to keep, its columns are"
                    f" {', '.join(table.fieldNames())}"
                )
            if found in kept:
                raise InvalidParameterError(f"--keep names {name} twice")
            kept.append(found)
    taken = [
        field
        for field in kept
        if find_field(added, field.name) or field.name.lower().startswith(OURS)
    ]
    refused = [] if any_name else tables.refused_names(kept)
    if taken or refused:
        what = (
            f"input column {taken[0].name!r} has the name of an output column"
            if taken
            else f"Delta does not store columns named like {refused[0].name!r} (spaces and"
            " ,;{}()= are refused)"
        )
        others = join_names(field.name for field in kept if field not in (*taken, *refused))
        raise TableError(f"{what}: rename it, or leave it out with --keep {others}")
    return StructType(kept)
