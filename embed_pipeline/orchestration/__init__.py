"""Dagster: assets, checks, storage, jobs, automation. The stage rooms know nothing of it."""

import warnings

import dagster as dg

# Output(data_version=...) is marked beta; the dependency is pinned to the minor version that it was tested with.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
