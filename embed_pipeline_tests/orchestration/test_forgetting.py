"""A document is forgotten: no row, answer or manifest speaks of it, and nothing is paid for again."""

from __future__ import annotations

import contextlib
import os

import dagster as dg
import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.orchestration import forgetting
from embed_pipeline_tests.project import small_project, well_behaved
from embed_pipeline_tests.stub_endpoint import stub_endpoint


@pytest.fixture(scope="module")
def prepared(tiny_model, tmp_path_factory):
    """A project up to its training examples, in this process, and the stub that answered it."""
    with stub_endpoint(well_behaved) as stub, contextlib.ExitStack() as stack:
        project = small_project(tmp_path_factory.mktemp("forgetting"), tiny_model, stub.base_url)
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ.update(project.environment)
        for command in (["sdg"], ["prep"]):
            status, output = project.command(*command)
            assert status == 0, output
        yield project, stub


def holding(project, words):
    """Files of the store that hold the words, compressed tables read, and Dagster's own history left aside."""
    found = []
    for path in sorted(project.store.rglob("*")):
        if not path.is_file() or "dagster" in path.relative_to(project.store).parts:
            continue
        content = pl.read_parquet(path).write_ndjson() if path.suffix == ".parquet" else path.read_bytes()
        text = content if isinstance(content, str) else content.decode("utf-8", "replace")
        if any(word in text for word in words):
            found.append(str(path.relative_to(project.store)))
    return found


@pytest.mark.slow
def test_a_document_is_forgotten_everywhere(prepared):
    from embed_pipeline.definitions import build_definitions
    from embed_pipeline.orchestration.freshness import with_settings
    from embed_pipeline.orchestration.jobs import all_assets
    from embed_pipeline.orchestration.resources import open_instance
    from embed_pipeline.orchestration.runs import StageRunner
    from embed_pipeline.settings import load_settings

    project, stub = prepared
    settings = load_settings()
    assets = [with_settings(definition, settings) for definition in all_assets]
    segments = project.table("corpus").filter(pl.col("path") == "topic-03.md")
    words = [line.split()[1] for line in "\n".join(segments["text"]).splitlines() if line.startswith("## ")]
    assert len(words) == 3
    assert len(holding(project, words)) > 8
    with open_instance(settings.paths.store) as instance:
        examples = project.table("training_examples")
        learned = examples.filter(pl.col("positive_segment_id").is_in(segments["segment_id"].to_list()))
        assert learned.height
        version = instance.get_latest_materialization_event(dg.AssetKey("training_examples"))
        made = version.asset_materialization.tags["dagster/data_version"]
        for name, tags in (("1", {}), ("2", {"dagster/input_data_version/training_examples": made})):
            instance.report_runless_asset_event(
                dg.AssetMaterialization("finetuned_model", metadata={"mlflow_version": name}, tags=tags)
            )
        with pytest.raises(forgetting.ForgettingError, match=r"topic-03.md is still in .*: remove it first"):
            forgetting.forget_document("topic-03.md", settings, instance, assets)
        with pytest.raises(forgetting.ForgettingError, match="no document 'absent.md' is stored"):
            forgetting.forget_document("absent.md", settings, instance, assets)
        (project.documents / "topic-03.md").unlink()
        result = forgetting.forget_document("topic-03.md", settings, instance, assets)
        assert (result.models, result.unknown) == (("2",), ("1",))
        assert result.rows["documents"] == 1
        assert result.rows["segments"] == segments.height
        assert result.rows["training_examples"] >= learned.height
        assert result.answers > 0
        assert holding(project, words) == []
        # Nothing is stale, so nothing is read, asked or made again.
        calls = len(stub.requests)
        runner = StageRunner(build_definitions(settings), instance, settings)
        assert runner.run("sdg").made == []
        assert runner.run("prep").made == []
        assert len(stub.requests) == calls
    assert set(project.table("corpus")["path"]) == {f"topic-{n:02d}.md" for n in range(12) if n != 3}


def test_every_table_says_how_its_rows_are_forgotten():
    traced = forgetting.TRACED_COLUMNS.keys()
    assert not traced & forgetting.UNTRACED_TABLES
    assert traced | forgetting.UNTRACED_TABLES == tables.TABLES.keys()


@pytest.mark.parametrize("name", sorted(tables.TABLES))
def test_no_list_of_segments_escapes(name):
    lists = {column for column in tables.TABLES[name].schema if column.endswith("segment_ids")}
    assert lists <= forgetting.TRACED_COLUMNS.get(name, {}).keys()


@pytest.mark.parametrize(
    ("name", "column"),
    [(name, column) for name, columns in forgetting.TRACED_COLUMNS.items() for column in columns],
)
def test_each_traced_column_finds_the_rows_of_the_document(name, column):
    kind = forgetting.TRACED_COLUMNS[name][column]
    ids = {one: frozenset({one}) for one in ("path", "document_id", "segment_id", "qa_id")}
    traces = forgetting.Traces(ids["path"], ids["document_id"], ids["segment_id"], ids["qa_id"])
    schema = tables.TABLES[name].schema

    def row(value: str) -> dict[str, object]:
        # The other traced columns hold the ids of another document.
        others = dict.fromkeys(forgetting.TRACED_COLUMNS[name], "another")
        return {one: [text] if schema[one] == pl.List else text for one, text in {**others, column: value}.items()}

    frame = pl.DataFrame([row("another"), row(kind)], schema_overrides=schema, strict=False)
    assert frame.select(forgetting.comes_from(name, traces)).to_series().to_list() == [False, True]


def test_a_text_that_another_file_holds_stays(prepared):
    project, _ = prepared
    documents = project.table("documents")
    path = min((project.store / "tables" / "documents").glob("*.parquet"))
    double = documents.filter(pl.col("path") == "topic-01.md").with_columns(path=pl.lit("copy.md"))
    whole = pl.read_parquet(path)
    pl.concat([whole, double]).write_parquet(path)
    traces = forgetting.find_traces("copy.md", project.store)
    whole.write_parquet(path)
    assert traces.paths == {"copy.md"}
    assert not traces.document_ids
    assert not traces.segment_ids
    assert forgetting.find_traces(documents["document_id"][0], project.store).paths == {documents["path"][0]}
