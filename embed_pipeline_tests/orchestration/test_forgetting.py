"""A document is forgotten: no row, answer or manifest speaks of it, and nothing is paid for again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from dataclasses import replace

import dagster as dg
import polars as pl
import pytest
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.llm.store import Answer, ResponseStore
from embed_pipeline.orchestration import absence, forgetting
from embed_pipeline.settings import Paths
from embed_pipeline.storage import StorageError
from embed_pipeline.training_data.negatives import unroll
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


def start_run(instance, status, **tags):
    """A run that somebody else has started."""
    run = dg.DagsterRun("sdg", status=status, tags=tags)
    instance.add_run(run)
    return run.run_id


@pytest.mark.slow
def test_a_document_is_forgotten_everywhere(prepared):  # noqa: PLR0915 - one project, forgotten step by step
    from embed_pipeline.definitions import build_definitions
    from embed_pipeline.orchestration.freshness import with_settings
    from embed_pipeline.orchestration.jobs import all_assets
    from embed_pipeline.orchestration.resources import MLflow, open_instance
    from embed_pipeline.orchestration.runs import StageRunner
    from embed_pipeline.settings import load_settings

    project, stub = prepared
    settings = load_settings()
    assets = [with_settings(definition, settings) for definition in all_assets]
    tracker = MLflow.of(settings).tracker()
    segments = project.table("corpus").filter(pl.col("path") == "topic-03.md")
    words = [line.split()[1] for line in "\n".join(segments["text"]).splitlines() if line.startswith("## ")]
    assert len(words) == 3
    assert len(holding(project, words)) > 8
    own = segments["segment_id"].to_list()
    mined = project.table("hard_negatives")
    others = mined.filter(~pl.col("positive_segment_ids").list.set_intersection(own).list.len().cast(bool))
    losing = others.filter(pl.col("negative_segment_ids").list.set_intersection(own).list.len() > 0)
    assert losing.height
    with tracker.run("evaluation", {}) as run:
        run.log_artifact(f"<p>{segments['text'][0]}</p>".encode(), "report.html")
        run.log_artifact(b"# other words about nothing of the kind at all", "report.md")

    def forget(name):
        return forgetting.forget_document(name, settings, instance, assets, tracker)

    with open_instance(settings.paths.store) as instance:
        examples = project.table("training_examples")
        learned = examples.filter(pl.col("positive_segment_id").is_in(own))
        assert learned.height
        version = instance.get_latest_materialization_event(dg.AssetKey("training_examples"))
        made = version.asset_materialization.tags["dagster/data_version"]
        for name, tags in (("1", {}), ("2", {"dagster/input_data_version/training_examples": made})):
            instance.report_runless_asset_event(
                dg.AssetMaterialization("finetuned_model", metadata={"mlflow_version": name}, tags=tags)
            )
        with pytest.raises(forgetting.ForgettingError, match=r"topic-03.md is still in .*: remove it first"):
            forget("topic-03.md")
        with pytest.raises(forgetting.ForgettingError, match="no document 'absent.md' is stored"):
            forget("absent.md")
        with pytest.raises(forgetting.ForgettingError, match="no document 'topic-03.md' was forgotten"):
            forgetting.check_absence("topic-03.md", settings, instance, tracker)
        (project.documents / "topic-03.md").unlink()
        for status in (dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.NOT_STARTED):
            working = start_run(instance, status)
            with pytest.raises(forgetting.ForgettingError, match=rf"{working[:8]} of sdg \({status.value.lower()}\)"):
                forget("topic-03.md")
            instance.delete_run(working)
        assert len(holding(project, words)) > 8
        batch = min((project.store / "tables" / "segments").glob("*.parquet"))
        race = batch.read_bytes()
        result = forget("topic-03.md")
        assert (result.models, result.unknown) == (("2",), ("1",))
        assert result.rows["documents"] == 1
        assert result.rows["segments"] == segments.height
        assert result.rows["training_examples"] >= learned.height
        assert result.shortened["hard_negatives"] == losing.height
        assert result.answers > 0
        assert [name.rpartition(" ")[2] for name in result.artifacts] == ["report.html"]
        assert result.meanwhile == ()
        assert holding(project, words) == []
        # Other questions keep their other negatives.
        kept = {row["qa_id"]: row for row in project.table("hard_negatives").to_dicts()}
        for row in others.to_dicts():
            left = [place for place, segment in enumerate(row["negative_segment_ids"]) if segment not in own]
            found = kept[row["qa_id"]]
            assert found["negative_segment_ids"] == [row["negative_segment_ids"][place] for place in left]
            assert found["negative_similarities"] == [row["negative_similarities"][place] for place in left]
        # Nothing is read or asked again; the base is chosen again, and the negatives are mined anew.
        calls = len(stub.requests)
        runner = StageRunner(build_definitions(settings), instance, settings)
        assert runner.run("sdg").made == []
        assert runner.run("prep").made == ["base_comparison", "base_model", "hard_negatives", "training_examples"]
        assert len(stub.requests) == calls
        again = {row["qa_id"]: len(row["negative_segment_ids"]) for row in project.table("hard_negatives").to_dicts()}
        written = {row["qa_id"] for row in others.filter(pl.col("origin") == "generated").to_dicts()}
        assert written <= again.keys()
        assert sum(again[name] for name in written) > sum(len(kept[name]["negative_segment_ids"]) for name in written)
        # What is left is in Dagster's history alone, and is said.
        remains = forgetting.check_absence("topic-03.md", settings, instance, tracker)
        assert remains
        assert all(re.fullmatch(r"Dagster's history of [\w ]+, run [0-9a-f-]{36}", place) for place in remains), remains
        # A run of before writes a table back: it is found, and can be forgotten again.
        batch.write_bytes(race)
        assert forgetting.check_absence("topic-03.md", settings, instance, tracker)["table segments"] == segments.height
        repeated = forget("topic-03.md")
        assert repeated.rows == {"segments": segments.height}
        assert holding(project, words) == []
        assert forget("topic-03.md").rows == {}
    assert set(project.table("corpus")["path"]) == {f"topic-{n:02d}.md" for n in range(12) if n != 3}


def mined_row(origin, positives, negatives, answering=(), labelled=0):
    numbers = {name: float(place) for place, name in enumerate("abcdxyz")}
    return {
        "qa_id": f"{origin} {positives}", "origin": origin, "question": "?", "positive_segment_ids": list(positives),
        "positive_similarities": [numbers[name] for name in positives], "ceiling": 1.0,
        "negative_segment_ids": list(negatives), "negative_similarities": [numbers[name] for name in negatives],
        "labelled_negatives": labelled, "above_ceiling": 0, "answering_segment_ids": list(answering), "cross_check": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "positives", "negatives", "labelled"),
    [
        (mined_row("generated", "a", "bcd"), "a", "bcd", 0),
        (mined_row("generated", "a", "xby"), "a", "b", 0),
        (mined_row("labelled", "a", "xby", labelled=2), "a", "b", 1),
        (mined_row("generated", "a", "xy"), "a", "", 0),
        (mined_row("generated", "x", "b"), None, "", 0),
        (mined_row("generated", "ax", "b"), None, "", 0),
        (mined_row("keywords", "ax", "b"), None, "", 0),
        (mined_row("labelled", "ax", "b"), "a", "b", 0),
        (mined_row("labelled", "xy", "b"), None, "", 0),
        (mined_row("generated", "ax", "b", answering="xd"), "a", "b", 0),
    ],
)
def test_a_question_keeps_what_is_not_the_documents(before, positives, negatives, labelled):
    traces = forgetting.Traces(frozenset(), frozenset(), frozenset("xyz"), frozenset())
    frame = tables.HARD_NEGATIVES.frame([before])
    left, touched = forgetting.without_document(frame, "hard_negatives", traces)
    examples = forgetting.without_document(unroll(frame), "training_examples", traces)[0]
    if positives is None:
        assert left.is_empty()
        assert examples.is_empty()
        return
    (row,) = left.to_dicts()
    assert "".join(row["positive_segment_ids"]) == positives
    assert "".join(row["negative_segment_ids"]) == negatives
    assert row["negative_similarities"] == [float("abcdxyz".index(name)) for name in negatives]
    assert len(row["positive_similarities"]) == len(positives)
    assert row["labelled_negatives"] == labelled
    assert not set(row["answering_segment_ids"]) & set("xyz")
    assert touched == (row != before)
    assert set(examples["positive_segment_id"]) <= set(positives)
    assert not {name for names in examples["negative_segment_ids"] for name in names} & set("xyz")


def test_each_machine_forgets_its_answers_once(tmp_path):
    root = UPath(tmp_path / "shared")
    words = absence.WordHashes.of(["The quern of the Badeki grinds barley at dawn."], [["quern", "kiln"]])
    machine = Paths(store=tmp_path / "machine", assets=f"file://{root.path}")
    record = absence.Record(frozenset({absence.path_hash("a.md")}), *[frozenset()] * 3, words=words)
    absence.remember(machine.root, record)
    texts = {
        "copied": "it says: the Quern of the Badeki grinds barley",
        "escaped": '{"q": "Who\\nof the Badeki grinds barley at \\u0064awn?"}',
        "together": '["kiln", "quern"]',
        "one": "a kiln",
        "other": "the quern of the mill grinds barley",
    }
    with ResponseStore(machine.store / "responses.sqlite") as store:
        for key, text in texts.items():
            store.put(key, Answer(text, "stop", 1, 1))
    assert absence.forget_answers(machine) == 3
    with ResponseStore(machine.store / "responses.sqlite") as store:
        assert sorted(store.texts()) == sorted([texts["one"], texts["other"]])
        # The document came back, and was asked about again.
        store.put("copied", Answer(texts["copied"], "stop", 1, 1))
    assert absence.forget_answers(machine) == 0
    absence.remember(machine.root, replace(record, times=2))
    assert absence.forget_answers(machine) == 1
    assert len(list((root / "forgotten").iterdir())) == 1


@pytest.mark.parametrize(
    "text",
    [
        "we saw that The Quern of the Badeki grinds barley there",
        "<p>the <b>quern</b> of the Badeki&nbsp;grinds barley</p>",
        r"\"the quern\nof the \u0042adeki grinds barley\"",
        "| the quern | of the badeki | grinds barley |",
    ],
)
def test_words_are_found_whatever_they_are_written_in(text):
    words = absence.WordHashes.of(["The quern of the Badeki grinds barley at dawn."], [])
    assert words.are_in(text)
    assert not words.are_in("the quern of the mill grinds barley at dawn")
    assert not words.without(["The quern of the Badeki grinds barley at dawn, too."]).are_in(text)
    assert "quern" not in json.dumps(sorted(map(sorted, words.runs.values())))


def test_a_record_comes_back_as_it_was_and_damage_is_named(tmp_path):
    words = absence.WordHashes.of(["one two three four five six seven", "eleven twelve"], [["a kiln", "quern"]])
    record = absence.Record(
        frozenset({absence.path_hash("a.md")}), frozenset({"d"}), frozenset({"s"}), frozenset(), words
    )
    absence.remember(UPath(tmp_path), record)
    assert absence.recall(UPath(tmp_path), "a.md") == absence.recall(UPath(tmp_path), "d") == record
    assert absence.recall(UPath(tmp_path), "b.md") is None
    (path,) = (tmp_path / "forgotten").iterdir()
    path.write_text("{}")
    with pytest.raises(StorageError, match="is no record of a forgotten document"):
        absence.recall(UPath(tmp_path), "a.md")


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_renamed_documents_go_with_all_their_names_and_copies_stay_under_their_own(prepared):
    project, _ = prepared

    def done(*command):
        status, output = project.command(*command)
        assert status == 0, output
        return output

    words = {
        name: [line.split()[1] for line in (project.documents / name).read_text().splitlines() if line[:3] == "## "]
        for name in ("topic-02.md", "topic-06.md")
    }
    (project.documents / "topic-06.md").rename(project.documents / "renamed.md")
    shutil.copy(project.documents / "topic-02.md", project.documents / "zcopy.md")
    done("sdg")
    reports = project.store / "reports"
    reports.mkdir(exist_ok=True)
    (reports / "latest.html").symlink_to("gone.html")
    for name in ("renamed.md", "topic-02.md"):
        (project.documents / name).unlink()
        done("forget", f"./{name}")
    assert holding(project, words["topic-06.md"]) == []
    assert holding(project, words["topic-02.md"])
    _, said = project.command("forget", "--check", "topic-02.md")
    assert "paths in table corpus" in said
    done("sdg")
    paths = set(project.table("corpus")["path"])
    assert "zcopy.md" in paths
    assert not paths & {"topic-02.md", "topic-06.md", "renamed.md"}
    for name in ("renamed.md", "topic-02.md"):
        _, said = project.command("forget", "--check", name)
        assert "paths in table" not in said
