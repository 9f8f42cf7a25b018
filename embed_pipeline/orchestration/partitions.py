"""Document batches as Dagster partitions."""

import dagster as dg

document_batches = dg.DynamicPartitionsDefinition(name="document_batch")
"""One partition for each batch of new, changed or deleted files; :mod:`embed_pipeline.corpus.batches` cuts them."""


def all_batches() -> dg.AssetIn:
    """An input that holds every batch's table: batch name to frame; batches not yet made are left out."""
    return dg.AssetIn(
        partition_mapping=dg.AllPartitionMapping(),
        metadata={"allow_missing_partitions": True, "by_batch": True},
    )
