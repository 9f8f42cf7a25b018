"""The commands about what is stored rather than made: estimate, lineage, dataset, forget, rollback."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from embed_pipeline.settings import load_settings

out = Console()


class DatasetFormat(StrEnum):
    """Forms that the made data can be exported in."""

    BEIR = "beir"
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    NEMO = "nemo"


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


def lineage(qa_id: Annotated[str, typer.Argument(help="The pair's id, or its first four letters or more.")]) -> None:
    """Follow a question from its document to the models trained on it."""
    from embed_pipeline.lineage import format_trace, stored_tables, trace
    from embed_pipeline.orchestration.instance import open_instance
    from embed_pipeline.orchestration.resources import trained_models

    settings = load_settings()
    with open_instance(settings.paths.store) as instance:
        models = trained_models(instance, settings.tracking.registered_model)
    typer.echo(format_trace(trace(qa_id, stored_tables(settings.paths.root), models)))


def dataset(
    form: Annotated[DatasetFormat, typer.Argument(metavar="FORMAT", help="beir, sentence-transformers or nemo.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; an earlier export there is replaced.")],
) -> None:
    """Export the made questions, judgements and negatives for other tools."""
    from embed_pipeline import tables
    from embed_pipeline.storage import read_table, table_path
    from embed_pipeline.training_data.export import export_dataset

    root = load_settings().paths.root
    named = (tables.QA_DATASET, tables.DATASET_SPLIT, tables.CORPUS, tables.HARD_NEGATIVES)
    qa, split, corpus, negatives = (read_table(table_path(root, table.name), table) for table in named)
    export_dataset(form.value, folder, qa=qa, split=split, corpus=corpus, hard_negatives=negatives)
    out.print(f"{qa.height} questions on {corpus.height} segments in {folder}")


def forget(document: Annotated[str, typer.Argument(help="Path in the documents folder, or a document id.")]) -> None:
    """Remove a deleted document and all that was made from it, and name the models trained on it."""
    from embed_pipeline.orchestration.forgetting import forget_document
    from embed_pipeline.orchestration.instance import open_instance
    from embed_pipeline.orchestration.jobs import all_assets
    from embed_pipeline.orchestration.versions import with_settings

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


def rollback(version: Annotated[str | None, typer.Argument(help="Release; default the one before.")] = None) -> None:
    """Serve an earlier release again."""
    from embed_pipeline.orchestration.instance import open_instance
    from embed_pipeline.orchestration.promotion import roll_back
    from embed_pipeline.orchestration.resources import MLflow

    settings = load_settings()
    tracker = MLflow.of(settings).tracker()
    with open_instance(settings.paths.store) as instance:
        out.print(f"{roll_back(instance, tracker, settings, version)} is served again")


COMMANDS = (estimate, lineage, dataset, forget, rollback)
