"""The whole graph as a user runs it: the command in a process of its own, a stub endpoint on a real socket."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import time
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from mlflow.tracking import MlflowClient

from embed_pipeline.llm.store import ResponseStore
from embed_pipeline.orchestration.jobs import STAGES
from embed_pipeline.orchestration.resources import open_instance
from embed_pipeline.synthesis.judge import PLANTED_OF_A_KIND
from embed_pipeline.tracking import Tracker
from embed_pipeline_tests.manuals import MANUALS
from embed_pipeline_tests.project import Project, small_project, well_behaved, write_document
from embed_pipeline_tests.stub_endpoint import Stub, stub_endpoint
from embed_pipeline_tests.tiny import write_tiny_model

pytestmark = pytest.mark.slow
KEY = "sk-test-4f9d1c7be2"
TABLES = ("documents", "segments", "document_artifacts", "qa_pairs", "qa_scores", "corpus", "qa_dataset",
          "qa_decisions", "dataset_split", "hard_negatives", "training_examples")  # fmt: skip


def content_of(project: Project, names=TABLES) -> dict[str, str]:
    """Hash of every stored file of these tables, by path."""
    folder = project.store / "tables"
    files = [path for name in names for path in [*folder.glob(f"{name}.parquet"), *folder.glob(f"{name}/*.parquet")]]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """A project after a whole run, and the stub that answered it."""
    with stub_endpoint(well_behaved) as stub:
        root = tmp_path_factory.mktemp("finished")
        other = write_tiny_model(root / "models" / "other", dimensions=48, seed=9)
        candidates = f"{tiny_model},{other}"
        project = small_project(root, "auto", stub.base_url, embedding__candidates=candidates)
        project.environment["EMBED_PIPELINE_LLM_API_KEY"] = KEY
        status, output = project.command("run")
        assert status == 0, output
        yield project, stub, output


def test_documents_become_a_verified_release(finished):
    project, _, output = finished
    assert "Base against tuned" in output
    assert project.table("qa_dataset").height >= 20
    deployment = project.table("deployment").row(0, named=True)
    assert deployment["min_cosine"] >= 0.99999
    assert not deployment["left_running"]
    version = (project.store / "release" / "current").read_text().strip()
    assert version == deployment["release_version"]
    for export in ("onnx", "base_onnx"):
        assert (project.store / "release" / version / export / "model.onnx").is_file()
    assert (project.store / "reports" / "report.html").is_file()


def test_the_best_candidate_is_the_base_of_all_that_follows(finished):
    project, _, _ = finished
    compared = project.table("base_comparison").sort("ndcg_10", descending=True)
    assert set(compared["query_set"]) == {"generated"}
    (chosen,) = project.table("base_model")["model"]
    assert compared.filter("chosen")["model"].to_list() == [chosen]
    assert compared["ndcg_10"].max() == compared.filter("chosen")["ndcg_10"].item()
    version = (project.store / "release" / "current").read_text().strip()
    manifest = json.loads((project.store / "release" / version / "manifest.json").read_text())
    assert manifest["model"]["base_model"] == Path(chosen).name
    assert manifest["model"]["dimensions"] == compared.filter("chosen")["dimensions"].item()
    assert "Candidates for the base" in (project.store / "reports" / "report.md").read_text()


def test_the_endpoint_was_asked_with_the_key_and_the_key_is_nowhere_else(finished):
    project, stub, output = finished
    assert set(stub.authorizations) == {f"Bearer {KEY}"}
    assert KEY not in output
    holding = [path for path in project.root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holding == []


def test_the_model_version_its_mlflow_run_and_the_dagster_run_name_each_other(finished):
    project, _, _ = finished
    client = MlflowClient(f"sqlite:///{project.store / 'mlflow.db'}")
    candidate, champion = (client.get_model_version_by_alias("embed-pipeline", a) for a in ("candidate", "champion"))
    assert (str(candidate.version), str(champion.version)) == ("1", "1")
    run = client.get_run(candidate.run_id)
    with open_instance(project.store) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("finetuned_model"))
    recorded = event.asset_materialization.metadata
    assert (recorded["mlflow_run_id"].value, recorded["mlflow_version"].value) == (run.info.run_id, "1")
    assert run.data.tags["model_version"] == "1"
    assert run.data.tags["dagster.run_id"] == candidate.tags["dagster.run_id"] == event.run_id


def test_every_call_is_recorded_with_the_asset_that_asked(finished):
    project, stub, _ = finished
    with open_instance(project.store) as instance:
        calls = {
            name: sum(
                record.asset_materialization.metadata["usage"].value["calls"]
                for record in instance.fetch_materializations(dg.AssetKey(name), limit=100).records
            )
            for name in ("document_artifacts", "qa_pairs", "qa_scores")
        }
    assert sum(calls.values()) == len(stub.requests)
    assert min(calls.values()) > 0


@pytest.mark.slow
def test_a_second_run_makes_nothing(finished):
    project, stub, _ = finished
    before, calls = content_of(project), len(stub.requests)
    status, output = project.command("run")
    assert status == 0, output
    assert len(stub.requests) == calls
    assert content_of(project) == before
    assert "0 made" in output
    assert not [line for line in output.splitlines() if " made" in line and "0 made" not in line]


@pytest.mark.slow
def test_made_again_by_force_it_is_the_same(finished):
    project, stub, _ = finished
    before, calls = content_of(project), len(stub.requests)
    for stage in ("sdg", "prep"):
        status, output = project.command(stage, "--force")
        assert status == 0, output
    assert content_of(project) == before
    assert len(stub.requests) == calls, "every answer came from the store"


@pytest.mark.slow
def test_status_shows_every_asset_of_every_stage_as_current(finished, monkeypatch):
    project, _, _ = finished
    monkeypatch.setitem(project.environment, "COLUMNS", "200")
    status, output = project.command("status")
    assert status == 0, output
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in output.splitlines() if line[:1] == "│"]
    assert {(stage, asset) for stage, asset, _, _ in rows} == {
        (stage, key.to_user_string()) for stage, group in STAGES.items() for assets in group for key in assets.keys
    }
    assert list(dict.fromkeys(row[0] for row in rows)) == list(STAGES)
    assert {state.split()[0] for _, _, state, _ in rows} == {"current"}
    assert all(made.endswith("UTC") for *_, made in rows)


@pytest.mark.slow
def test_a_question_is_followed_from_its_document_to_the_model(finished):
    project, _, _ = finished
    trained = project.table("training_examples").filter(pl.col("origin") == "generated").row(0, named=True)
    pair = project.table("qa_pairs").filter(pl.col("qa_id") == trained["qa_id"]).row(0, named=True)
    status, output = project.command("lineage", trained["qa_id"][:6])
    assert status == 0, output
    for shown in (pair["question"], "topic-", "It stands there.", "stub", "train", "embed-pipeline"):
        assert shown in output, shown
    status, output = project.command("lineage", "nobody")
    assert status == 1
    assert "Traceback" not in output


def test_the_made_data_is_exported(finished):
    project, _, _ = finished
    status, output = project.command("dataset", "beir", str(project.root / "beir"))
    assert status == 0, output
    lines = (project.root / "beir" / "queries.jsonl").read_text(encoding="utf-8").splitlines()
    known = {*project.table("qa_dataset")["qa_id"], *project.table("hard_negatives")["qa_id"]}
    assert {json.loads(line)["_id"] for line in lines} <= known
    assert lines


@pytest.mark.slow
def test_the_next_run_is_estimated_and_nothing_is_sent(finished, monkeypatch):
    project, stub, _ = finished
    monkeypatch.setitem(project.environment, "COLUMNS", "200")
    calls = len(stub.requests)
    status, output = project.command("estimate")
    assert status == 0, output
    [total] = [line.strip("│").split("│") for line in output.splitlines() if line.startswith("│ total")]
    assert int(total[1]) == 0
    assert int(total[2]) > 0, "every answer is in the store"
    assert len(stub.requests) == calls


@pytest.mark.slow
def test_a_second_release_is_compared_with_the_first_and_may_be_rolled_back(finished):
    project, _, _ = finished
    pointer = project.store / "release" / "current"
    first = pointer.read_text().strip()
    status, output = project.command("run", "--set", "training.epochs=2")
    assert status == 0, output
    second = pointer.read_text().strip()
    assert second.startswith("v2-")
    compared = project.table("champion_comparison").row(0, named=True)
    assert (compared["champion"], compared["candidate"]) == (first, second)
    status, output = project.command("rollback")
    assert status == 0, output
    assert pointer.read_text().strip() == first
    tracker = Tracker(f"sqlite:///{project.store / 'mlflow.db'}", "embed-pipeline")
    assert (tracker.get_version("embed-pipeline", "candidate"), tracker.get_version("embed-pipeline", "champion")) == (
        "2",
        "1",
    )


def kill_after(project: Project, stub: Stub, requests: int) -> None:
    """Start generation and kill it with no warning once so many requests have arrived."""
    process = project.start("sdg")
    deadline = time.monotonic() + 120
    while len(stub.requests) < requests and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_while_generating_it_goes_on_and_ends_the_same(finished, tiny_model, tmp_path):
    undisturbed, _, _ = finished
    with stub_endpoint(well_behaved, latency=0.15) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url, llm__max_concurrency="4")
        for path in undisturbed.documents.iterdir():
            shutil.copy2(path, project.documents)
        kill_after(project, stub, requests=18)
        with ResponseStore(project.store / "responses.sqlite") as store:
            kept = len(store)
        in_flight = len(stub.requests) - kept
        assert kept > 0
        assert 0 < in_flight <= 4
        status, output = project.command("sdg")
        assert status == 0, output
        with ResponseStore(project.store / "responses.sqlite") as store:
            assert len(stub.requests) == len(store) + in_flight, "only what was in flight was asked again"
    generated = TABLES[: TABLES.index("dataset_split")]
    assert content_of(project, generated) == content_of(undisturbed, generated)


@pytest.mark.slow
def test_changed_new_and_deleted_documents(tiny_model, tmp_path):
    with stub_endpoint(well_behaved) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url)
        status, output = project.command("sdg")
        assert status == 0, output
        calls = len(stub.requests)
        write_document(project, 3, edition=" in its second edition")
        write_document(project, 40)
        (project.documents / "topic-05.md").unlink()
        status, output = project.command("sdg")
        assert status == 0, output
    corpus = project.table("corpus")
    assert set(corpus["path"]) == {f"topic-{n:02d}.md" for n in range(12) if n != 5} | {"topic-40.md"}
    assert corpus.filter(pl.col("path") == "topic-03.md")["text"].str.contains("second edition").any()
    assert project.table("documents").filter(pl.col("path") == "topic-05.md")["deleted"].to_list() == [False, True]
    present = set(corpus["segment_id"])
    assert all(set(ids) <= present for ids in project.table("qa_dataset")["segment_ids"])
    planted = 3 * PLANTED_OF_A_KIND  # the judge is tried on as many bad pairs in each batch
    assert len(stub.requests) - calls - planted <= (calls - planted) / 12 * 3, "only the two documents were asked about"


@pytest.mark.slow
def test_a_cap_holds_over_all_batches_and_stages_of_a_command(tiny_model, tmp_path):
    with stub_endpoint(well_behaved) as stub:
        project = small_project(
            tmp_path, tiny_model, stub.base_url, corpus__documents_per_batch="4", llm__max_calls="50"
        )
        status, output = project.command("sdg")
        assert status == 1
        assert "llm.max_calls is 50 and 50 is used" in output
        assert "before in this run" in output
        assert len(stub.requests) == 50
        done = len(list((project.store / "tables" / "qa_scores").glob("*.parquet")))
        assert done == 1, "the cap is reached in the second batch"
        status, output = project.command("--set", "llm.max_calls=none", "sdg")
        assert status == 0, output
        asked = [json.dumps(request, sort_keys=True) for request in stub.requests]
        assert len(asked) == len(set(asked)), "nothing is paid for twice"


@pytest.mark.slow
def test_a_higher_limit_on_questions_pays_for_the_difference_alone(tiny_model, tmp_path):
    def single_hop(project):
        pairs = project.table("qa_pairs").filter(pl.col("hop_count") == 1)
        return set(pairs["qa_id"]), set(pairs["segment_ids"].explode())

    with stub_endpoint(well_behaved) as stub:
        project = small_project(
            tmp_path, tiny_model, stub.base_url, synthesis__max_questions="30", corpus__documents_per_batch="6"
        )
        status, output = project.command("sdg")
        assert status == 0, output
        assert "questions are asked about" in output
        few, about = single_hop(project)
        assert 10 <= len(about) <= 16, "30 questions, two of a segment, a tenth as many of several"
        project.environment["EMBED_PIPELINE_SYNTHESIS__MAX_QUESTIONS"] = "all"
        status, output = project.command("sdg")
        assert status == 0, output
        asked = [json.dumps(request, sort_keys=True) for request in stub.requests]
    every, about = single_hop(project)
    assert len(about) == 48
    assert few < every
    assert len(asked) == len(set(asked)), "nothing is paid for twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prepare", "arguments", "says"),
    [
        (lambda p: [f.unlink() for f in p.documents.iterdir()], ["sdg"], "has no usable document"),
        (lambda p: None, ["--set", "paths.documents=absent", "sdg"], "documents folder absent does not exist"),
        (lambda p: None, ["--set", "synthesis.max_hop=2", "sdg"], "unknown setting 'synthesis.max_hop'; did you mean"),
        (
            lambda p: None,
            ["--set", "training.loss_temperature=7", "sdg"],
            "training.loss_temperature = '7': Input should be",
        ),
        (lambda p: None, ["finetune"], "is not there yet; run: embed-pipeline"),
        (lambda p: None, ["sample", "java"], "sample 'java' is unknown"),
        (lambda p: None, ["serve"], "names no current release; promote one first"),
    ],
)
def test_what_is_wrong_is_one_clear_message(tmp_path, prepare, arguments, says):
    project = small_project(tmp_path, Path("/absent/model"), "http://127.0.0.1:9/v1")
    prepare(project)
    status, output = project.command(*arguments)
    assert status == 1
    assert says in " ".join(output.split())
    assert "Traceback" not in output
    assert not (project.store / "tables").exists()


def test_a_missing_embedded_model_says_what_to_install(tiny_model, tmp_path):
    project = small_project(tmp_path, tiny_model, "none", llm__gguf_path=str(tmp_path / "absent.gguf"))
    status, output = project.command("sdg")
    assert status == 1
    assert "absent.gguf" in output
    assert "Traceback" not in output
    assert not (project.store / "tables" / "qa_pairs").exists()


def test_two_commands_on_one_store_do_not_mix(tiny_model, tmp_path):
    with stub_endpoint(well_behaved, latency=0.3) as stub:
        project = small_project(tmp_path, tiny_model, stub.base_url)
        first = project.start("sdg")
        deadline = time.monotonic() + 120
        while not stub.requests and first.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        status, output = project.command("sdg")
        first_output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, first_output
    assert status == 1
    assert "another command is at work" in output


def test_the_real_embedded_model_writes_questions_that_train_the_real_encoder(tmp_path):
    project = small_project(
        tmp_path,
        Path("packaged"),
        "none",
        corpus__segment_tokens="120",
        synthesis__path="auto",
        synthesis__judge="auto",
        synthesis__near_duplicate_similarity="0.95",
        synthesis__questions_per_segment="2",
        training_data__min_test_questions="1",
        # One document of the three.
        training_data__test_share="0.34",
        forgetting__questions="0",
    )
    project.environment.pop("EMBED_PIPELINE_LLM__MODEL")
    for path in project.documents.iterdir():
        path.unlink()
    for name, text in MANUALS.items():
        (project.documents / name).write_text(text, encoding="utf-8")
    status, output = project.command("run")
    assert status == 0, output
    pairs = project.table("qa_dataset")
    assert pairs.height >= 5
    assert set(pairs["generator"]) == {"SmolLM2-135M-Instruct.Q4_1"}
    assert set(project.table("qa_scores")["judge"]) == {"measured"}
    assert project.table("deployment")["min_cosine"][0] >= 0.99999
