"""From a correction on the page through Dagster to the training examples; the language model is asked nothing."""

from __future__ import annotations

import dagster as dg
import httpx
import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.definitions import build_definitions
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.orchestration.reviewing import QA_REVIEWS, report_reviews
from embed_pipeline.settings import Settings
from embed_pipeline_tests.inspection.material import filled, inspected, write_store
from embed_pipeline_tests.inspection.test_inspector import send
from embed_pipeline_tests.orchestration.test_reads import make

BATCH = "00001-0a1b2c3d"
STEPS = ("qa_dataset", "hard_negatives", "training_examples")


@pytest.mark.slow
def test_corrections_reach_the_training_examples(tiny_model, tmp_path):
    root = write_store(tmp_path)
    folder = tmp_path / "tables"
    for path in folder.glob("*/b1.parquet"):
        path.rename(path.with_name(f"{BATCH}.parquet"))
    sides = [{"qa_id": key, "split": "train", "document_ids": ["d1"]} for key in ("q1aa", "q2aa", "q3aa")]
    frames = {
        "dataset_split": filled(tables.DATASET_SPLIT, *sides),
        "base_model": tables.BASE_MODEL.frame([{"model": str(tiny_model)}]),
        "left_out_documents": tables.LEFT_OUT_DOCUMENTS.empty(),
    }
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    settings = Settings.model_validate(
        {
            "paths": {"store": tmp_path},
            "embedding": {"model": str(tiny_model)},
            "synthesis": {"near_duplicate_similarity": 1},
            "training_data": {"relative_margin": 0, "augment_below": 0},
        }
    )
    definitions = build_definitions(settings)

    def run(instance: dg.DagsterInstance) -> dict[str, pl.DataFrame]:
        for name in STEPS:
            make(definitions, instance, definitions.resolve_assets_def(dg.AssetKey(name)), None)
        made = (*STEPS, "qa_decisions")
        return {name: pl.read_parquet(folder / f"{name}.parquet") for name in made}

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(document_batches.name), [BATCH])
        before = run(instance)
        assert set(before["training_examples"]["qa_id"]) == {"q1aa", "q3aa"}
        mined = before["hard_negatives"].filter(qa_id="q3aa").row(0, named=True)
        answer = mined["negative_segment_ids"][0]
        with inspected(root, corrections=True) as url, httpx.Client(base_url=url) as page:
            assert "rejected" in page.get("/pairs/q2aa").text
            send(page, "q2aa", action="accept")
            send(page, "q1aa", action="reject", comment="two in one")
            send(page, "q3aa", action="positive", segment_id=answer)
            report_reviews(instance, root)
            after = run(instance)
            told = page.get("/pairs/q2aa").text
        assert "by Eva" in told
        decided = {row["qa_id"]: (row["reason"], row["detail"]) for row in after["qa_decisions"].to_dicts()}
        assert decided["q2aa"] == ("accepted", "by Eva")
        assert decided["q1aa"] == ("reviewer", "rejected by Eva")
        assert set(after["qa_dataset"]["qa_id"]) == {"q2aa", "q3aa"}
        assert set(after["training_examples"]["qa_id"]) == {"q2aa", "q3aa"}
        corrected = after["hard_negatives"].filter(qa_id="q3aa").row(0, named=True)
        assert answer in corrected["positive_segment_ids"]
        assert answer not in corrected["negative_segment_ids"]
        event = instance.get_latest_materialization_event(dg.AssetKey("hard_negatives"))
        read = event.asset_materialization.tags[f"dagster/input_data_version/{QA_REVIEWS.path[-1]}"]
        known = instance.get_latest_materialization_event(QA_REVIEWS)
        assert read == known.asset_materialization.tags["dagster/data_version"]
