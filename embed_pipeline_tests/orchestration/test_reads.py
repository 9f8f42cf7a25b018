"""Each asset reads only settings that are declared to decide it, or that decide nothing: watched over a whole run."""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from embed_pipeline.corpus.batches import cut_batches, load_batches
from embed_pipeline.definitions import build_definitions
from embed_pipeline.orchestration.assets.deploy import champion_comparison
from embed_pipeline.orchestration.jobs import STAGES
from embed_pipeline.orchestration.partitions import document_batches
from embed_pipeline.orchestration.resources import open_instance
from embed_pipeline.orchestration.runs import StageRunner
from embed_pipeline.release.manifest import MANIFEST_FILE
from embed_pipeline.release.releases import promote
from embed_pipeline.settings import PARTS, Group, Setting, Settings, load_settings
from embed_pipeline_tests.project import small_project, well_behaved
from embed_pipeline_tests.stub_endpoint import stub_endpoint

DEFINITIONS = {setting.name: setting for setting in Settings.definitions()}
# Read for a gate's sentence in metadata and reports, or for a refusal: nothing of it is stored.
GATES = {
    ("retrieval_evaluation", "forgetting.questions"),
    ("retrieval_evaluation", "forgetting.max_loss"),
    ("release", "forgetting.questions"),
    ("release", "forgetting.max_loss"),
    ("deployment", "release.min_fp16_cosine"),
    # A deployment and the check of a release set these three themselves.
    ("release", "embedding.precision"),
    ("release", "embedding.query_prefix"),
    ("release", "embedding.passage_prefix"),
    ("deployment", "embedding.precision"),
    ("deployment", "embedding.query_prefix"),
    ("deployment", "embedding.passage_prefix"),
    # Settings that a step makes itself are validated.
    ("finetuned_model", "embedding.candidates"),
    ("release", "embedding.model"),
    ("release", "embedding.candidates"),
}


@dataclass
class Watch:
    """Which settings each step read."""

    step: str = ""
    read: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    @contextmanager
    def over(self, step: str) -> Iterator[None]:
        self.step = step
        yield
        self.step = ""


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watched = Watch()
    groups = {type(getattr(Settings(), name)): name for name in Settings.model_fields if name != "seed"}

    def reading(self: Group, name: str) -> Any:
        if watched.step:
            group = groups.get(object.__getattribute__(self, "__class__"))
            setting = f"{group}.{name}" if group else name
            if setting in DEFINITIONS:
                watched.read[watched.step].add(setting)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(Group, "__getattribute__", reading, raising=False)
    return watched


def decides(setting: Setting, step: str) -> bool:
    return bool({step, *PARTS.get(step, ())} & {*setting.assets})


def make(
    definitions: dg.Definitions, instance: dg.DagsterInstance, assets: dg.AssetsDefinition, batch: str | None
) -> None:
    """Materialize one step, without its checks, in this process."""
    known = [one for one in definitions.assets or [] if isinstance(one, dg.AssetsDefinition)]
    result = dg.materialize(
        known,
        selection=dg.AssetSelection.assets(*assets.keys).without_checks(),
        instance=instance,
        resources=dict(definitions.resources or {}),
        partition_key=batch,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
    )
    assert result.success


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_a_step_reads_is_declared_and_another_adapter_trains_no_step(
    watch: Watch, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with stub_endpoint(well_behaved) as stub:
        project = small_project(
            tmp_path,
            tiny_model,
            stub.base_url,
            forgetting__questions="60",
            forgetting__max_loss="1",
            gates__max_labelled_loss="1",
            gates__min_champion_gain="-1",
            adapter__share="0",
            embedding__context="path",
            training_data__num_negatives="2",
            synthesis__max_questions="60",
        )
        for name, value in project.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(project.root)
        with open_instance(project.store) as instance:
            settings = load_settings()
            definitions = build_definitions(settings)
            cut_batches(settings)
            batches = [batch.name for batch in load_batches(settings.paths.root)]
            instance.add_dynamic_partitions(str(document_batches.name), batches)
            for assets in (assets for stage in STAGES.values() for assets in stage):
                for batch in batches if assets.partitions_def else [None]:
                    with watch.over(assets.op.name):
                        make(definitions, instance, assets, batch)
            # Under another name, the release that is served is one that the new one is held against.
            releases = project.store / "release"
            served = (releases / "current").read_text().strip()
            shutil.copytree(releases / served, releases / "v0-before")
            manifest = releases / "v0-before" / MANIFEST_FILE
            manifest.write_text(manifest.read_text().replace(f'"{served}"', '"v0-before"'))
            promote(settings.paths, "v0-before")
            with watch.over("champion_comparison"):
                make(definitions, instance, champion_comparison, None)
            monkeypatch.setenv("EMBED_PIPELINE_ADAPTER__SHARE", "0.5")
            settings = load_settings()
            definitions = build_definitions(settings)
            runner = StageRunner(definitions, instance, settings)
            with caplog.at_level(logging.INFO, "embed_pipeline"):
                assert runner.run("finetune").made == ["finetuned_model"]
            assert "is trained already" in caplog.text
            assert runner.run("finetune").made == []
            caplog.clear()
            with caplog.at_level(logging.INFO, "embed_pipeline"):
                assert runner.run("finetune", force=True).made == ["finetuned_model"]
            assert "is trained already" not in caplog.text
    undeclared = {
        (step, name)
        for step, names in watch.read.items()
        for name in names
        if DEFINITIONS[name].kind == "decides" and not decides(DEFINITIONS[name], step)
    }
    assert undeclared - GATES == set()
    seen = {(step, name) for step, names in watch.read.items() for name in names}
    assert seen >= GATES, "what is no longer read needs no exception"
