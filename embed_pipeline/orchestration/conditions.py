"""When the cheap stages run by themselves: after what they read has changed and its blocking checks have passed."""

from typing import Any

import dagster as dg

Condition = dg.AutomationCondition[Any]


def follow_inputs() -> Condition:
    """Run when an input is new, none is being made, and every blocking check on them has passed."""
    return _follow() & ~dg.AutomationCondition.any_deps_missing()


def follow_batches(*overall: str) -> Condition:
    """As :func:`follow_inputs`, for a fan-in over all batches: one that failed does not hold up the others.

    Args:
        overall: names of the inputs that are no batches; these must be there.
    """
    condition = _follow()
    for name in overall:
        missing = dg.AutomationCondition.any_deps_missing().allow(dg.AssetSelection.assets(name))
        condition &= ~missing
    return condition


def _follow() -> Condition:
    news = dg.AutomationCondition.newly_missing() | dg.AutomationCondition.any_deps_updated()
    return (
        news.since_last_handled()
        & ~dg.AutomationCondition.any_deps_in_progress()
        & ~dg.AutomationCondition.in_progress()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    )
