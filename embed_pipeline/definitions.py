"""The Dagster entry point: assets in the order in which data flows, checks, jobs, automation, storage, executor."""

import dagster as dg

from embed_pipeline.machine import sleep_at_barriers
from embed_pipeline.orchestration.automation import all_schedules, all_sensors
from embed_pipeline.orchestration.checks import all_checks
from embed_pipeline.orchestration.executors import stage_executor
from embed_pipeline.orchestration.freshness import with_settings
from embed_pipeline.orchestration.io_managers import ModelFolderIOManager, ParquetIOManager
from embed_pipeline.orchestration.jobs import all_assets, all_jobs
from embed_pipeline.orchestration.promotion import champion
from embed_pipeline.orchestration.resources import MLflow
from embed_pipeline.orchestration.reviewing import qa_reviews
from embed_pipeline.settings import Settings, load_settings
from embed_pipeline.shelf import Shelf


def build_definitions(settings: Settings) -> dg.Definitions:
    """Everything that Dagster knows of the product, under these settings.

    Raises:
        SettingsError: ``orchestration.training_cron`` is no schedule.
    """
    assets = [with_settings(definition, settings) for definition in all_assets]
    return dg.Definitions(
        assets=[*assets, qa_reviews, champion],
        asset_checks=all_checks,
        jobs=all_jobs,
        sensors=all_sensors(settings),
        schedules=all_schedules(settings),
        resources={
            "settings": settings,
            "tables": ParquetIOManager(settings.paths.root / "tables", settings.seed),
            "models": ModelFolderIOManager(Shelf.of(settings.paths).under("models")),
            "bundles": ModelFolderIOManager(Shelf.of(settings.paths)),
            "mlflow": MLflow.of(settings),
        },
        executor=stage_executor(settings.orchestration, assets),
    )


sleep_at_barriers()
defs = build_definitions(load_settings())
