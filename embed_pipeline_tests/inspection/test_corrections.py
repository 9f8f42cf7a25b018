"""From a correction on the page to the training examples, through Dagster."""

from __future__ import annotations

import json
from typing import Any

import httpx
import polars as pl
import pytest

from embed_pipeline.definitions import build_definitions
from embed_pipeline.lineage import stored_tables, trace
from embed_pipeline.orchestration.resources import open_instance
from embed_pipeline.orchestration.reviewing import report_reviews
from embed_pipeline.orchestration.runs import StageRunner
from embed_pipeline.settings import load_settings
from embed_pipeline_tests.inspection.material import inspected
from embed_pipeline_tests.inspection.test_inspector import send
from embed_pipeline_tests.project import made_up_name, small_project, well_behaved
from embed_pipeline_tests.stub_endpoint import stub_endpoint

DISLIKED = made_up_name(4)


def strict(request: dict[str, Any]) -> str:
    """A judge who turns away whatever names one thing, and a good model otherwise."""
    answer = well_behaved(request)
    kind = request.get("response_format", {}).get("json_schema", {}).get("name")
    about = request["messages"][-1]["content"]
    if kind == "JudgeAnswer" and f"does the {DISLIKED} " in about:
        return answer.replace("9.0", "2.0")
    return answer


@pytest.mark.slow
def test_corrections_reach_the_training_examples_and_ask_nobody_again(tiny_model, tmp_path, monkeypatch):
    with stub_endpoint(strict) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url)
        for name, value in project.environment.items():
            monkeypatch.setenv(name, value)
        settings = load_settings()
        with open_instance(project.store) as instance:
            runner = StageRunner(build_definitions(settings), instance, settings)
            for stage in ("sdg", "prep"):
                runner.run(stage)
            asked = len(stub.requests)
            decisions, mined = project.table("qa_decisions"), project.table("hard_negatives")
            low = decisions.filter(pl.col("reason") == "relevance")["qa_id"][0]
            split = project.table("dataset_split").filter(pl.col("split") == "train")
            train = mined.filter(pl.col("qa_id").is_in(split["qa_id"]), pl.col("negative_segment_ids").list.len() > 0)
            gone, marked = train["qa_id"][0], train.row(1, named=True)
            with inspected(settings.paths.root, corrections=True) as url, httpx.Client(base_url=url) as page:
                assert "rejected" in page.get(f"/pairs/{low}").text
                send(page, low, of=low, action="accept")
                send(page, gone, of=low, action="reject", comment="two in one")
                answer = marked["negative_segment_ids"][0]
                send(page, marked["qa_id"], of=low, action="positive", segment_id=answer)
                report_reviews(instance, settings.paths.root)
                outcomes = {stage: runner.run(stage) for stage in ("sdg", "prep")}
                assert "by Eva" in page.get(f"/pairs/{low}").text
            assert outcomes["sdg"].made == ["qa_dataset", "qa_decisions"]
            assert "hard_negatives" in outcomes["prep"].made
            assert len(stub.requests) == asked
            assert all(outcome.made == [] for outcome in (runner.run("sdg"), runner.run("prep")))
            read = stored_tables(settings.paths.root)
            dataset = set(project.table("qa_dataset")["qa_id"])
            assert (low in dataset, gone in dataset) == (True, False)
            examples = project.table("training_examples")
            assert gone not in set(examples["qa_id"])
            if trace(low, read).split["split"] == "train":
                assert low in set(examples["qa_id"])
            after = project.table("hard_negatives").filter(qa_id=marked["qa_id"]).row(0, named=True)
            assert answer not in after["negative_segment_ids"]
            assert trace(gone, read).reviews[0]["comment"] == "two in one"
            checks = instance.event_log_storage.get_latest_asset_check_execution_by_key(
                [key for key in runner._definitions.resolve_asset_graph().asset_check_keys if "reviewers" in key.name]
            )
            (record,) = checks.values()
            metadata = record.event.dagster_event.event_specific_data.metadata
            assert metadata["reviewed_pairs"].value == 2
    status, output = project.command("reviews", "export", str(tmp_path / "reviews.jsonl"))
    assert (status, "3 reviews in" in output) == (0, True), output
    lines = (tmp_path / "reviews.jsonl").read_text().splitlines()
    assert [json.loads(line)["action"] for line in lines] == ["accept", "reject", "positive"]
