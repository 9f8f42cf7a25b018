"""People's corrections as an asset of the graph: written by the inspection page, read by the steps that honour them."""

from collections.abc import Mapping
from dataclasses import dataclass

import dagster as dg
from upath import UPath

from embed_pipeline import tables
from embed_pipeline.orchestration.freshness import DATA_VERSION, data_versions
from embed_pipeline.orchestration.presentation import OWNERS, column_schema
from embed_pipeline.reviews import ReviewVerdict, fold_reviews, read_reviews

QA_REVIEWS = dg.AssetKey(tables.QA_REVIEWS.name)
qa_reviews = dg.AssetSpec(
    QA_REVIEWS,
    description=f"{tables.QA_REVIEWS.description} Made by: embed-pipeline inspect, with inspection.corrections.",
    metadata={"dagster/column_schema": column_schema(tables.QA_REVIEWS)},
    group_name="1_sdg",
    owners=OWNERS,
    kinds={"polars"},
)


@dataclass(frozen=True)
class Reviews:
    """The corrections that a step honours.

    Attributes:
        verdicts: what they come to, pair by pair.
        version: table to the version that was read; empty where nobody has reviewed anything.
    """

    verdicts: Mapping[str, ReviewVerdict]
    version: Mapping[str, str]

    @classmethod
    def of(cls, root: UPath) -> "Reviews":
        """Those stored now.

        Raises:
            StorageError: a file of them is damaged, or its storage cannot be reached.
        """
        stored = read_reviews(root)
        version = {} if stored is None else {tables.QA_REVIEWS.name: tables.content_hash(stored)}
        return cls(fold_reviews(stored), version)


def report_reviews(instance: dg.DagsterInstance, root: UPath) -> None:
    """Record the reviews as they are stored now, where they are others than those recorded last.

    What was made from the ones before is stale from then on.
    """
    stored = read_reviews(root)
    if stored is None:
        return
    version = tables.content_hash(stored)
    if data_versions(instance, QA_REVIEWS).get(None) != version:
        facts = {"dagster/row_count": stored.height, "pairs": stored["qa_id"].n_unique()}
        instance.report_runless_asset_event(
            dg.AssetMaterialization(QA_REVIEWS, metadata=facts, tags={DATA_VERSION: version})
        )
