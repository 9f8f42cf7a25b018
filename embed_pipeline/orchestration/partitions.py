"""Document batches as Dagster partitions, and when stages follow what they read."""

from typing import Any

import dagster as dg

document_batches = dg.DynamicPartitionsDefinition(name="document_batch")
"""One partition for each batch of new, changed or deleted files; :mod:`embed_pipeline.corpus.batches` cuts them."""
Condition = dg.AutomationCondition[Any]
_REVIEWS = dg.AssetSelection.assets("qa_reviews")
"""People correct pair after pair: the next run honours them all, and none is started for each."""


def chosen_batch(context: dg.AssetExecutionContext) -> str:
    """The batch that the run is for.

    Raises:
        dagster.Failure: it was started without one.
    """
    if not context.has_partition_key:
        message = "this asset is made batch by batch: choose a partition of document_batch in Materialize"
        raise dg.Failure(message, allow_retries=False)
    return str(context.partition_key)


def all_batches() -> dg.AssetIn:
    """An input that holds every batch's table: batch name to frame; batches not yet made are left out."""
    return dg.AssetIn(
        partition_mapping=dg.AllPartitionMapping(),
        metadata={"allow_missing_partitions": True, "by_batch": True},
    )


def follow(name: str) -> Condition:
    """Run when the input ``name`` is new, no input is being made, and every blocking check on them has passed.

    It is the input that is made last. Another one that is new alone, such as a corpus whose questions still wait for a
    batch, does not go together with the old ones.
    """
    news = dg.AutomationCondition.any_deps_updated().allow(dg.AssetSelection.assets(name))
    return _after(news) & ~dg.AutomationCondition.any_deps_missing().ignore(_REVIEWS)


def follow_batches(*overall: str) -> Condition:
    """Run when any input is new, for a fan-in over all batches: one that failed does not hold up the others.

    Args:
        overall: names of the inputs that are no batches; these must be there.
    """
    condition = _after(dg.AutomationCondition.any_deps_updated().ignore(_REVIEWS))
    for name in overall:
        missing = dg.AutomationCondition.any_deps_missing().allow(dg.AssetSelection.assets(name))
        condition &= ~missing
    return condition


def _after(news: Condition) -> Condition:
    """Due from the moment that something is new until it is asked for.

    Unlike ``since_last_handled``, which forgets an input that became new while the asset was being made, and one that
    is seen in the tick after the request: neither was read. An asset that is missing although there is something to
    make it of, as where the sensor is switched on late, is due from the first tick on.
    """
    start, missing = dg.AutomationCondition.initial_evaluation(), dg.AutomationCondition.missing()
    late = missing & dg.AutomationCondition.any_deps_match(~missing)
    due: Condition = dg.AutomationCondition.newly_missing() | news | (start & late)
    handled = (dg.AutomationCondition.newly_requested() & ~due) | (start & ~late)
    return (
        due.since(handled)
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    )
