"""What to put into production: the base, the tuned model, or one of them together with BM25, and what it gains."""

from __future__ import annotations

from collections.abc import Sequence

from embed_pipeline.evaluation.query_sets import GENERATED
from embed_pipeline.evaluation.ranking import SetResult
from embed_pipeline.evaluation.significance import Verdict, judge
from embed_pipeline.settings import Settings

LABELS = {
    "base": "base",
    "tuned": "tuned",
    "bm25": "BM25",
    "hybrid_base": "BM25 + base",
    "hybrid_tuned": "BM25 + tuned",
}
"""System to its name for readers."""
# The least work first: adding a lexical index to the vectors is less than embedding the corpus again.
_BY_EFFORT = ("base", "hybrid_base", "tuned", "hybrid_tuned")


def advise(results: Sequence[SetResult], settings: Settings) -> list[str]:
    """What to deploy, a sentence for each set of people's questions, or for the generated ones without any.

    Of the systems that are shown to be better than the base, the one that is least work to put in place wins among
    those that the best is not shown to beat.

    Args:
        results: every query set, ranked and scored by all systems.
        settings: ``evaluation.bootstrap_samples`` and the seed.
    """
    peoples = [result for result in results if result.query_set.name != GENERATED]
    return [_advice(result, settings) for result in peoples or results]


def _advice(result: SetResult, settings: Settings) -> str:
    gains = {system: _less(result, system, "base", settings) for system in _BY_EFFORT}
    best = max(gains, key=lambda system: gains[system].difference)
    better = [system for system, gain in gains.items() if gain.low > 0]
    chosen = next((system for system in better if _less(result, best, system, settings).low <= 0), "base")
    figure = f"nDCG@10 {result.scores[chosen].column('nDCG', 10).mean():.3f}"
    name = result.query_set.name
    between = _figures(_less(result, "hybrid_tuned", "hybrid_base", settings))
    hybrids = f"{LABELS['hybrid_tuned']} against {LABELS['hybrid_base']}: {between}"
    if chosen == "base":
        return f"{name}: keep the base, {figure}; no system is shown to be better. {hybrids}"
    return f"{name}: deploy {LABELS[chosen]}, {figure}, {_figures(gains[chosen])} against the base. {hybrids}"


def _less(result: SetResult, system: str, other: str, settings: Settings) -> Verdict:
    """The verdict on ``system`` less ``other``."""
    values = (result.scores[each].column("nDCG", 10) for each in (other, system))
    return judge(*values, samples=settings.evaluation.bootstrap_samples, seed=settings.seed)


def _figures(verdict: Verdict) -> str:
    return f"{verdict.difference:+.3f} [{verdict.low:.3f}, {verdict.high:.3f}]"
