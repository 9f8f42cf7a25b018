"""The ``embed-pipeline`` command: six stages from documents to a deployed model, and what goes with them."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.table import Column, Table
from rich.text import Text

from embed_pipeline import settings as settings_module
from embed_pipeline.escaping import TerminalFormatter, counted, on_one_line
from embed_pipeline.inspection.review_commands import reviews_app
from embed_pipeline.machine import sleep_at_barriers
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.terminal import (
    INTERRUPTED,
    KEPT,
    end_interrupted,
    ended_when_told,
    err,
    explain_error,
    fail,
    out,
    say,
    settings_first,
)

if TYPE_CHECKING:
    import polars as pl

    from embed_pipeline.orchestration.runs import StageRunner

app = typer.Typer(
    help="A folder of documents becomes a tuned, exported and served text-embedding model, with no labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(reviews_app, name="reviews")
logger = logging.getLogger(__name__)
_STAGES = "From documents to a served model, in this order; run does all six"
Force = Annotated[bool, typer.Option("--force", help="Make everything again, even what is current.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the endpoint running.")]


class DatasetFormat(StrEnum):
    """Formats that the data can be exported in."""

    BEIR = "beir"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    NEMO = "nemo"


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where; it is created if it does not exist.")] = Path(),
) -> None:
    """Write a new project: settings with comments, Dagster's files, a documents folder and .gitignore."""
    templates = {
        ".gitignore" if file.name == "gitignore" else file.name: file.read_bytes()
        for file in (resources.files("embed_pipeline") / "project_files").iterdir()
    }
    taken = sorted(name for name in templates if (folder / name).exists())
    if taken:
        fail(f"{folder} already has {', '.join(taken)}; remove them, or name another folder")
    (folder / "data" / "documents").mkdir(parents=True, exist_ok=True)
    for name, content in sorted(templates.items()):
        (folder / name).write_bytes(content)
        say(f"wrote {folder / name}")
    say(f"Next: put documents into {folder / 'data' / 'documents'}, read embed_pipeline.toml, then embed-pipeline run")


@app.command()
def baseline() -> None:
    """Score the base model, BM25 and both together on your own queries, before anything is generated."""
    from embed_pipeline import library

    settings = load_settings()
    documents = library.read_documents(settings.paths.documents, settings)
    _show_metrics(library.baseline(documents, settings), "What a tuned model has to beat")


@app.command()
def estimate(
    *,
    ask: Annotated[bool, typer.Option(help="Measure the model by a few of the run's own calls.")] = True,
) -> None:
    """Predict calls, tokens, cost and time of the next sdg run."""
    from embed_pipeline.embedding.encoder import Encoder
    from embed_pipeline.synthesis.estimate import estimate_folder

    settings = load_settings()
    encoder = Encoder.load(settings.embedding.reading_model, settings.embedding)
    found = estimate_folder(settings, encoder, ask=ask)
    left = f" of {found.askable:,} (synthesis.max_questions)" if found.segments < found.askable else ""
    out.print(f"{counted(found.questions, 'question')} to write about {counted(found.segments, 'segment')}{left}")
    for heading, rows in (
        ("stage", [*found.stages, found.total]),
        ("synthesis.max_questions", list(found.curve.values())),
    ):
        table = Table(heading, "calls", "from the store", "prompt tokens", "completion tokens", "cost", "minutes")
        for row in rows:
            counts = (row.calls, row.cached, row.prompt_tokens, row.completion_tokens)
            table.add_row(row.stage, *(f"{n:,}" for n in counts), f"{row.cost:.2f}", f"{row.seconds / 60:.1f}")
        if rows:
            out.print(table)
    for cap in found.caps:
        say(cap)


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
def adopt(
    sample: Annotated[
        Path | None,
        typer.Argument(help="Texts and vectors of your index: Parquet (text, vector) or .npz (texts, vectors)."),
    ] = None,
) -> None:
    """Say what the release that is served asks of an existing index, and check a sample of one against the base."""
    from embed_pipeline import tables
    from embed_pipeline.embedding.encoder import Encoder
    from embed_pipeline.release.existing_index import check_index, read_sample, steps
    from embed_pipeline.release.manifest import read_manifest
    from embed_pipeline.release.releases import current_bundle
    from embed_pipeline.storage import read_table, table_path

    settings = load_settings()
    found = read_sample(sample) if sample else None
    for sentence in steps(read_manifest(current_bundle(settings.paths))):
        say(f"- {sentence}")
    if found is None:
        return
    base = read_table(table_path(settings.paths.root, tables.BASE_MODEL.name), tables.BASE_MODEL)["model"].item()
    checked = check_index(*found, Encoder.load(base, settings.embedding))
    say(f"{checked.texts} texts of the index: least cosine to the base's vectors {checked.least_cosine:.5f}")
    if checked.others:
        fail(
            f"{len(checked.others)} of them are not the base's, the furthest {checked.others[0][:80]!r}: the index was "
            "filled with another model, another prefix, or texts that were cut otherwise"
        )


@app.command()
def dataset(
    form: Annotated[DatasetFormat, typer.Argument(metavar="FORMAT", help="beir, sentence-transformers or nemo.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; an earlier export there is replaced.")],
) -> None:
    """Export questions, judgements and negatives for other tools."""
    from embed_pipeline import tables
    from embed_pipeline.storage import read_table, table_path
    from embed_pipeline.training_data.dataset_export import export_dataset

    settings = load_settings()
    root, context = settings.paths.root, settings.embedding.context
    named = (tables.QA_DATASET, tables.DATASET_SPLIT, tables.CORPUS, tables.HARD_NEGATIVES)
    qa, split, corpus, negatives = (read_table(table_path(root, table.name), table) for table in named)
    export_dataset(form.value, folder, qa=qa, split=split, corpus=corpus, hard_negatives=negatives, context=context)
    say(f"{counted(qa.height, 'question')} about {counted(corpus.height, 'segment')} in {folder}")


@app.command()
def forget(
    document: Annotated[str, typer.Argument(help="Path in the documents folder, or a document id.")],
    *,
    check: Annotated[bool, typer.Option("--check", help="Only search for traces of a forgotten document.")] = False,
) -> None:
    """Remove a deleted document and everything made from it, and name the models trained on it."""
    from embed_pipeline.corpus.files import document_name
    from embed_pipeline.orchestration.forgetting import check_absence, forget_document
    from embed_pipeline.orchestration.freshness import with_settings
    from embed_pipeline.orchestration.jobs import all_assets
    from embed_pipeline.orchestration.resources import MLflow, open_instance

    settings = load_settings()
    document = document_name(document, settings.paths.documents)
    assets = [with_settings(definition, settings) for definition in all_assets]
    tracker = MLflow.of(settings).tracker()
    with open_instance(settings.paths.store) as instance:
        if check:
            _show_remains(check_absence(document, settings, instance, tracker))
            return
        gone = forget_document(document, settings, instance, assets, tracker)
    table = Table("table", "rows removed", "rows that lost a negative")
    for name in dict.fromkeys((*gone.rows, *gone.shortened)):
        table.add_row(name, str(gone.rows.get(name, 0)), str(gone.shortened.get(name, 0)))
    table.add_row("stored answers of the language model", str(gone.answers), "")
    out.print(table)
    for artifact in gone.artifacts:
        say(f"deleted from MLflow, because it quoted the document: {artifact}")
    say(f"models trained on it, which still hold it: {', '.join(gone.models) or 'none'}")
    if gone.unknown:
        say(f"models for which this is unknown: {', '.join(gone.unknown)}")
    if gone.shortened:
        say("mine the negatives again: embed-pipeline prep")
    if gone.meanwhile:
        fail(f"these runs started meanwhile and may have written it back: {', '.join(gone.meanwhile)}; forget it again")


def _show_remains(places: Mapping[str, int]) -> None:
    """Print the places that still hold words of a forgotten document; exit with status 1 if there are any."""
    if not places:
        say("no trace of it was found in tables, manifests, answers, reports, releases, MLflow and Dagster's history")
        return
    table = Table("place", "found")
    for place, count in places.items():
        table.add_row(on_one_line(place), str(count))
    out.print(table)
    fail("traces remain in these places; docs/operations.md, Forgetting a document, says how to clear each")


@app.command()
def rollback(
    version: Annotated[str | None, typer.Argument(help="Release; default: the one before the current.")] = None,
) -> None:
    """Serve an earlier release again."""
    from embed_pipeline.orchestration.promotion import roll_back
    from embed_pipeline.orchestration.resources import MLflow, open_instance

    settings = load_settings()
    tracker = MLflow.of(settings).tracker()
    with open_instance(settings.paths.store) as instance:
        say(f"{roll_back(instance, tracker, settings, version)} is served again")


store_app = typer.Typer(help="Move the store, or upgrade its databases.", no_args_is_help=True)
app.add_typer(store_app, name="store")


@store_app.command()
def move(target: Annotated[Path, typer.Argument(help="A folder that does not exist yet.")]) -> None:
    """Move the store to another folder, with MLflow's artifacts and Dagster's history."""
    from embed_pipeline.orchestration.resources import move_store

    settings = load_settings()
    move_store(settings, target)
    say(f"{settings.paths.store} is now {target}; set paths.store = {target}")


@store_app.command()
def upgrade() -> None:
    """Upgrade Dagster's and MLflow's databases to the installed versions; back them up first."""
    from embed_pipeline.orchestration.resources import upgrade_store

    for line in upgrade_store(load_settings()):
        say(line)


def _show_version(value: bool) -> None:  # noqa: FBT001 - typer's signature
    if value:
        typer.echo(metadata.version("embed-pipeline"))
        raise typer.Exit


@app.callback()
def configure(
    config: Annotated[
        Path | None, typer.Option(help="Settings file; default: embed_pipeline.toml in this folder.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option("--set", metavar="GROUP.NAME=VALUE", help="A setting; repeatable.")
    ] = None,
    *,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    version: Annotated[  # noqa: ARG001 - typer calls its function
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
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
    """Show what this library logs, and nothing from others.

    The handler sits on the library's own logger: it comes before the one that Dagster adds for the run's log, which
    changes the records that pass through it.
    """
    terminal = RichHandler(console=err, show_path=False, show_level=False, markup=False, highlighter=NullHighlighter())
    handler = terminal if err.is_terminal else logging.StreamHandler(sys.stderr)
    layout = "%(message)s" if err.is_terminal else "%(asctime)s %(message)s"
    handler.setFormatter(TerminalFormatter(layout, datefmt="%H:%M:%S"))
    library = logging.getLogger("embed_pipeline")
    library.setLevel(level)
    library.propagate = False
    library.addHandler(handler)


@app.command()
def sample(name: Annotated[str, typer.Argument(help="Which sample: python.")] = "python") -> None:
    """Write sample documents into the documents folder."""
    from embed_pipeline.corpus.sample import write_sample

    folder = load_settings().paths.documents
    say(f"{counted(len(write_sample(name, folder)), 'document')} in {folder}")


def _stage(name: str, help_text: str) -> None:
    """Add the command of a stage."""

    def command(*, force: Force = False) -> None:
        with _runner() as runner:
            _run_stage(runner, name, force=force)

    app.command(name, help=help_text, rich_help_panel=_STAGES)(command)


_stage("sdg", "Synthetic data generation: documents to accepted question-answer pairs.")
_stage("prep", "Accepted pairs to training examples: split, hard negatives.")
_stage("finetune", "Fine-tune the base model.")
_stage("eval", "Compare the tuned model with its base.")
_stage("export", "Export to ONNX, verify, bundle the release.")


@app.command(rich_help_panel=_STAGES)
def deploy(*, force: Force = False, keep: Keep = False) -> None:
    """Serve the release, verify it through the endpoint, make it the champion."""
    with _runner() as runner:
        _run_stage(runner, "deploy", force=force or keep, config={"deployment": {"keep": keep}})


@app.command(rich_help_panel=_STAGES)
def run(*, force: Force = False, keep: Keep = False) -> None:
    """Run all six stages; what is current is skipped."""
    with _runner() as runner:
        for name in ("sdg", "prep", "finetune", "eval", "export"):
            _run_stage(runner, name, force=force)
        _run_stage(runner, "deploy", force=force or keep, config={"deployment": {"keep": keep}})
    _show_comparison(load_settings())


@app.command()
def serve(
    bundle: Annotated[Path | None, typer.Option(help="Release bundle; default: the current release.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default: serving.port.")] = None,
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Before the first release, wait for it.")] = False,
) -> None:
    """Serve a release behind an OpenAI-compatible endpoint."""
    from embed_pipeline.release.releases import current_bundle, current_version
    from embed_pipeline.serving.server import serve as serve_bundle

    settings = load_settings()
    if bundle is None and not (wait and current_version(settings.paths) is None):
        bundle = current_bundle(settings.paths)
    serve_bundle(bundle, settings, port=port)


@app.command()
def inspect(
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default inspection.port.")] = None,
) -> None:
    """Show every question-answer pair in the browser, accepted or not, with its sources, scores and models."""
    from embed_pipeline.inspection.inspector import Neighbours
    from embed_pipeline.inspection.inspector import inspect as serve_pages
    from embed_pipeline.orchestration.resources import open_instance, trained_models
    from embed_pipeline.orchestration.reviewing import report_reviews

    settings = load_settings()
    with open_instance(settings.paths.store) as instance:
        neighbours = Neighbours(
            models=lambda: trained_models(instance, settings.tracking.registered_model),
            reviewed=lambda: report_reviews(instance, settings.paths.root),
        )
        serve_pages(settings, neighbours, port=port)


@app.command()
def ui(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
) -> None:
    """Dagster's web UI on this project's store, with its sensors and schedules."""
    settings = load_settings()
    from embed_pipeline.orchestration.resources import prepare_home
    from embed_pipeline.serving.request import is_loopback

    os.environ["DAGSTER_HOME"] = str(prepare_home(settings.paths.store))
    if not is_loopback(host):
        logger.warning(
            "Dagster's UI has no sign-in: whoever reaches %s port %d reads samples, and starts and deletes runs; "
            "put a proxy that asks for a password in front of it (docs/security.md)",
            host, port,
        )  # fmt: skip
    # A shell without job control has jobs in its background ignore it, and Dagster handles SIGTERM as it does SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = [sys.executable, "-m", "dagster", "dev", "--module-name", "embed_pipeline.definitions"]
    os.execv(sys.executable, [*program, "--host", host, "--port", str(port)])  # noqa: S606 - no shell is wanted


@app.command()
def worker(*, runs: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1) -> None:
    """Execute runs on this machine, as others do on theirs (docs/scaling.md)."""
    from embed_pipeline.orchestration.workers import work

    work(load_settings(), runs)


@app.command()
def status() -> None:
    """List the assets by stage, and whether each is current."""
    with _runner() as runner:
        table = Table("stage", "asset", "state", "made")
        for row in runner.status():
            table.add_row(*map(on_one_line, row))
        out.print(table)


@contextmanager
def _runner() -> Iterator[StageRunner]:
    """Settings first, so that a wrong one is refused before Dagster loads."""
    settings = load_settings()
    with ended_when_told():
        from embed_pipeline.definitions import defs
        from embed_pipeline.orchestration.resources import open_instance
        from embed_pipeline.orchestration.runs import StageRunner

        with open_instance(settings.paths.store) as instance:
            yield StageRunner(defs, instance, settings)


def _run_stage(runner: StageRunner, name: str, *, force: bool, config: dict[str, Any] | None = None) -> None:
    started = time.monotonic()
    outcome = runner.run(name, force=force, config=config)
    seconds = time.monotonic() - started
    counts = f"  {len(outcome.made)} made, {len(outcome.current)} current  "
    out.print(Text.assemble((name, "bold"), counts, (f"{seconds:.0f} s", "dim")))


def _show_comparison(settings: Settings) -> None:
    from embed_pipeline.storage import read_table, table_path
    from embed_pipeline.tables import RETRIEVAL_EVALUATION as METRICS

    _show_metrics(read_table(table_path(settings.paths.root, METRICS.name), METRICS), "Base against tuned")
    say(f"report: {settings.paths.store / 'reports' / 'report.html'}")
    say("start the endpoint: embed-pipeline serve")


def _show_metrics(metrics: pl.DataFrame, title: str) -> None:
    from embed_pipeline.evaluation.report import SUMMARY_COLUMNS, headline_rows

    table = Table(Column(SUMMARY_COLUMNS[0], overflow="fold"), *SUMMARY_COLUMNS[1:], title=title)
    for row in headline_rows(metrics):
        table.add_row(*map(on_one_line, row))
    out.print(table)


def main() -> None:
    """Run the command; an expected error is printed as one sentence, with exit status 1."""
    sleep_at_barriers()
    try:
        app(settings_first(sys.argv[1:]), standalone_mode=True)
    except SystemExit as ended:
        # Typer's for Ctrl-C.
        if ended.code == INTERRUPTED:
            end_interrupted(KEPT)
        raise
    except KeyboardInterrupt:
        end_interrupted(KEPT)
    except Exception as error:
        said = explain_error(error)
        if said is None:
            raise
        if type(error).__name__ == "StageInterrupted":
            end_interrupted(said)
        fail(said)


if __name__ == "__main__":
    main()
