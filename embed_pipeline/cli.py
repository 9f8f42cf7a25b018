"""The ``embed-pipeline`` command: six stages from documents to a deployed model, and what goes with them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from embed_pipeline import settings as settings_module
from embed_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from embed_pipeline.orchestration.runs import StageRunner

out = Console()
app = typer.Typer(
    help="A folder of documents becomes a tuned, exported and served text-embedding model, with no labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True)
_INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""
Force = Annotated[bool, typer.Option("--force", help="Make everything again, current or not.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the endpoint running.")]


class DatasetFormat(StrEnum):
    """Forms that the made data can be exported in."""

    BEIR = "beir"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    NEMO = "nemo"


@app.command()
def estimate() -> None:
    """Predict calls, tokens, cost and time of the next sdg run; nothing is sent and nothing is stored."""
    from embed_pipeline.embedding.encoder import Encoder
    from embed_pipeline.synthesis.estimate import estimate_folder

    settings = load_settings()
    found = estimate_folder(settings, Encoder.load(settings.embedding.model, settings.embedding))
    table = Table("stage", "calls", "from the store", "prompt tokens", "completion tokens", "cost", "minutes")
    for stage in (*found.stages, found.total):
        table.add_row(
            stage.stage,
            str(stage.calls),
            str(stage.cached),
            str(stage.prompt_tokens),
            str(stage.completion_tokens),
            f"{stage.cost:.2f}",
            f"{stage.seconds / 60:.1f}",
        )
    out.print(f"{found.segments} segments, {found.questions} questions to be asked for")
    out.print(table)
    for cap in found.caps:
        out.print(cap)


@app.command()
def lineage(qa_id: Annotated[str, typer.Argument(help="The pair's id, or its first four letters or more.")]) -> None:
    """Follow a question from its document to the models trained on it."""
    from embed_pipeline.lineage import format_trace, stored_tables, trace
    from embed_pipeline.orchestration.resources import open_instance, trained_models

    settings = load_settings()
    with open_instance(settings.paths.store) as instance:
        models = trained_models(instance, settings.tracking.registered_model)
    typer.echo(format_trace(trace(qa_id, stored_tables(settings.paths.root), models)))


@app.command()
def dataset(
    form: Annotated[DatasetFormat, typer.Argument(metavar="FORMAT", help="beir, sentence-transformers or nemo.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; an earlier export there is replaced.")],
) -> None:
    """Export the made questions, judgements and negatives for other tools."""
    from embed_pipeline import tables
    from embed_pipeline.storage import read_table, table_path
    from embed_pipeline.training_data.dataset_export import export_dataset

    root = load_settings().paths.root
    named = (tables.QA_DATASET, tables.DATASET_SPLIT, tables.CORPUS, tables.HARD_NEGATIVES)
    qa, split, corpus, negatives = (read_table(table_path(root, table.name), table) for table in named)
    export_dataset(form.value, folder, qa=qa, split=split, corpus=corpus, hard_negatives=negatives)
    out.print(f"{qa.height} questions on {corpus.height} segments in {folder}")


@app.command()
def forget(document: Annotated[str, typer.Argument(help="Path in the documents folder, or a document id.")]) -> None:
    """Remove a deleted document and all that was made from it, and name the models trained on it."""
    from embed_pipeline.orchestration.forgetting import forget_document
    from embed_pipeline.orchestration.freshness import with_settings
    from embed_pipeline.orchestration.jobs import all_assets
    from embed_pipeline.orchestration.resources import open_instance

    settings = load_settings()
    assets = [with_settings(definition, settings) for definition in all_assets]
    with open_instance(settings.paths.store) as instance:
        gone = forget_document(document, settings, instance, assets)
    table = Table("table", "rows removed")
    for name, rows in gone.rows.items():
        table.add_row(name, str(rows))
    table.add_row("stored answers of the language model", str(gone.answers))
    out.print(table)
    out.print(f"models trained on it, which still hold it: {', '.join(gone.models) or 'none'}")
    if gone.unknown:
        out.print(f"models of which it is not known: {', '.join(gone.unknown)}")


@app.command()
def rollback(version: Annotated[str | None, typer.Argument(help="Release; default the one before.")] = None) -> None:
    """Serve an earlier release again."""
    from embed_pipeline.orchestration.promotion import roll_back
    from embed_pipeline.orchestration.resources import MLflow, open_instance

    settings = load_settings()
    tracker = MLflow.of(settings).tracker()
    with open_instance(settings.paths.store) as instance:
        out.print(f"{roll_back(instance, tracker, settings, version)} is served again")


@app.callback()
def configure(
    config: Annotated[Path | None, typer.Option(help="Settings file; default embed_pipeline.toml here.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", metavar="STAGE.NAME=VALUE", help="A setting.")] = None,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
) -> None:
    """Take settings from the command line into the environment, where every process of a run finds them."""
    if config is not None:
        os.environ[settings_module.CONFIG_VARIABLE] = str(config)
    for assignment in override or []:
        name, value = settings_module.override_variable(assignment)
        os.environ[name] = value
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _show_log(logging.DEBUG if verbose else logging.INFO)


def _show_log(level: int) -> None:
    """Show what the library logs, and nobody else's small talk.

    The handler sits on the library's own logger: it comes before the one that Dagster adds for the run's log, which
    changes the records that pass through it.
    """
    terminal = RichHandler(console=err, show_path=False, show_level=False, markup=False, highlighter=NullHighlighter())
    handler = terminal if err.is_terminal else logging.StreamHandler(sys.stderr)
    layout = "%(message)s" if err.is_terminal else "%(asctime)s %(message)s"
    handler.setFormatter(logging.Formatter(layout, datefmt="%H:%M:%S"))
    library = logging.getLogger("embed_pipeline")
    library.setLevel(level)
    library.propagate = False
    library.addHandler(handler)


@app.command()
def sample(name: Annotated[str, typer.Argument(help="Which sample: python.")] = "python") -> None:
    """Write sample documents into the documents folder."""
    from embed_pipeline.corpus.sample import write_sample

    folder = load_settings().paths.documents
    out.print(f"{len(write_sample(name, folder))} documents in {folder}")


def _stage(name: str, help_text: str) -> None:
    """Add the command of a stage."""

    def command(*, force: Force = False) -> None:
        with _runner() as runner:
            _run_stage(runner, name, force=force)

    app.command(name, help=help_text)(command)


_stage("sdg", "Documents to accepted question-answer pairs.")

_stage("prep", "Accepted pairs to training examples: split, hard negatives.")

_stage("finetune", "Fine-tune the base model.")

_stage("eval", "Compare the tuned model with its base.")

_stage("export", "Export to ONNX, verify, bundle the release.")


@app.command()
def deploy(*, force: Force = False, keep: Keep = False) -> None:
    """Serve the release, verify it through the endpoint, make it the champion."""
    with _runner() as runner:
        _run_stage(runner, "deploy", force=force or keep, config={"deployment": {"keep": keep}})


@app.command()
def run(*, force: Force = False, keep: Keep = False) -> None:
    """All six stages; what is current already is not made again."""
    with _runner() as runner:
        for name in ("sdg", "prep", "finetune", "eval", "export"):
            _run_stage(runner, name, force=force)
        _run_stage(runner, "deploy", force=force or keep, config={"deployment": {"keep": keep}})
    _show_comparison(load_settings())


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="Release bundle; default the one in use.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default serving.port.")] = None,
) -> None:
    """Serve a release behind an OpenAI-compatible endpoint."""
    from embed_pipeline.release.releases import current_bundle
    from embed_pipeline.serving.server import serve as serve_bundle

    settings = load_settings()
    serve_bundle(bundle or current_bundle(settings.paths), settings, port=port)


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
) -> None:
    """Dagster's web UI on this project's store, with its sensors and schedules."""
    settings = load_settings()
    from embed_pipeline.orchestration.resources import prepare_home

    os.environ["DAGSTER_HOME"] = str(prepare_home(settings.paths.store))
    program = [sys.executable, "-m", "dagster", "dev", "--module-name", "embed_pipeline.definitions"]
    os.execv(sys.executable, [*program, "--host", host, "--port", str(port)])  # noqa: S606 - no shell is wanted


@app.command()
def status() -> None:
    """What is there, stage by stage, and whether it is current."""
    with _runner() as runner:
        table = Table("stage", "asset", "state", "made")
        for row in runner.status():
            table.add_row(*row)
        out.print(table)


@contextmanager
def _runner() -> Iterator[StageRunner]:
    """Settings first, so that a wrong one is refused before Dagster loads."""
    settings = load_settings()
    from embed_pipeline.definitions import defs
    from embed_pipeline.orchestration.resources import open_instance
    from embed_pipeline.orchestration.runs import StageRunner

    with open_instance(settings.paths.store) as instance:
        yield StageRunner(defs, instance, settings)


def _run_stage(runner: StageRunner, name: str, *, force: bool, config: dict[str, Any] | None = None) -> None:
    import time

    started = time.monotonic()
    outcome = runner.run(name, force=force, config=config)
    seconds = time.monotonic() - started
    out.print(
        f"[bold]{name}[/bold]  {len(outcome.made)} made, {len(outcome.current)} current  [dim]{seconds:.0f} s[/dim]",
        highlight=False,
    )


def _show_comparison(settings: Settings) -> None:
    from embed_pipeline import tables
    from embed_pipeline.evaluation.report import SUMMARY_COLUMNS, headline_rows
    from embed_pipeline.storage import read_table, table_path

    metrics = tables.RETRIEVAL_EVALUATION
    table = Table(*SUMMARY_COLUMNS, title="Base against tuned")
    for row in headline_rows(read_table(table_path(settings.paths.root, metrics.name), metrics)):
        table.add_row(*row)
    out.print(table)
    out.print(f"report: {settings.paths.store / 'reports' / 'report.html'}")
    out.print("start the endpoint: embed-pipeline serve")


def _settings_first(arguments: Sequence[str]) -> list[str]:
    """The command line with ``--set`` and ``--config`` at the front: they may stand after the command too."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument in {"--set", "--config"}:
            first += [argument, *islice(left, 1)]
        else:
            (first if argument.startswith(("--set=", "--config=")) else rest).append(argument)
    return first + rest


def main() -> None:
    """Run the command; what the product itself refuses is one message on standard error and exit status 1."""
    try:
        app(_settings_first(sys.argv[1:]), standalone_mode=True)
    except (RuntimeError, ValueError, LookupError) as error:
        if not type(error).__module__.startswith("embed_pipeline."):
            raise
        err.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        if type(error).__name__ == "StageInterrupted":
            # Taking down an interpreter that holds torch takes seconds, and everything is stored.
            sys.stdout.flush()
            os._exit(_INTERRUPTED)
        sys.exit(1)


if __name__ == "__main__":
    main()
