"""The Dagster entry point: assets in the order in which data flows, checks, jobs, automation, storage, executor."""

import dagster as dg

from embed_pipeline.orchestration.automation import all_schedules, all_sensors
from embed_pipeline.orchestration.checks import all_checks
from embed_pipeline.orchestration.executors import stage_executor
from embed_pipeline.orchestration.io_managers import ModelFolderIOManager, ParquetIOManager
from embed_pipeline.orchestration.jobs import all_assets, all_jobs
from embed_pipeline.orchestration.promotion import champion
from embed_pipeline.orchestration.resources import MLflow
from embed_pipeline.settings import load_settings
from embed_pipeline.shelf import Shelf

_settings = load_settings()

defs = dg.Definitions(
    assets=[*all_assets, champion],
    asset_checks=all_checks,
    jobs=all_jobs,
    sensors=all_sensors,
    schedules=all_schedules,
    resources={
        "tables": ParquetIOManager(_settings.paths.root / "tables", _settings.seed),
        "models": ModelFolderIOManager(Shelf.of(_settings.paths).under("models")),
        "bundles": ModelFolderIOManager(Shelf.of(_settings.paths)),
        "mlflow": MLflow.of(_settings),
    },
    executor=stage_executor(_settings.orchestration),
)
