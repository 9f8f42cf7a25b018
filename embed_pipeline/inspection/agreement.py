"""Judge and reviewers: how often the thresholds decide as people do, and what other thresholds would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from embed_pipeline.enumerations import CRITERIA
from embed_pipeline.reviews import ReviewVerdict
from embed_pipeline.settings import Gates, Synthesis

SCORES = (*CRITERIA, "overall")
_SCORE_BOUNDS = tuple(step / 2 for step in range(2, 21))
_RANK_BOUNDS = (1, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Share:
    """A share of some pairs, with its 95 % interval (Wilson 1927).

    Attributes:
        count: how many of them.
        total: of how many.
    """

    count: int
    total: int

    @property
    def value(self) -> float | None:
        """The share; None: there are no pairs."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """Its ends; 0 and 1 where there are no pairs."""
        from scipy.stats import binomtest

        if not self.total:
            return 0.0, 1.0
        found = binomtest(self.count, self.total).proportion_ci(method="wilson")
        return float(found.low), float(found.high)


@dataclass(frozen=True)
class Agreement:
    """The thresholds against people, over the pairs that both decided on.

    Attributes:
        agree: pairs on which they decide alike.
        too_kind: of those that the thresholds accept, the ones that people reject.
        too_strict: of those that the thresholds reject, the ones that people accept.
        between: of pairs that two people or more decided on, those that all of them decided alike.
    """

    agree: Share
    too_kind: Share
    too_strict: Share
    between: Share

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond chance; None: one of both always decides alike, or there are no pairs."""
        total = self.agree.total
        accepted, kind = self.too_kind.total, self.too_kind.count
        people = accepted - kind + self.too_strict.count
        chance = (accepted * people + (total - accepted) * (total - people)) / total**2 if total else 1.0
        return (self.agree.count / total - chance) / (1 - chance) if chance < 1 else None


@dataclass(frozen=True)
class Point:
    """What one bound does while all others stay.

    Attributes:
        bound: the bound.
        accepted: of all judged pairs, those accepted.
        agree: of those that people decided on, the ones on which they agree.
        good: of those accepted that people decided on, the ones that they accept.
    """

    bound: float
    accepted: Share
    agree: Share
    good: Share


@dataclass(frozen=True)
class Curve:
    """A bound moved: setting, its present value, and what each other value would do."""

    setting: str
    now: float
    points: list[Point]


def judged_pairs(
    scores: pl.DataFrame, decisions: pl.DataFrame, verdicts: Mapping[str, ReviewVerdict], synthesis: Synthesis
) -> pl.DataFrame:
    """Every judged pair with what each rule says (``min_clarity`` and so on, true: it passes) and what people say.

    Duplicates are left to the pipeline: a question that is asked twice is neither good nor bad. Pairs that people
    edited say nothing of the judge, who read other words: for them ``people`` is null, as where nobody decided.

    Args:
        scores: frame of :data:`tables.QA_SCORES`.
        decisions: frame of :data:`tables.QA_DECISIONS`.
        verdicts: what people said.
        synthesis: the bounds.
    """
    said = {
        key: one.accepted
        for key, one in verdicts.items()
        if one.accepted is not None and one.question is None and one.answer is None
    }
    people = pl.DataFrame(list(said.items()), schema={"qa_id": pl.String, "people": pl.Boolean}, orient="row")
    ranks = decisions.select("qa_id", rank="round_trip_rank").unique("qa_id", keep="last")
    joined = (
        scores.unique("qa_id", keep="last").join(ranks, on="qa_id", how="inner").join(people, on="qa_id", how="left")
    )
    # Where both judges spoke, a threshold holds for either's score.
    lower = [pl.min_horizontal(name, f"measured_{name}").alias(name) for name in SCORES]
    joined = joined.with_columns(lower)
    rules = [(pl.col(name) >= getattr(synthesis, f"min_{name}")).alias(f"min_{name}") for name in SCORES]
    rank = (pl.col("rank") <= synthesis.max_round_trip_rank).alias("max_round_trip_rank")
    return joined.select("qa_id", *SCORES, "rank", "people", *rules, rank, "hops_needed")


def measure_agreement(judged: pl.DataFrame, reviews: pl.DataFrame) -> Agreement:
    """The thresholds against people.

    Args:
        judged: frame of :func:`judged_pairs`.
        reviews: frame of :data:`tables.QA_REVIEWS`.
    """
    both = judged.filter(pl.col("people").is_not_null()).select("people", passes=_passes())
    accepted, rejected = both.filter("passes"), both.filter(~pl.col("passes"))
    decided = reviews.filter(pl.col("action").is_in(["accept", "reject"])).sort("reviewed_at", "review_id")
    each = decided.group_by("qa_id", "reviewer").agg(pl.col("action").last())
    shared = each.group_by("qa_id").agg(people=pl.len(), words=pl.col("action").n_unique()).filter(pl.col("people") > 1)
    return Agreement(
        agree=_share(both["people"] == both["passes"]),
        too_kind=_share(~accepted["people"]),
        too_strict=_share(rejected["people"]),
        between=_share(shared["words"] == 1),
    )


def threshold_curves(judged: pl.DataFrame, synthesis: Synthesis) -> list[Curve]:
    """What each bound would do at other values, all others as they are set.

    Args:
        judged: frame of :func:`judged_pairs`.
        synthesis: the bounds.
    """
    curves = []
    for name in SCORES:
        setting = f"min_{name}"
        others = judged.select(_passes(but=setting)).to_series()
        points = [_point(judged, others & (judged[name] >= bound), bound) for bound in _SCORE_BOUNDS]
        curves.append(Curve(f"synthesis.{setting}", getattr(synthesis, setting), points))
    others = judged.select(_passes(but="max_round_trip_rank")).to_series()
    points = [_point(judged, others & (judged["rank"] <= bound), bound) for bound in _RANK_BOUNDS]
    curves.append(Curve("synthesis.max_round_trip_rank", synthesis.max_round_trip_rank, points))
    return curves


def _passes(but: str = "") -> pl.Expr:
    rules: Sequence[str] = (*(f"min_{name}" for name in SCORES), "max_round_trip_rank", "hops_needed")
    return pl.all_horizontal(rule for rule in rules if rule != but)


def _point(judged: pl.DataFrame, accepted: pl.Series, bound: float) -> Point:
    known = judged["people"].is_not_null()
    people = judged["people"].filter(known)
    decided = accepted.filter(known)
    return Point(bound, _share(accepted), _share(people == decided), _share(people.filter(decided)))


def _share(found: pl.Series) -> Share:
    return Share(int(found.sum()), len(found))


def agreement_failures(agreement: Agreement, gates: Gates) -> tuple[list[str], dict[str, float | None]]:
    """Whether the thresholds surely decide too often otherwise than people, in words, and the figures.

    Args:
        agreement: what was measured.
        gates: ``min_judge_agreement``.
    """
    low, high = agreement.agree.interval
    figures = {
        "reviewed_pairs": agreement.agree.total,
        "agreement": agreement.agree.value,
        **({"agreement_low": low, "agreement_high": high} if agreement.agree.total else {}),
        "accepted_that_people_reject": agreement.too_kind.value,
        "rejected_that_people_accept": agreement.too_strict.value,
        "kappa": agreement.kappa,
        "people_agree_with_each_other": agreement.between.value,
        "min_judge_agreement": gates.min_judge_agreement,
    }
    if not agreement.agree.total or high >= gates.min_judge_agreement:
        return [], figures
    said = (
        f"thresholds and reviewers agree on {agreement.agree.count} of {agreement.agree.total} pairs (95 % interval "
        f"{low:.2f} to {high:.2f}), bound {gates.min_judge_agreement:g}; the page Judge and reviewers of "
        "embed-pipeline inspect shows what other thresholds would do"
    )
    return [said], figures
