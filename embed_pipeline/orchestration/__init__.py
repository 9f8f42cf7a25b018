"""Dagster: assets, checks, storage, jobs, automation. The stage rooms know nothing of it.

In: settings and the stage rooms' functions. Out: the definitions that :mod:`embed_pipeline.definitions` puts together.
Read in this order: ``assets`` (a module per stage), ``checks``, ``jobs``, ``partitions``, ``io_managers``,
``outputs``, ``presentation``, ``resources``; ``freshness`` and ``runs`` (what the commands do), ``automation``
(sensors and schedules), ``executors``, ``launcher`` and ``workers``; ``store_lock``; ``promotion``; ``reviewing``
(corrections); ``forgetting`` and ``absence``.
"""

import warnings

import dagster as dg

# Output(data_version=...) is marked beta; the dependency is pinned to the minor version that it was tested with.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
