"""Forty batches over four workers, two of which are killed at work, against the processes of ``local_stack.sh``.

    deploy/local_stack.sh workers

The sensor cuts a batch from every document and asks for a run of each; Dagster gives each run to a process of its own,
four at a time. Two of those are killed with all their children while they generate. It ends with status 1 and a
sentence where a batch is missing or incomplete, a killed one was not run again, or calls were paid twice that were not
in flight. WORKERS_BATCHES sets another number of batches, at least twelve.
"""
# ruff: noqa: INP001 - a script

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import dagster as dg
import psutil
import yaml
from week import PAID, Week, WrongOutcomeError, main, prepare, write_document

# A small project has twelve documents to begin with.
BATCHES = max(12, int(os.environ.get("WORKERS_BATCHES", "40")))
WORKERS, KILLED = 4, 2
CALLS_IN_FLIGHT = 64
_PROCESS = re.compile(r"Started process for run \(pid: (\d+)\)")

logger = logging.getLogger("workers")


def prepare_workers(folder: Path) -> None:
    """As for the week, but a batch for each document, no training, and a place at the model for each worker."""
    prepare(
        folder,
        corpus__documents_per_batch="1",
        orchestration__training_cron="0 0 1 1 *",
    )
    path = folder / "home" / "dagster.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["concurrency"]["pools"]["default_limit"] = WORKERS
    config["concurrency"]["runs"]["max_concurrent_runs"] = WORKERS
    path.write_text(yaml.safe_dump(config), encoding="utf-8")


def run(folder: Path) -> None:
    """Have the documents worked on, kill two workers, and look at what came of it.

    Raises:
        WrongOutcomeError: naming what is not as it should be.
    """
    with dg.DagsterInstance.get() as instance:
        week = Week(folder, instance)
        expected = {write_document(week.project, number).name for number in range(BATCHES)}
        week.until("a quarter of the batches done", lambda: finished(week) >= BATCHES // 4)
        killed = kill_workers(week)
        week.until("every document in the corpus", lambda: week.corpus_paths() == expected)
        week.until("all runs ended", week.idle)
        judge(week, killed)
    logger.info("%d batches are complete", BATCHES)


def finished(week: Week) -> int:
    """Runs of a batch that succeeded."""
    return len(week.instance.get_runs(dg.RunsFilter(job_name="sdg", statuses=[dg.DagsterRunStatus.SUCCESS])))


def kill_workers(week: Week) -> list[str]:
    """Kill two runs that are generating, with every process that they started; returns their ids."""
    killed: list[str] = []

    def hunt() -> bool:
        for entry in week.instance.get_runs(dg.RunsFilter(job_name="sdg", statuses=[dg.DagsterRunStatus.STARTED])):
            if entry.run_id in killed or len(killed) == KILLED:
                continue
            events = [event.dagster_event for event in week.instance.all_logs(entry.run_id) if event.dagster_event]
            places = [int(found[1]) for event in events if (found := _PROCESS.search(event.message or ""))]
            reached = {(event.step_key, event.event_type) for event in events}
            generates = ("qa_pairs", dg.DagsterEventType.STEP_START) in reached
            if places and generates and ("qa_pairs", dg.DagsterEventType.STEP_SUCCESS) not in reached:
                kill_tree(places[-1])
                logger.info("killed run %s of batch %s", entry.run_id, entry.tags.get("dagster/partition"))
                killed.append(entry.run_id)
        return len(killed) == KILLED

    week.until(f"{KILLED} workers killed", hunt)
    return killed


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all its children."""
    worker = psutil.Process(pid)
    for process in [worker, *worker.children(recursive=True)]:
        process.kill()


def judge(week: Week, killed: list[str]) -> None:
    """Every batch has its rows once, the killed ones were run again, and nothing was paid twice beyond the flight."""
    retried = [
        entry for entry in week.instance.get_runs(limit=500) if entry.tags.get("dagster/parent_run_id") in killed
    ]
    documents, pairs, scores = (week.project.table(name) for name in ("documents", "qa_pairs", "qa_scores"))
    asked = (week.folder / PAID).read_text(encoding="utf-8").split()
    twice = len(asked) - len(set(asked))
    logger.info("%d pairs; calls: %d, asked twice: %d; run again: %d", len(pairs), len(asked), twice, len(retried))
    per_document = pairs.explode("document_ids")["document_ids"].value_counts()["count"]
    outcomes = {
        f"{len(retried)} of {KILLED} killed runs were run again": len(retried) == KILLED,
        f"{documents['path'].n_unique()} documents in {len(documents)} rows": len(documents)
        == documents["path"].n_unique()
        == BATCHES,
        f"pairs of {len(per_document)} documents": len(per_document) == BATCHES,
        "a pair is stored twice": pairs["qa_id"].is_unique().all(),
        "pairs without a score": set(pairs["qa_id"]) == set(scores["qa_id"]),
        f"{twice} calls were paid twice": twice <= KILLED * CALLS_IN_FLIGHT,
    }
    wrong = [what for what, right in outcomes.items() if not right]
    if wrong:
        raise WrongOutcomeError("; ".join(wrong))


if __name__ == "__main__":
    main({"prepare": prepare_workers, "run": run})
