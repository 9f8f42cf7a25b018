"""The assets as the settings want them: code versions and how long each stays fresh."""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

import dagster as dg

from embed_pipeline.methods import made_by
from embed_pipeline.settings import Settings
from embed_pipeline.synthesis.prompts import (
    ARTIFACT_PROMPTS,
    COMPLETION_PROMPTS,
    JUDGE_PROMPTS,
    STRUCTURED_PROMPTS,
    prompt_version,
)
from embed_pipeline.training_data.pair_sources import labels_version

_PROMPTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "document_artifacts": ARTIFACT_PROMPTS,
        "qa_pairs": (*COMPLETION_PROMPTS, *STRUCTURED_PROMPTS),
        "qa_scores": JUDGE_PROMPTS,
    }
)
# Steps that read the files of training_data.label_sets.
_LABELLED = ("corpus", "qa_dataset", "hard_negatives")
_KEPT_FRESH = ("corpus", "deployment")


def code_version(step: str, settings: Settings) -> str:
    """What a step is made by, with the prompts and label files in play."""
    parts = [made_by(step, settings)]
    if step in _PROMPTS:
        parts.append(prompt_version(*_PROMPTS[step]))
    if step in _LABELLED:
        parts.append(labels_version(settings))
    return "-".join(parts)


def with_settings(assets: dg.AssetsDefinition, settings: Settings) -> dg.AssetsDefinition:
    """``assets``, one step, with its code version, and a freshness policy where the UI warns of what is old."""
    version = code_version(assets.op.name, settings)
    days = settings.orchestration.fresh_days
    fresh = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=2 * days), warn_window=timedelta(days=days))
    return assets.map_asset_specs(
        lambda spec: spec.replace_attributes(
            code_version=version, freshness_policy=fresh if spec.key.to_user_string() in _KEPT_FRESH else None
        )
    )
