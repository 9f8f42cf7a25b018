import dagster as dg
import pytest

from embed_pipeline import tables
from embed_pipeline.orchestration.checks import generated_set, tuned_is_better
from embed_pipeline.settings import Settings
from embed_pipeline_tests.evaluation.test_gates import metrics


def figures(result: dg.AssetCheckResult) -> dict[str, object]:
    return {name: value.value for name, value in result.metadata.items() if name != "failures"}


def test_a_passed_gate_shows_what_was_measured_and_the_bound() -> None:
    result = tuned_is_better(Settings(), metrics(generated=(0.5, 0.55), people=(0.4, 0.41)))
    assert isinstance(result, dg.AssetCheckResult)
    assert result.passed
    assert figures(result) == {
        "generated_base_ndcg_10": 0.5,
        "generated_tuned_ndcg_10": 0.55,
        "people_base_ndcg_10": 0.4,
        "people_tuned_ndcg_10": 0.41,
        "min_gain": 0.0,
    }
    assert "generated_tuned_ndcg_10 0.55" in (result.description or "")


def test_a_failed_gate_says_why_and_keeps_its_figures() -> None:
    result = tuned_is_better(Settings(), metrics(generated=(0.5, 0.4)))
    assert isinstance(result, dg.AssetCheckResult)
    assert not result.passed
    assert "below the least relative gain" in (result.description or "")
    assert figures(result)["generated_tuned_ndcg_10"] == pytest.approx(0.4)


@pytest.mark.parametrize(("sources", "severity"), [("generated", "ERROR"), ("structure", "WARN")])
def test_too_few_pairs_name_their_setting_and_stop_only_what_is_generated(sources: str, severity: str) -> None:
    settings = Settings.model_validate({"training_data": {"sources": [sources]}})
    frames = (table.empty() for table in (tables.QA_DATASET, tables.QA_DECISIONS, tables.CORPUS))
    result = next(iter(generated_set(settings, *frames)))  # type: ignore[call-overload]
    assert (result.check_name, result.passed, result.severity.name) == ("enough_accepted_pairs", False, severity)
    assert result.description == "0, bound gates.min_accepted_pairs = 20"
