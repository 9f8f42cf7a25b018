"""Settings: file, environment and command line, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed_pipeline.settings import Settings, SettingsError, load_settings, override_variable


def load(tmp_path, toml="", **environment):
    path = tmp_path / "settings.toml"
    path.write_text(toml, encoding="utf-8")
    return load_settings(path, environment)


def test_the_environment_overrides_the_file(tmp_path):
    toml = "seed = 3\n[synthesis]\nmax_hops = 2\nquestions_per_segment = 4\n[evaluation]\ncutoffs = [10]\n"
    settings = load(tmp_path, toml, EMBED_PIPELINE_SYNTHESIS__MAX_HOPS="1")
    assert (settings.seed, settings.synthesis.max_hops, settings.synthesis.questions_per_segment) == (3, 1, 4)
    assert settings.evaluation.cutoffs == (10,)


def test_lists_and_none_come_from_the_environment(tmp_path):
    settings = load(
        tmp_path,
        EMBED_PIPELINE_CORPUS__SUFFIXES=".md,.txt",
        EMBED_PIPELINE_LLM__BASE_URL="none",
        EMBED_PIPELINE_EVALUATION__LABELLED="a,b/c",
    )
    assert settings.corpus.suffixes == (".md", ".txt")
    assert settings.llm.base_url is None
    assert settings.evaluation.labelled == (Path("a"), Path("b/c"))


def test_the_command_line_names_a_variable():
    assert override_variable("synthesis.max_hops=2") == ("EMBED_PIPELINE_SYNTHESIS__MAX_HOPS", "2")
    assert override_variable("seed=5") == ("EMBED_PIPELINE_SEED", "5")
    for wrong in ("synthesis.max_hops", "max_hops=2", "a.b.c=1"):
        with pytest.raises(SettingsError, match="expected stage.name=value"):
            override_variable(wrong)


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[synthesis]\nmax_hop = 2\n", "unknown setting 'synthesis.max_hop'; did you mean 'synthesis.max_hops'"),
        ("[sinthesis]\nmax_hops = 2\n", "unknown setting 'sinthesis'; did you mean 'synthesis'"),
        ("[synthesis]\nmax_hops = 9\n", "synthesis.max_hops = 9: Input should be less than or equal to 5"),
        ("[training]\ntemperature = 0\n", "training.temperature = 0: Input should be greater than 0"),
        (
            "[serving]\nmax_batch_tokens = 127\n",
            "serving.max_batch_tokens = 127: Input should be greater than or equal",
        ),
        ("[training]\ncontrastive = false\n", "the tuned model would be the base; set linear_adapter"),
        ("[synthesis]\nmin_complexity = 4\nmax_complexity = 2\n", "min_complexity is 4, above max_complexity 2"),
        ("[evaluation]\ncutoffs = [1, 5]\n", "10 must be among them"),
        ("[training_data]\ndev_share = 0.6\ntest_share = 0.5\n", "leave nothing to train on"),
        ("[llm", "is not TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_name_value_and_bound(tmp_path, toml, says):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, toml)
    assert says in str(caught.value)


def test_an_unknown_variable_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="unknown setting 'training.temprature'"):
        load(tmp_path, EMBED_PIPELINE_TRAINING__TEMPRATURE="0.1")


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(SettingsError, match="absent.toml: No such file"):
        load_settings(tmp_path / "absent.toml", {})


def test_run_records_hold_every_value_and_no_password(tmp_path):
    settings = load(tmp_path, '[tracking]\nuri = "postgresql://mlflow:hunter2@host/db"\n')
    flat = settings.flat()
    assert flat["tracking.uri"] == "postgresql://mlflow:***@host/db"
    assert flat["training.temperature"] == 0.02
    assert set(flat) == set(Settings().flat())


def test_the_digest_follows_the_named_groups_alone(tmp_path):
    base, changed = load(tmp_path), load(tmp_path, "[training]\nepochs = 2\n")
    assert base.digest("training") != changed.digest("training")
    assert base.digest("corpus") == changed.digest("corpus")


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("0 3 * *", "has 4 fields; expected five"),
        ("61 3 * * *", "minute is '61'; expected"),
        ("0 3 * * mon", "weekday is 'mon'; expected"),
    ],
)
def test_a_wrong_cron_is_refused(tmp_path, cron, says):
    with pytest.raises(SettingsError, match="orchestration.training_cron") as caught:
        load(tmp_path, EMBED_PIPELINE_ORCHESTRATION__TRAINING_CRON=cron)
    assert says in str(caught.value)


def test_a_cron_may_hold_lists_ranges_and_steps(tmp_path):
    cron = "*/15 2-4 1,15 * 1-5"
    assert load(tmp_path, EMBED_PIPELINE_ORCHESTRATION__TRAINING_CRON=cron).orchestration.training_cron == cron
