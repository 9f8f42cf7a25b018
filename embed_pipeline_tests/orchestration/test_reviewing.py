"""Corrections make stale what honours them, and nothing else; a step records the ones that it read."""

from __future__ import annotations

import dagster as dg
import pytest
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.definitions import build_definitions
from embed_pipeline.orchestration import forgetting
from embed_pipeline.orchestration.freshness import FINGERPRINT, fingerprint
from embed_pipeline.orchestration.jobs import STAGES
from embed_pipeline.orchestration.reviewing import QA_REVIEWS, Reviews, report_reviews
from embed_pipeline.orchestration.runs import StageRunner
from embed_pipeline.reviews import ReviewJournal, read_reviews, review_row
from embed_pipeline.settings import Settings


@pytest.fixture
def settings(tmp_path):
    return Settings.model_validate({"paths": {"store": tmp_path}})


@pytest.fixture
def definitions(settings):
    return build_definitions(settings)


def made(instance, definitions, read=None):
    """Materialize everything over all batches, in name only."""
    for assets in (assets for stage in STAGES.values() for assets in stage if assets.partitions_def is None):
        own = definitions.resolve_assets_def(min(assets.keys))
        for key in sorted(own.keys, key=str):
            metadata = {FINGERPRINT: fingerprint(instance, own, key, None, read or {})}
            tags = {"dagster/data_version": "1"}
            instance.report_runless_asset_event(dg.AssetMaterialization(key, metadata=metadata, tags=tags))


def stale(instance, definitions, settings):
    rows = StageRunner(definitions, instance, settings).status()
    return {asset for _, asset, state, _ in rows if state == "stale"}


@pytest.mark.slow
def test_a_correction_makes_stale_what_honours_it(settings, definitions):
    root = UPath(settings.paths.store)
    with dg.DagsterInstance.ephemeral() as instance:
        report_reviews(instance, root)
        made(instance, definitions)
        assert stale(instance, definitions, settings) == set()
        journal = ReviewJournal(root)
        journal.append([review_row("q1", "accept", "Eva")])
        report_reviews(instance, root)
        assert stale(instance, definitions, settings) == {"qa_dataset", "qa_decisions", "hard_negatives"}
        before = Reviews.of(root)
        # Somebody goes on while a step is at work: the step honours what it read, and is stale again.
        journal.append([review_row("q2", "reject", "Eva")])
        report_reviews(instance, root)
        made(instance, definitions, before.version)
        assert stale(instance, definitions, settings) == {"qa_dataset", "qa_decisions", "hard_negatives"}
        made(instance, definitions, Reviews.of(root).version)
        assert stale(instance, definitions, settings) == set()
        events = instance.fetch_materializations(QA_REVIEWS, limit=9).records
        report_reviews(instance, root)
        assert len(instance.fetch_materializations(QA_REVIEWS, limit=9).records) == len(events) == 2


def test_nobody_is_nothing(settings):
    found = Reviews.of(UPath(settings.paths.store))
    assert (found.verdicts, found.version) == ({}, {})
    assert read_reviews(UPath(settings.paths.store)) is None
    assert tables.QA_REVIEWS.name == QA_REVIEWS.path[-1]


def test_what_was_said_of_a_forgotten_documents_pairs_is_removed(settings):
    root = UPath(settings.paths.store)
    for who in ("Eva", "Ivo"):
        ReviewJournal(root).append([review_row(f"q{number}", "accept", who) for number in (1, 2)])
    ReviewJournal(root).append([review_row("q3", "positive", "Eva", segment_id="s1")])
    traces = forgetting.Traces(frozenset(), frozenset(), frozenset({"s1"}), frozenset({"q1"}))
    with dg.DagsterInstance.ephemeral() as instance:
        assert forgetting._forget_reviews(traces, root, instance) == 3
        left = read_reviews(root)
        assert left["qa_id"].to_list() == ["q2", "q2"]
        event = instance.get_latest_materialization_event(QA_REVIEWS)
        assert event.asset_materialization.tags["dagster/data_version"] == tables.content_hash(left)
