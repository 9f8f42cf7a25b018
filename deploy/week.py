"""A week of documents in minutes, against the processes of ``deploy/local_stack.sh``, watched to its end.

    deploy/local_stack.sh week

Everything is started by the sensors and the training schedule; this script only puts documents into the folder, takes
processes away, and looks. It ends with status 1 and a sentence where the outcome is not what it should be.
"""
# ruff: noqa: INP001 - a script

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import yaml

from embed_pipeline_tests.project import Project, small_project, well_behaved, write_document
from embed_pipeline_tests.stub_endpoint import stub_endpoint
from embed_pipeline_tests.tiny import write_tiny_model

HERE = Path(__file__).parent
PAID = "paid.txt"
FINISHED = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
FOLLOWED_WITHIN = 15.0
"""Seconds after a run in which the sensors, which look every few seconds, ask for what follows it."""

logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO, stream=sys.stdout)
for _name in ("alembic", "dagster", "httpx", "sentence_transformers"):
    logging.getLogger(_name).setLevel(logging.WARNING)
logger = logging.getLogger("week")


class WrongOutcomeError(RuntimeError):
    """The week did not end as it should."""


def prepare(folder: Path, **changed: str) -> None:
    """Write the settings, a tiny model, and Dagster's configuration: the containers' one, runs as processes."""
    port = int(os.environ["LOCAL_STACK_PORT"])
    chosen = {
        "corpus__suffixes": ".md,.pdf,.docx",
        "corpus__documents_per_batch": "15",
        "orchestration__automatic": "true",
        "orchestration__poll_seconds": "3",
        "orchestration__settle_seconds": "2",
        "orchestration__training_cron": "* * * * *",
        "orchestration__min_new_pairs": "10",
        "tracking__uri": f"http://127.0.0.1:{port + 2}",
    }
    endpoint = f"http://127.0.0.1:{port + 1}/v1"
    project = small_project(folder / "project", write_tiny_model(folder / "model"), endpoint, **{**chosen, **changed})
    lines = [f'{name}="{value}"' for name, value in {**project.environment, "OMP_NUM_THREADS": "1"}.items()]
    (folder / "environment").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = yaml.safe_load((HERE / "dagster.yaml").read_text(encoding="utf-8"))
    del config["run_launcher"], config["run_monitoring"]["max_resume_run_attempts"]
    config["storage"]["postgres"]["postgres_db"]["port"] = port
    config["compute_logs"]["config"]["base_dir"] = str(folder / "home" / "logs")
    config["local_artifact_storage"]["config"]["base_dir"] = str(folder / "home")
    (folder / "home" / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    workspace = yaml.safe_load((HERE / "workspace.yaml").read_text(encoding="utf-8"))
    workspace["load_from"][0]["grpc_server"] |= {"host": "127.0.0.1", "port": port + 3}
    (folder / "home" / "workspace.yaml").write_text(yaml.safe_dump(workspace), encoding="utf-8")


def serve_endpoint(folder: Path) -> None:
    """The stub endpoint, which notes what every call asked."""

    def answer(request: dict[str, Any]) -> str:
        asked = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        with (folder / PAID).open("a", encoding="utf-8") as notes:
            notes.write(f"{asked}\n")
        return well_behaved(request)

    with stub_endpoint(answer, latency=0.2, port=int(os.environ["LOCAL_STACK_PORT"]) + 1):
        while True:
            time.sleep(3600)


def close_orphans(_: Path) -> None:
    """Record as failed the runs whose code location ended; the daemon runs them again (``run_retries``)."""
    unfinished = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    with dg.DagsterInstance.get() as instance:
        for entry in instance.get_runs(filters=dg.RunsFilter(statuses=unfinished)):
            instance.report_run_failed(entry, "the code location that executed it ended")
            logger.info("run %s of %s had lost its code location", entry.run_id, entry.job_name)


class Week:
    """The stack as it is watched."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder = folder
        self.project = Project(folder / "project")
        self.instance = instance

    def stack(self, *arguments: str) -> None:
        """Have ``local_stack.sh`` do something."""
        logger.info("local_stack.sh %s", " ".join(arguments))
        subprocess.run([HERE / "local_stack.sh", *arguments, self.folder], check=True)  # noqa: S603 - the script beside

    def until(self, what: str, holds: Callable[[], bool], seconds: float = 1800) -> None:
        """Wait until something holds, and say how long it took.

        Raises:
            WrongOutcomeError: it does not in time.
        """
        started = time.monotonic()
        while not holds():
            if time.monotonic() - started > seconds:
                message = f"after {seconds:.0f} s still not: {what}; runs: {self.runs()}"
                raise WrongOutcomeError(message)
            time.sleep(1)
        logger.info("%s, after %.0f s", what, time.monotonic() - started)

    def runs(self) -> list[str]:
        """Every run, newest first: job, batch, status."""
        return [
            f"{run.job_name} {run.tags.get('dagster/partition', '')} {run.status.value}"
            for run in self.instance.get_runs(limit=40)
        ]

    def idle(self) -> bool:
        """True where no run is queued or going on, and none ended so lately that another may follow it."""
        return all(
            record.dagster_run.status in FINISHED and time.time() - (record.end_time or 0) > FOLLOWED_WITHIN
            for record in self.instance.get_run_records(limit=60)
        )

    def corpus_paths(self) -> set[str]:
        """Files whose segments are searched."""
        path = self.project.store / "tables" / "corpus.parquet"
        return set(pl.read_parquet(path)["path"]) if path.is_file() else set()

    def count(self, asset: str) -> int:
        """How often an asset was materialized."""
        return len(self.instance.fetch_materializations(dg.AssetKey(asset), limit=500).records)

    def new_runs(self, job: str, before: set[str]) -> list[dg.DagsterRun]:
        """Runs of a job that are not among those known before."""
        runs = self.instance.get_runs(filters=dg.RunsFilter(job_name=job), limit=100)
        return [run for run in runs if run.run_id not in before]

    def known_runs(self) -> set[str]:
        """Ids of all runs so far."""
        return {run.run_id for run in self.instance.get_runs(limit=500)}


def run(folder: Path) -> None:
    """The week.

    Raises:
        WrongOutcomeError: naming what is not as it should be.
    """
    with dg.DagsterInstance.get() as instance:
        week = Week(folder, instance)
        expected = first_drop(week)
        expected = changes_while_the_daemon_dies(week, expected)
        postgres_is_away(week, expected)
        judge(week)
    logger.info("the week ended as it should")


def first_drop(week: Week) -> set[str]:
    """Thirty documents become a model that is served."""
    logger.info("Monday: thirty documents")
    expected = {write_document(week.project, number).name for number in range(30)}
    week.until("thirty documents in the corpus", lambda: week.corpus_paths() == expected)
    week.until("a release deployed", lambda: week.count("deployment") >= 1)
    week.until("all runs ended", week.idle)
    return expected


def changes_while_the_daemon_dies(week: Week, expected: set[str]) -> set[str]:
    """Five new, three changed, two deleted, a broken PDF and a zip bomb; the daemon is killed while they are read."""
    logger.info("Tuesday: five new documents, three changed, two deleted, a broken PDF and a zip bomb")
    before, trained = week.known_runs(), week.count("finetuned_model")
    new = {write_document(week.project, number).name for number in range(30, 35)}
    for number in (3, 4, 5):
        write_document(week.project, number, edition=" in its second edition")
    for number in (7, 8):
        (week.project.documents / f"topic-{number:02d}.md").unlink()
    (week.project.documents / "broken.pdf").write_bytes(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog /Pages 9 0 R >>\nendobj")
    write_zip_bomb(week.project.documents / "bomb.docx")
    week.until("a run of them began", lambda: bool(week.new_runs("sdg", before)), seconds=120)
    week.stack("kill", "daemon")
    time.sleep(5)
    week.stack("start", "daemon")
    expected = (expected | new) - {"topic-07.md", "topic-08.md"}
    week.until("thirty-three documents in the corpus", lambda: week.corpus_paths() == expected)
    week.until("another training", lambda: week.count("finetuned_model") > trained)
    week.until("all runs ended", week.idle)
    rejected = week.project.table("rejected_documents")
    found = dict(rejected.select("path", "reason").iter_rows())
    if set(found) != {"broken.pdf", "bomb.docx"}:
        message = f"set aside were {found}"
        raise WrongOutcomeError(message)
    logger.info("set aside: %s", found)
    return expected


def postgres_is_away(week: Week, expected: set[str]) -> None:
    """Two more documents; the database is away for twenty seconds while they are worked on."""
    logger.info("Wednesday: two documents while Postgres is away")
    before = week.known_runs()
    expected |= {write_document(week.project, number).name for number in (35, 36)}
    week.until("a run of them began", lambda: bool(week.new_runs("sdg", before)), seconds=120)
    week.stack("kill", "postgres")
    time.sleep(20)
    week.stack("start", "postgres")
    week.until("thirty-five documents in the corpus", lambda: week.corpus_paths() == expected)
    week.until("all runs ended", week.idle)


def judge(week: Week) -> None:
    """Nothing was paid twice, and what is served is what MLflow calls the champion."""
    asked = (week.folder / PAID).read_text(encoding="utf-8").split()
    twice = len(asked) - len(set(asked))
    in_flight = int(os.environ.get("WEEK_PAID_TWICE", "64"))
    statuses: dict[str, int] = {}
    for entry in week.instance.get_runs(limit=500):
        key = f"{entry.job_name} {entry.status.value.lower()}"
        statuses[key] = statuses.get(key, 0) + 1
    logger.info("calls: %d, asked twice: %d; runs: %s", len(asked), twice, statuses)
    if twice > in_flight:
        message = f"{twice} calls were asked twice, more than may be in flight when a process is taken away"
        raise WrongOutcomeError(message)
    release = (week.project.store / "release" / "current").read_text(encoding="utf-8").strip()
    from embed_pipeline.tracking import Tracker

    champion = Tracker(os.environ["EMBED_PIPELINE_TRACKING__URI"], "embed-pipeline").get_version(
        "embed-pipeline", "champion"
    )
    if champion is None or not release.startswith(f"v{champion}-"):
        message = f"the release served is {release}, MLflow's champion is version {champion}"
        raise WrongOutcomeError(message)
    logger.info("served: %s, MLflow's champion: version %s", release, champion)


def write_zip_bomb(path: Path) -> None:
    """A small .docx whose text unpacks to a gigabyte."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
        with archive.open("word/document.xml", "w", force_zip64=True) as stream:
            for _ in range(1000):
                stream.write(b"a" * 1_000_000)


def main(actions: dict[str, Callable[[Path], None]]) -> None:
    """Do what the first argument says with the folder that the second names."""
    action, folder = sys.argv[1], Path(sys.argv[2]).resolve()
    try:
        actions[action](folder)
    except WrongOutcomeError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message is for a person
        sys.exit(1)


if __name__ == "__main__":
    main({"prepare": prepare, "endpoint": serve_endpoint, "orphans": close_orphans, "run": run})
