"""What an asset hands to storage, and its errors as Dagster should treat them: final or worth another try."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import dagster as dg
import polars as pl

from embed_pipeline.llm.transport import TooManyFailures
from embed_pipeline.orchestration.freshness import FINGERPRINT, fingerprint
from embed_pipeline.orchestration.presentation import column_lineage
from embed_pipeline.orchestration.store_lock import COMMAND_TAG
from embed_pipeline.settings import Settings
from embed_pipeline.tables import content_hash


def stored(
    context: dg.AssetExecutionContext,
    value: pl.DataFrame | Path,
    settings: Settings,
    *,
    asset: str | None = None,
    metadata: dict[str, Any] | None = None,
    read: Mapping[str, str] = MappingProxyType({}),
) -> dg.Output[Any]:
    """An output whose data version is its content, with the effective settings and what it was made from.

    Args:
        context: the step's context.
        value: a table's frame, or a staged folder that is named for its content.
        settings: the effective settings.
        asset: which asset, where the step makes several.
        metadata: figures and pictures of this materialization.
        read: input to its version, of those that the step read from storage itself.
    """
    key = dg.AssetKey(asset) if asset else context.asset_key
    batch = context.partition_key if context.has_partition_key and context.assets_def.partitions_def else None
    version = value.name if isinstance(value, Path) else content_hash(value)
    return dg.Output(
        value,
        output_name=asset or "result",
        data_version=dg.DataVersion(version),
        metadata={
            **(metadata or {}),
            **column_lineage(key, context.assets_def.asset_deps[key]),
            "settings": dg.MetadataValue.json(settings.flat()),
            FINGERPRINT: fingerprint(context.instance, context.assets_def, key, batch, read),
        },
    )


_LOADED = time.time()
"""About when this process began: a command loads this module before it asks anything."""
RETRIES = 2
RETRY_SECONDS = 20.0
"""Wait before a step that asks an endpoint is tried again; twice as long before the next time."""


def in_this_run(context: dg.AssetExecutionContext, settings: Settings) -> Settings:
    """The settings with caps on the language model that hold for the whole run, or for all runs of a command."""
    if COMMAND_TAG in context.run.tags:
        return settings.since(_LOADED)
    record = context.instance.get_run_record_by_id(context.run_id)
    return settings.since(record.start_time) if record and record.start_time else settings


@contextmanager
def explained(context: dg.AssetExecutionContext | None = None) -> Iterator[None]:
    """Turn an error that the product raised itself into a Dagster failure with the same words and no retry.

    Such an error says what a person has to do, so repeating the step cannot fix it. An endpoint that did not answer
    (:class:`TooManyFailures`), and what libraries and the machine raise, may pass. A retry policy of the step would
    also repeat it after Ctrl-C, so the retry is requested here.

    Args:
        context: of a step that asks an endpoint, which is tried again after an error that may pass: answers are stored,
            so nothing is asked twice.

    Raises:
        Failure: the product's own error.
        RetryRequested: an error that may pass, in a step that asks an endpoint.
    """
    try:
        yield
    except Exception as error:
        own = isinstance(error, RuntimeError | ValueError) and type(error).__module__.startswith("embed_pipeline.")
        if own and not isinstance(error, TooManyFailures):
            raise dg.Failure(description=str(error), allow_retries=False) from error
        if context is None:
            raise
        wait = RETRY_SECONDS * 2**context.retry_number
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=wait) from error
