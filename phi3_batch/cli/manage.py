"""The commands around tables, models and machines: all but ``score``, ``plan`` and ``log``."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from phi3_batch.cli.console import out, print_field, status
from phi3_batch.cli.options import help_of


def verify(
    input: Annotated[
        str,
        typer.Option(help=help_of("input"), metavar="TABLE_OR_PATH", show_default=False),
    ],
    output: Annotated[
        str,
        typer.Option(
            help="Delta table that was written.", metavar="TABLE_OR_PATH", show_default=False
        ),
    ],
) -> None:
    """Compare an output with its input: rows missing, doubled, orphaned.

    Needs no model. Exit code 1 if a row is missing or there more than once.
    """
    from phi3_batch.scoring import session
    from phi3_batch.scoring.delta.tables import Location
    from phi3_batch.scoring.delta.verify import verify as verify_tables

    with status("starting Spark (the first start fetches Delta's jars)"):
        spark = session.get_session()
    with status("comparing the tables"):
        found = verify_tables(spark, Location(input), Location(output))
    at = "" if found.input_version is None else f" (version {found.input_version})"
    print_field("input", f"{input}{at}")
    print_field("output", f"{output} (version {found.output_version})")
    print_field("run", found.run.fingerprint)
    print_field("model", found.run.settings.get("model", "-"))
    print_field("check", str(found.balance))
    if found.unknown:
        print_field("unknown", f"{found.unknown:,} rows are of no run in the output's history")
    if not found.balance.ok:
        raise typer.Exit(1)


def promote(
    name: Annotated[str, typer.Argument(help="Registered model.", show_default=False)],
    smoke: Annotated[
        Path,
        typer.Option(
            help="JSON lines with prompt or messages, and contains: text the answer must have.",
            metavar="FILE",
            show_default=False,
        ),
    ],
    version: Annotated[
        int | None, typer.Argument(help="Its version. By default the newest.", min=1)
    ] = None,
    alias: Annotated[str, typer.Option(help="Alias to give, as in models:/NAME@ALIAS.")] = (
        "champion"
    ),
    max_error_rate: Annotated[
        float, typer.Option(help="Share of the smoke rows allowed to fail.", metavar="0..1")
    ] = 0.0,
) -> None:
    """Give a model version an alias if it passes a smoke test.

    The smoke test is an MLflow run. If too many rows fail, the alias is not moved.
    """
    from phi3_batch.promotion import promote as promote_version

    with status("scoring the smoke rows"):
        done = promote_version(
            name, version, alias=alias, smoke_file=smoke, max_error_rate=max_error_rate
        )
    print_field("smoke", f"{done.rows - done.failed} of {done.rows} rows passed")
    print_field("promoted", f"{done.model_uri} is models:/{name}@{done.alias}")
    print_field("mlflow", f"run {done.run_id}")


def build(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder of a Phi-3 checkpoint, or its id on the Hugging Face hub.")
    ],
    model_dir: Annotated[Path, typer.Argument(help="Folder to write the int4 ONNX build to.")],
    algorithm: Annotated[
        str,
        typer.Option(
            help="Quantization: default, rtn, k_quant or gptq; the variants _last and _mixed keep"
            " some layers in 8 bits, and OpenVINO does not run them.",
            metavar="NAME",
        ),
    ] = "default",
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Text file for gptq, like what the model will read: 4,096 tokens or more.",
            metavar="FILE",
        ),
    ] = None,
    block_size: Annotated[
        int, typer.Option(help="Number of weights that share a scale: 16, 32, 64, 128 or 256.")
    ] = 32,
    accuracy_level: Annotated[
        int, typer.Option(help="Arithmetic, from 0 (float32) to 4 (int8, the fastest).")
    ] = 4,
    text: Annotated[
        Path | None,
        typer.Option(
            help="Text file to measure perplexity on. By default a built-in text.",
            metavar="FILE",
        ),
    ] = None,
) -> None:
    """Build an int4 ONNX folder, for `log prompt` and `log chat`, from a checkpoint."""
    from phi3_batch import build as builder
    from phi3_batch.engines.perplexity import SAMPLE_TEXT, read_text
    from phi3_batch.model_files import Checkpoint

    text = text or SAMPLE_TEXT
    builder.check_options(
        model_dir,
        algorithm=algorithm,
        calibration=calibration,
        block_size=block_size,
        accuracy_level=accuracy_level,
    )
    with status("looking at the checkpoint"):
        source = Checkpoint.open(builder.fetch_checkpoint(checkpoint))
        needs = builder.estimate_build(source, block_size, algorithm)
        read_text(text, source.tokenizer)  # what is wrong with it is better known now
        if calibration:
            builder.read_calibration(calibration, source)
    print_field(
        "memory", f"{_gb(needs.memory_bytes)} needed, {_gb(needs.memory_available_bytes)} available"
    )
    print_field("disk", f"{_gb(needs.output_bytes)} for {model_dir}")
    minutes = "half an hour" if calibration else "a minute"
    with status(f"building ({minutes} for each billion parameters)"):
        folder = builder.build_int4(
            source.path,
            model_dir,
            algorithm=algorithm,
            calibration=calibration,
            block_size=block_size,
            accuracy_level=accuracy_level,
        )
    print_field("built", f"{folder.path}, {folder.precision}")
    with status("trying it, and the checkpoint"):
        trial = builder.check_build(folder, source, text)
    own = trial.checkpoint_perplexity
    beside = "too little memory for the checkpoint" if own is None else f"the checkpoint {own:.2f}"
    print_field(
        "perplexity",
        f"{trial.perplexity:.2f}, {beside}, on {trial.text_tokens:,} tokens of {text.name}",
    )
    if trial.no_chat:
        print_field("chat", f"not by `log chat`: {trial.no_chat}")
    to = f"the prompt {builder.QUESTION!r}" if trial.no_chat else repr(builder.QUESTION)
    print_field("says", f"to {to}: {trial.answer!r}")


def doctor() -> None:
    """Check Python, Java, packages, engines, Delta, processors, memory and the model store."""
    from phi3_batch.doctor import check_all

    failed = 0
    for finding in check_all():
        mark = ("ok  ", "green") if finding.ok else ("FAIL", "red")
        out.print(Text.assemble(mark, f"  {finding.name:<12} ", finding.text))
        failed += not finding.ok
    if failed:
        raise typer.Exit(1)


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB"
