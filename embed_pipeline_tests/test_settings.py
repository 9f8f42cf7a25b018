"""Settings: file, environment and command line, what is refused, and what each of them decides."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from embed_pipeline.settings import (
    PARTS,
    TRAINING,
    Group,
    Setting,
    Settings,
    SettingsError,
    Training,
    load_settings,
    override_variable,
    runs,
)

PACKAGE = Path(__file__).parent.parent / "embed_pipeline"
DEFINITIONS = {setting.name: setting for setting in Settings.definitions()}
# Another valid value of settings for which none follows from the type.
OTHERS: dict[str, Any] = {
    "serving.truncate": "END",
    "serving.allowed_origins": ("https://a.example",),
    "paths.assets": "memory://bucket/prefix",
    "llm.base_url": "http://127.0.0.1:9/v1",
    "synthesis.path": "structured",
    "synthesis.judge": "asked",
    "embedding.model": "packaged ",
    "embedding.context": "title",
    "corpus.language": "de",
    "synthesis.reasoning_types": {"factual": 1},
    "synthesis.styles": {"question": 1},
    "synthesis.example_queries": PACKAGE.parent / "data" / "sample" / "python-reference" / "queries.jsonl",
    "orchestration.training_cron": "5 4 * * *",
    "evaluation.cutoffs": (10,),
    "deployment.endpoint_prefixes": "client",
    "deployment.endpoint_precision": "fp16",
    "serving.max_batch_tokens": 256,
    "serving.max_request_tokens": 299_999,
    "serving.precision": "auto",
}
# Words of settings that are a choice of words.
WORDS = ("query", "plain", "fp32", "bf16", "cpu", "promote", "docker", "always", "eager", "faiss", "static", "torch")


def load(tmp_path, monkeypatch, toml="", **environment):
    path = tmp_path / "settings.toml"
    path.write_text(toml, encoding="utf-8")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings(path)


def test_the_environment_overrides_the_file(tmp_path, monkeypatch):
    toml = "seed = 3\n[synthesis]\nmax_hops = 2\nquestions_per_segment = 4\n[evaluation]\ncutoffs = [10]\n"
    settings = load(tmp_path, monkeypatch, toml, EMBED_PIPELINE_SYNTHESIS__MAX_HOPS="1")
    assert (settings.seed, settings.synthesis.max_hops, settings.synthesis.questions_per_segment) == (3, 1, 4)
    assert settings.evaluation.cutoffs == (10,)


def test_lists_tables_and_none_come_from_the_environment(tmp_path, monkeypatch):
    settings = load(
        tmp_path,
        monkeypatch,
        EMBED_PIPELINE_CORPUS__SUFFIXES=".md,.txt",
        EMBED_PIPELINE_LLM__BASE_URL="none",
        EMBED_PIPELINE_EVALUATION__QUERY_SETS="a,b/c",
        EMBED_PIPELINE_TRAINING_DATA__SOURCES="",
        EMBED_PIPELINE_SYNTHESIS__STYLES="question=3,keywords=1",
        EMBED_PIPELINE_LLM__MAX_COST="0",
    )
    assert settings.corpus.suffixes == (".md", ".txt")
    assert settings.llm.base_url is None
    assert settings.evaluation.query_sets == (Path("a"), Path("b/c"))
    assert settings.training_data.sources == ()
    assert settings.synthesis.styles == {"question": 3, "keywords": 1}
    assert settings.llm.max_cost == 0, "a cap of nothing, not no cap"


def test_none_and_auto_are_words_in_the_file_too(tmp_path, monkeypatch):
    toml = '[llm]\nmax_calls = "none"\n[training]\nepochs = "auto"\nbatch_size = 8\n[serving]\nport = "auto"\n'
    settings = load(tmp_path, monkeypatch, toml)
    assert (settings.llm.max_calls, settings.training.epochs, settings.training.batch_size) == (None, "auto", 8)
    assert settings.serving.port == "auto"


def test_the_command_line_names_a_variable():
    assert override_variable("synthesis.max_hops=2") == ("EMBED_PIPELINE_SYNTHESIS__MAX_HOPS", "2")
    assert override_variable("seed=5") == ("EMBED_PIPELINE_SEED", "5")
    for wrong in ("synthesis.max_hops", "max_hops=2", "a.b.c=1"):
        with pytest.raises(SettingsError, match="expected group.name=value"):
            override_variable(wrong)


def test_settings_built_in_code_read_no_environment(monkeypatch):
    monkeypatch.setenv("EMBED_PIPELINE_SEED", "5")
    assert Settings().seed == 17
    assert load_settings().seed == 5


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("[synthesis]\nmax_hop = 2\n", "unknown setting 'synthesis.max_hop'; did you mean 'synthesis.max_hops'"),
        ("[sinthesis]\nmax_hops = 2\n", "unknown setting 'sinthesis'; did you mean 'synthesis'"),
        ("[synthesis]\nmax_hops = 9\n", "synthesis.max_hops = 9: Input should be less than or equal to 5"),
        ("[training]\nloss_temperature = 0\n", "training.loss_temperature = 0: Input should be greater than 0"),
        ("[training]\nepochs = 0\n", "training.epochs = 0: Input should be greater than 0, or 'auto'"),
        ("[training]\nnegatives_per_example = 'x'\n", "= 'x': Input should be a valid integer, unable to parse string"),
        (
            "[serving]\nmax_batch_tokens = 127\n",
            "serving.max_batch_tokens = 127: Input should be greater than or equal to 128, or 'auto'",
        ),
        (
            "[training]\ncontrastive = false\n[adapter]\nshare = 0\n",
            "the tuned model would be the base; set adapter.share",
        ),
        ("[synthesis]\nmin_complexity = 4\nmax_complexity = 2\n", "min_complexity is 4, above max_complexity 2"),
        ("[evaluation]\ncutoffs = [1, 5]\n", "10 must be among them"),
        ("[training_data]\ndev_share = 0.6\ntest_share = 0.5\n", "leave nothing to train on"),
        (
            "[synthesis.styles]\nquestion = -1\n",
            "synthesis.styles.question = -1: Input should be greater than",
        ),
        ("[serving]\nhost = ' '\n", "serving.host = ' ': must be a text of one line"),
        ("[inspection]\nhost = ''\n", "inspection.host = '': must be a text of one line"),
        ('[serving]\nmodel_name = "a\\nb"\n', "must be a text of one line"),
        ("[serving]\nallowed_hosts = ['http://a.b']\n", "is no name of a host"),
        ("[serving]\nallowed_hosts = ['*']\n", "is no name of a host"),
        ("[serving]\nallowed_origins = ['a.b']\n", "is no origin, such as https://"),
        ("[paths]\nstore = ''\n", "paths.store = '': must be the path of a folder"),
        ("[paths]\ndocuments = ' '\n", "paths.documents = ' ': must be the path of a folder"),
        ("[paths]\ndocuments = 3\n", "paths.documents = 3: must be the path of a folder"),
        ("[llm", "is not TOML"),
    ],
)
def test_what_is_wrong_is_refused_by_name_value_and_bound(tmp_path, monkeypatch, toml, says):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, monkeypatch, toml)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "says"),
    [
        ("TRAINING__TEMPRATURE", "unknown setting 'training.temprature'"),
        ("SINTHESIS__MAX_HOPS", "unknown setting 'sinthesis.max_hops'; did you mean 'synthesis.max_hops'"),
        ("SEAD", "unknown setting 'sead'; did you mean 'seed'"),
        ("SEED__MAX_HOPS", "seed is a single setting, not a group"),
        ("SYNTHESIS", "setting synthesis = '1': Input should be a valid dictionary"),
    ],
)
def test_an_unknown_variable_is_refused(tmp_path, monkeypatch, variable, says):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, monkeypatch, **{f"EMBED_PIPELINE_{variable}": "1"})
    assert says in str(caught.value)


def test_a_named_file_must_exist(tmp_path):
    with pytest.raises(SettingsError, match="absent.toml: No such file"):
        load_settings(tmp_path / "absent.toml")
    # What Docker makes of a mount that is not there.
    with pytest.raises(SettingsError, match="is a folder; name a file"):
        load_settings(tmp_path)


def test_a_byte_order_mark_and_spaces_after_commas_are_no_part_of_a_value(tmp_path, monkeypatch):
    path = tmp_path / "settings.toml"
    path.write_bytes(b"\xef\xbb\xbf[training]\nepochs = 3\n")
    monkeypatch.setenv("EMBED_PIPELINE_EVALUATION__QUERY_SETS", "a, b,")
    monkeypatch.setenv("EMBED_PIPELINE_SYNTHESIS__STYLES", "question=1, keywords=2")
    settings = load_settings(path)
    assert settings.training.epochs == 3
    assert settings.evaluation.query_sets == (Path("a"), Path("b"))
    assert settings.synthesis.styles == {"question": 1, "keywords": 2}


def test_names_of_hosts_origins_and_folders_are_read_as_they_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBED_PIPELINE_SERVING__ALLOWED_HOSTS", '["Emb.example.com:443", " a.b. "]')
    monkeypatch.setenv("EMBED_PIPELINE_SERVING__ALLOWED_ORIGINS", "https://Notes.example/,*")
    monkeypatch.setenv("EMBED_PIPELINE_PATHS__STORE", "~/store")
    monkeypatch.setenv("EMBED_PIPELINE_CONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.serving.allowed_hosts == ("emb.example.com", "a.b")
    assert settings.serving.allowed_origins == ("https://notes.example", "*")
    assert settings.paths.store == tmp_path / "store"


def test_passwords_are_masked_in_records_and_in_errors(tmp_path, monkeypatch):
    settings = load(tmp_path, monkeypatch, '[tracking]\nuri = "postgresql://mlflow:hunter2@host/db"\n')
    flat = settings.flat()
    assert flat["tracking.uri"] == "postgresql://mlflow:***@host/db"
    assert flat["training.loss_temperature"] == 0.02
    assert set(flat) == set(DEFINITIONS)
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, monkeypatch, '[paths]\nassets = "ftp://me:hunter2@host/x"\n')
    assert "hunter2" not in str(caught.value)


def test_another_process_reads_the_same_values_from_its_environment(tmp_path, monkeypatch):
    settings = Settings.model_validate(
        {"serving": {"cores": 3}, "release": {"precisions": []}, "llm": {"max_calls": 4}}
    )
    groups = ("serving", "release", "gates", "llm", "synthesis")
    assert load(tmp_path, monkeypatch, **settings.as_environment(groups)) == settings


def test_a_setting_that_nobody_classified_is_refused():
    with pytest.raises(TypeError, match=r"Unclear\.other is not classified"):

        class Unclear(Group):
            known: int = runs(1)
            other: int = 2


def test_no_word_of_choice_is_spelled_as_a_number():
    spelled = [name for name, one in DEFINITIONS.items() if "0:" in (one.field.description or "")]
    assert spelled == [], "say auto, none, off, never or all"


@cache
def read_attributes() -> frozenset[str]:
    """Every attribute name that the package reads, outside settings.py."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "settings.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return frozenset(found)


@pytest.mark.slow
def test_no_setting_is_unread():
    # Bounds of acceptance are read by the name of their criterion.
    criteria = {f"synthesis.min_{name}" for name in ("relevance", "accuracy", "context_support", "clarity", "overall")}
    # Read by properties of settings.py.
    inside = {"paths.assets", "tracking.uri", "training_data.sources", "synthesis.judge"}
    unread = {name for name in DEFINITIONS if name.rpartition(".")[2] not in read_attributes()}
    assert unread <= criteria | inside


def other_value(setting: Setting) -> object:
    """A valid value that is not the default."""
    if setting.name in OTHERS:
        return OTHERS[setting.name]
    default, annotation, bounds = setting.field.default, setting.field.annotation, setting.field.metadata
    kept = TypeAdapter(Annotated[annotation, *bounds] if bounds else annotation)
    near = [default + step for step in (1, -1, 0.001, -0.001, 1e-6)] if type(default) in {int, float} else []
    shorter = [default[:-1]] if isinstance(default, tuple) else []
    opposite = [not default] if isinstance(default, bool) else []
    for value in (*near, *shorter, *opposite, 16, 0.5, "auto", "other", "high", *WORDS, ("other",), (16,)):
        try:
            found = kept.validate_python(value)
        except ValidationError:
            continue
        if found != default:
            return found
    raise AssertionError(setting.name)


def fitting(name: str) -> Settings:
    """Defaults, but for what has to be set otherwise before a setting may be changed."""
    return Settings(training=Training(sides="query")) if name == "adapter.query_encoder_share" else Settings()


def changed(settings: Settings, name: str, value: object) -> Settings:
    """Settings with another value, validated."""
    values: dict[str, Any] = {
        group: dict(own) if isinstance(own := getattr(settings, group), BaseModel) else own
        for group in Settings.model_fields
    }
    group, _, own = name.partition(".")
    if own:
        values[group][own] = value
    else:
        values[group] = value
    return Settings.model_validate(values)


@pytest.fixture(scope="module")
def code_versions():
    """Settings to the code versions that Dagster knows, by step, as the definitions are built from them."""
    from embed_pipeline.definitions import build_definitions

    def of(settings: Settings) -> dict[str, frozenset[str | None]]:
        assets = [one for one in build_definitions(settings).assets or [] if hasattr(one, "op")]
        return {one.op.name: frozenset(one.code_versions_by_key.values()) for one in assets}

    return of


def steps_of(*settings: Setting) -> set[str]:
    """The steps that these settings are declared to decide, an asset in place of its parts."""
    whole = {part: asset for asset, parts in PARTS.items() for part in parts}
    return {whole.get(asset, asset) for setting in settings for asset in setting.assets}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_setting_makes_stale_exactly_what_it_is_declared_to_decide(code_versions, name):
    before = fitting(name)
    value = other_value(DEFINITIONS[name])
    after = changed(before, name, value)
    assert after.flat()[name] != before.flat()[name]
    old, new = code_versions(before), code_versions(after)
    assert all(len(versions) == 1 and None not in versions for versions in old.values())
    stale = {step for step in old if old[step] != new[step]}
    assert stale == steps_of(DEFINITIONS[name])


def test_every_declared_asset_is_there_and_every_asset_has_a_code_version(code_versions):
    from embed_pipeline.methods import METHODS

    steps = code_versions(Settings())
    assert steps_of(*DEFINITIONS.values()) <= steps.keys()
    assert METHODS.keys() - {TRAINING} == steps.keys()


def test_only_what_decides_the_weights_changes_the_fingerprint_of_a_training():
    different = {
        name
        for name, setting in DEFINITIONS.items()
        if changed(fitting(name), name, other_value(setting)).digest(TRAINING) != fitting(name).digest(TRAINING)
    }
    assert different == {name for name, setting in DEFINITIONS.items() if TRAINING in setting.assets}
    assert "training.learning_rate" in different
    assert not different & {"adapter.share", "forgetting.max_loss", "embedding.device", "training.processes"}


def test_the_reference_is_current():
    root = PACKAGE.parent
    done = subprocess.run([sys.executable, "docs/settings.py"], cwd=root, capture_output=True, text=True, check=True)
    page = (root / "docs" / "settings.md").read_text(encoding="utf-8")
    assert done.stdout == page, "run: python docs/settings.py > docs/settings.md"
