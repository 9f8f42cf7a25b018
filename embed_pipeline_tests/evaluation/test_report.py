"""The report."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline.evaluation import plots
from embed_pipeline.evaluation.query_sets import QuerySet
from embed_pipeline.evaluation.report import write_report
from embed_pipeline.evaluation.retrieval import Comparison, compare
from embed_pipeline.settings import Settings
from embed_pipeline.tables import BASE_COMPARISON
from embed_pipeline_tests.evaluation import material
from embed_pipeline_tests.tiny import write_tiny_model


@pytest.fixture(scope="module")
def comparison(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    settings = Settings.model_validate({"embedding": {"device": "cpu"}, "evaluation": {"bootstrap_samples": 200}})
    other = write_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=5)
    harder = QuerySet(
        "hard",
        {f"h{i}": f"<b>how</b> is | {word}" for i, word in enumerate(material.WORDS)},
        {f"h{i}": {f"s{2 * i + 1:02}": 1} for i in range(10)},
    )
    return compare(tiny_model, other, material.corpus(), [material.generated(), material.labelled(), harder], settings)


@pytest.mark.slow
def test_the_page_holds_everything_and_escapes_what_it_quotes(comparison: Comparison, tmp_path: Path) -> None:
    html, markdown = write_report(comparison, tmp_path / "report", {"base": "tiny & small"})
    page = html.read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "tiny &amp; small" in page
    assert "<b>how</b>" not in page
    assert "&lt;b&gt;how&lt;/b&gt;" in page
    for verdict in comparison.verdicts.values():
        assert verdict.sentence in page
        assert verdict.sentence in markdown.read_text()
    assert "hop_count=2" in page
    assert "Worst regressions" in page
    assert "may be released" in page


@pytest.mark.slow
def test_the_reasons_against_a_release_stand_at_the_top(comparison: Comparison, tmp_path: Path) -> None:
    html, markdown = write_report(comparison, tmp_path, {}, ["people: too much <lost>"])
    page = html.read_text()
    assert "people: too much &lt;lost&gt;" in page
    assert page.index("people: too much") < page.index("<h2>")
    assert "may be released" not in page
    assert "people: too much <lost>" in markdown.read_text()


def candidates() -> pl.DataFrame:
    """Two candidates on one set."""
    figures = [f"{metric}_10{end}" for metric in ("ndcg", "recall") for end in ("", "_low", "_high")]
    costs = {"megabytes": 90.9, "gigaflops": 2.7, "vectors_per_second": 31.0, "cut_segments": 0.0}
    row = {"query_set": "people", "queries": 3, "dimensions": 384, "max_tokens": 256, **costs}
    row |= dict.fromkeys(figures, 0.5)
    return BASE_COMPARISON.frame([{**row, "model": name, "chosen": name == "b"} for name in ("a<i>a", "b")])


@pytest.mark.slow
def test_candidates_for_the_base_are_shown_where_they_were_compared(comparison: Comparison, tmp_path: Path) -> None:
    html, markdown = write_report(comparison, tmp_path, {}, candidates=candidates())
    assert "Candidates for the base, untuned" in html.read_text()
    assert "a&lt;i&gt;a" in html.read_text()
    assert "b (chosen)" in markdown.read_text()
    html, _ = write_report(comparison, tmp_path, {}, candidates=BASE_COMPARISON.empty())
    assert "Candidates for the base" not in html.read_text()


@pytest.mark.slow
def test_markdown_tables_are_whole(comparison: Comparison, tmp_path: Path) -> None:
    _, markdown = write_report(comparison, tmp_path, {}, candidates=candidates())
    lines = markdown.read_text().splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("|---")]
    assert len(starts) == 5
    for start in starts:
        assert lines[start - 1].startswith("| ")
        assert lines[start + 1].count("|") == lines[start].count("|")


@pytest.mark.slow
def test_pictures_are_png(comparison: Comparison) -> None:
    pictures = [
        plots.recall_curves(comparison.metrics, "people"),
        plots.headline_bars(comparison.metrics),
        plots.training_curves([(1, 2.0), (2, 1.0)], [(0, 0.5), (2, 0.6)], 2),
        plots.training_curves([(1, 2.0)], [], 1),
    ]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert plots.markdown_image(pictures[0]).startswith("![plot](data:image/png;base64,iVBOR")
