"""The commands of ``embed-pipeline reviews``: what people said, between stores and other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from embed_pipeline.escaping import counted, on_one_line
from embed_pipeline.settings import load_settings

reviews_app = typer.Typer(
    help="Export and import people's corrections; turn judged searches into a query set.", no_args_is_help=True
)
_File = Annotated[Path, typer.Argument(help="A file that ends in .csv or .jsonl.")]


@reviews_app.command("export")
def export_reviews(path: _File) -> None:
    """Write every review to a file."""
    from embed_pipeline import reviews, tables

    found = reviews.read_reviews(load_settings().paths.root)
    found = tables.QA_REVIEWS.empty() if found is None else found
    reviews.export_reviews(found, path)
    _say(f"{counted(found.height, 'review')} in {path}")


@reviews_app.command("import")
def import_reviews(path: _File) -> None:
    """Add the reviews in a file to those stored; the next run honours them."""
    from embed_pipeline import reviews

    settings = load_settings()
    added = reviews.import_reviews(path, settings.paths.root, settings.inspection.reviewer_name)
    _say(f"{counted(added.new, 'review')} added; stored before: {added.known}")
    if added.unknown:
        _say(f"left out, because the pair is not stored here: {len(added.unknown)}, first {added.unknown[0]}")


@reviews_app.command()
def queries(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that the search page saved.")],
    folder: Annotated[Path, typer.Argument(help="Where to write the set, for evaluation.query_sets.")],
) -> None:
    """Make a query set in BEIR form of results that were judged on the search page."""
    from embed_pipeline.inspection.judged_searches import write_judged_queries

    written, left_out = write_judged_queries(files, folder)
    _say(f"{_queries(written)} in {folder}; left out, because no result was judged right: {left_out}")


def _queries(number: int) -> str:
    return f"{number:,} {'query' if number == 1 else 'queries'}"


def _say(line: str) -> None:
    typer.echo(on_one_line(line))
