"""Two machines with nothing in common but Postgres, object storage and the code; one of them loses its power, twice.

    deploy/try_machines.sh [FOLDER]

A machine is a network, a file tree and a set of processes of its own (Linux namespaces), with a worker on it; the first
has the daemon and the code location as well. Postgres, a storage that speaks S3 and a stub language model lie on the
network between them. Machine two is unplugged and all its processes are killed while it waits for the model: the first
time it is on again as soon as its runs were given up, the second time only when machine one executes them. Then one
training is spread over both, for which a cable is laid between them, and what follows it makes a release.

It ends with status 1 and a sentence where a batch is missing or incomplete, a machine did too little, a call was paid
twice against the rule (docs/scaling.md), or no release came of it. MACHINES_BATCHES sets another number of batches, at
least twelve. Nothing that it started is left.
"""
# ruff: noqa: INP001, S603, S607 - a script that runs programs of this machine

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import dagster as dg
import polars as pl
import psutil
import yaml
from upath import UPath
from week import PAID, Week, WrongOutcomeError, prepare

from embed_pipeline import tables
from embed_pipeline.orchestration.launcher import WORKER_TAG
from embed_pipeline.storage import list_folder, read_table, table_path
from embed_pipeline_tests.object_storage import BUCKET, object_storage
from embed_pipeline_tests.project import Project, well_behaved, write_document
from embed_pipeline_tests.stub_endpoint import stub_endpoint

HERE = Path(__file__).resolve().parent
PROGRAMS = Path(sys.executable).parent
# A small project has twelve documents to begin with.
BATCHES = max(12, int(os.environ.get("MACHINES_BATCHES", "12")))
BRIDGE, CABLE = "ep-lan", "10.231.88."
SERVICES = os.environ["LOCAL_STACK_ADDRESS"]
MACHINES = {"one": f"{SERVICES}1", "two": f"{SERVICES}2"}
TREE = "/srv/machine"
RUNS_PER_MACHINE, LATENCY, RETURN_SECONDS = 2, 1.5, 60
ASSETS, DOCUMENTS = f"s3://{BUCKET}/assets", f"s3://{BUCKET}/documents"
ASKING = ("document_artifacts", "qa_pairs", "qa_scores")
MACHINE = """
set -e
hostname "$1"
mount -t tmpfs none /srv
mkdir /srv/machine
mount --bind "$2/$1" /srv/machine
mount -t tmpfs none "$2"
cd /srv/machine/work
touch ../logs/on
shift 2
for line in "$@"; do
    bash -c "exec $line" >>"/srv/machine/logs/$(echo "$line" | sed 's/.*bin.//; s/ .*//').log" 2>&1 &
done
wait
"""

logger = logging.getLogger("machines")
for _name in ("botocore", "mlflow", "werkzeug"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Machine:
    """A machine that can be switched on and off."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], programs: list[str]) -> None:
        self.name, self.folder = name, folder
        self._environment, self._programs = environment, programs
        self._processes: subprocess.Popen[bytes] | None = None

    @property
    def answers(self) -> Path:
        """Its response store, seen from outside."""
        return self.folder / self.name / "store" / "responses.sqlite"

    def switch_on(self) -> None:
        """Plug it in and start its programs; its files are as they were."""
        for command in (
            f"ip netns add ep-{self.name}",
            f"ip link add ep-{self.name} type veth peer name eth0 netns ep-{self.name}",
            f"ip link set ep-{self.name} master {BRIDGE} up",
            f"ip -n ep-{self.name} addr add {MACHINES[self.name]}/24 dev eth0",
            f"ip -n ep-{self.name} link set lo up",
            f"ip -n ep-{self.name} link set eth0 up",
        ):
            call(command)
        line = shlex.split(f"ip netns exec ep-{self.name} unshare --mount --uts --pid --fork --kill-child --mount-proc")
        line += ["bash", "-c", MACHINE, "machine", self.name, str(self.folder), *self._programs]
        sign = self.folder / self.name / "logs" / "on"
        sign.unlink(missing_ok=True)
        self._processes = subprocess.Popen(line, env=self._environment)
        while not sign.exists():
            if self._processes.poll() is not None:
                message = f"machine {self.name} ended with status {self._processes.returncode}"
                raise WrongOutcomeError(message)
            time.sleep(0.1)
        logger.info("machine %s is on", self.name)

    def switch_off(self) -> None:
        """Unplug it, so that nobody hears of its end, and kill all its processes at once."""
        if self._processes is None:
            return
        call(f"ip link set ep-{self.name} down")
        self._processes.kill()
        self._processes.wait()
        self._processes = None
        call(f"ip link del ep-{self.name}")
        call(f"ip netns del ep-{self.name}")
        logger.info("machine %s is off", self.name)

    def begin(self, command: str) -> subprocess.Popen[bytes]:
        """Start a command on it, which writes to logs/commands.log."""
        if self._processes is None:
            raise WrongOutcomeError(f"machine {self.name} is off")
        [inside] = psutil.Process(self._processes.pid).children()
        line = shlex.split(f"nsenter --target {inside.pid} --mount --uts --net --pid bash -c")
        line.append(f"cd {TREE}/work && exec {command} >>{TREE}/logs/commands.log 2>&1")
        return subprocess.Popen(line, env=self._environment)

    def run(self, command: str) -> None:
        """Run a command on it to its end."""
        self.succeed(self.begin(command))

    def succeed(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a command's success.

        Raises:
            WrongOutcomeError: with the end of what it said.
        """
        if process.wait():
            said = (self.folder / self.name / "logs" / "commands.log").read_text(encoding="utf-8")
            message = f"status {process.returncode} of {process.args!r} on machine {self.name}: {said[-3000:]}"
            raise WrongOutcomeError(message)

    def count_answers(self, since: float = 0) -> int:
        """Answers of the language model that it has stored since then."""
        if not self.answers.is_file():
            return 0
        with closing(sqlite3.connect(f"file:{self.answers}?mode=ro", uri=True, timeout=30)) as database:
            return int(database.execute("SELECT count(*) FROM responses WHERE ended > ?", (since,)).fetchone()[0])


def call(command: str) -> None:
    """Run a program of this machine."""
    subprocess.run(shlex.split(command), check=True)


def clean_up() -> None:
    """Remove what an earlier trial may have left when it was killed itself."""
    for name in MACHINES:
        subprocess.run(["ip", "link", "del", f"ep-{name}"], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", f"ep-{name}"], check=False, capture_output=True)
    subprocess.run(["ip", "link", "del", BRIDGE], check=False, capture_output=True)


@contextmanager
def services(folder: Path) -> Iterator[dict[str, str]]:
    """The network with Postgres, object storage and the language model; the environment that leads to them."""
    port = int(os.environ["LOCAL_STACK_PORT"])

    def answer(request: dict[str, Any]) -> str:
        asked = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        with (folder / PAID).open("a", encoding="utf-8") as notes:
            notes.write(f"{asked}\n")
        return well_behaved(request)

    with ExitStack() as stack:
        stack.callback(clean_up)
        for command in (
            f"ip link add {BRIDGE} type bridge",
            f"ip addr add {SERVICES}/24 dev {BRIDGE}",
            f"ip link set {BRIDGE} up",
        ):
            call(command)
        stack.callback(subprocess.run, [HERE / "local_stack.sh", "stop", "postgres", folder], check=False)
        subprocess.run([HERE / "local_stack.sh", "start", "postgres", folder], check=True)
        storage = stack.enter_context(object_storage(SERVICES))
        stack.enter_context(stub_endpoint(answer, latency=LATENCY, port=port + 1, host=SERVICES))
        yield storage


def configure(folder: Path) -> None:
    """Write what both machines share of settings and of Dagster's configuration, and the tree of each."""
    port = int(os.environ["LOCAL_STACK_PORT"])
    prepare(
        folder,
        corpus__documents_per_batch="1",
        corpus__suffixes=".md",
        llm__base_url=f"http://{SERVICES}:{port + 1}/v1",
        llm__max_concurrency="1",
        embedding__model=f"{TREE}/model",
        paths__documents=DOCUMENTS,
        paths__store=f"{TREE}/store",
        paths__assets=ASSETS,
        tracking__uri=mlflow_address(),
        orchestration__automatic="false",
        orchestration__min_new_pairs="1",
    )
    path = folder / "home" / "dagster.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["run_launcher"] = {
        "module": "embed_pipeline.orchestration.launcher",
        "class": "WorkerRunLauncher",
        "config": {"return_seconds": RETURN_SECONDS},
    }
    config["run_monitoring"] |= {"start_timeout_seconds": 3600, "poll_interval_seconds": 10}
    config["concurrency"]["pools"]["default_limit"] = len(MACHINES) * RUNS_PER_MACHINE
    config["concurrency"]["runs"]["max_concurrent_runs"] = len(MACHINES) * RUNS_PER_MACHINE
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    config["compute_logs"]["config"]["base_dir"] = f"{TREE}/home/logs"
    config["local_artifact_storage"]["config"]["base_dir"] = f"{TREE}/home"
    for name in MACHINES:
        for part in ("home", "store", "work", "logs"):
            (folder / name / part).mkdir(parents=True)
        shutil.copytree(folder / "model", folder / name / "model")
        (folder / name / "home" / "dagster.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        shutil.copy(folder / "home" / "workspace.yaml", folder / name / "home")


def mlflow_address() -> str:
    """MLflow's database, which every machine opens by itself; artifacts go to the object storage."""
    return f"postgresql+psycopg2://mlflow@{SERVICES}:{os.environ['LOCAL_STACK_PORT']}/mlflow"


def machines(folder: Path, storage: dict[str, str]) -> dict[str, Machine]:
    """Both, switched off."""
    lines = (line.partition("=") for line in (folder / "environment").read_text(encoding="utf-8").splitlines())
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "LOCAL_STACK_"))},
        **{name: value.strip('"') for name, _, value in lines},
        **storage,
        "DAGSTER_HOME": f"{TREE}/home",
        "MLFLOW_S3_ENDPOINT_URL": storage["AWS_ENDPOINT_URL"],
    }
    worker = f"{PROGRAMS}/embed-pipeline worker --runs {RUNS_PER_MACHINE}"
    code = f"{PROGRAMS}/dagster code-server start --host 127.0.0.1 --port {int(os.environ['LOCAL_STACK_PORT']) + 3}"
    also = [
        f"{code} --module-name embed_pipeline.definitions",
        f"{PROGRAMS}/dagster-daemon run --workspace {TREE}/home/workspace.yaml",
    ]
    return {name: Machine(name, folder, environment, [worker, *(also if name == "one" else [])]) for name in MACHINES}


class Trial:
    """Two machines as they are watched."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, on: dict[str, Machine]) -> None:
        self.folder, self.instance, self.on = folder, instance, on
        self.week = Week(folder, instance)
        self.until = partial(self.week.until, seconds=900)
        self.allowed_twice = 0

    def batches(self, *statuses: dg.DagsterRunStatus) -> list[dg.DagsterRun]:
        """Runs of a batch in one of these states."""
        filters = dg.RunsFilter(job_name="sdg", statuses=list(statuses))
        return [run for run in self.instance.get_runs(filters, limit=500) if "dagster/partition" in run.tags]

    def finished(self) -> int:
        """Batches whose last table is made."""
        return len(self.instance.get_materialized_partitions(dg.AssetKey(ASKING[-1])))

    def at_work(self, machine: str) -> dict[str, float | None]:
        """Runs of a machine that have not made all tables, and since when each is in a step that asks the model."""
        found: dict[str, float | None] = {}
        for run in self.batches(dg.DagsterRunStatus.STARTED):
            events = [entry for entry in self.instance.all_logs(run.run_id) if entry.dagster_event]
            times = {(e.dagster_event.step_key, e.dagster_event.event_type): e.timestamp for e in events}  # type: ignore[union-attr]
            steps = {step: times.get((step, dg.DagsterEventType.STEP_START)) for step in ASKING}
            done = {step for step in ASKING if (step, dg.DagsterEventType.STEP_SUCCESS) in times}
            if run.tags.get(WORKER_TAG) == machine and ASKING[-1] not in done:
                found[run.run_id] = min(
                    (began for step, began in steps.items() if began and step not in done), default=None
                )
        return found

    def lose_power(self, *, returns: bool) -> None:
        """Switch machine two off while an answer of the step at work is stored and another is on its way.

        What was cut off is run again last, because Dagster queues it last.

        Args:
            returns: it is on again before another machine may execute its runs; else after one has begun to.

        Raises:
            WrongOutcomeError: what was cut off was executed again on the wrong machine.
        """
        two = self.on["two"]

        def asked() -> int:
            """Answers that it has of steps that are not done."""
            began = [since for since in self.at_work("two").values() if since is not None]
            return two.count_answers(min(began)) if began else 0

        self.until("machine two has an answer of a step that is not done", lambda: asked() > 0)
        two.switch_off()
        cut_off, stored = list(self.at_work("two")), asked()
        # What was on its way is paid for again; what is stored only where another machine takes over.
        self.allowed_twice += len(cut_off) + (0 if returns else stored)
        logger.info(
            "runs that are cut off: %d; answers on the disk of steps that were not done: %d", len(cut_off), stored
        )
        self.until("its runs are given up", lambda: all(self.ended(run) for run in cut_off))
        self.until("they wait again", lambda: len(self.again(cut_off)) == len(cut_off))
        if not returns:
            self.until(
                "machine one has begun them", lambda: all(r.tags.get(WORKER_TAG) == "one" for r in self.again(cut_off))
            )
        two.switch_on()
        self.until("they are done", lambda: all(r.status is dg.DagsterRunStatus.SUCCESS for r in self.again(cut_off)))
        places = {run.tags[WORKER_TAG] for run in self.again(cut_off)}
        if places != {"two" if returns else "one"}:
            raise WrongOutcomeError(f"what was cut off was executed again on {sorted(places)}")

    def ended(self, run_id: str) -> bool:
        """Whether a run has."""
        run = self.instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    def again(self, run_ids: list[str]) -> list[dg.DagsterRun]:
        """The runs that execute those again."""
        return [run for run in self.batches(*dg.DagsterRunStatus) if run.tags.get("dagster/parent_run_id") in run_ids]


def table(name: tables.Table) -> pl.DataFrame:
    """A table of the object storage, all its batches."""
    whole = table_path(UPath(ASSETS, use_listings_cache=False), name.name)
    found = list_folder(whole.with_suffix(""), "*.parquet") or [whole]
    return pl.concat([read_table(path, name) for path in found])


def try_machines(folder: Path, trial: Trial) -> None:
    """Twelve batches (or as many as are set) in two drops, a cut in each, and a training.

    Raises:
        WrongOutcomeError: naming what is not as it should be.
    """
    project = Project(folder / "project")
    written = [write_document(project, number) for number in range(BATCHES)]

    def drop(documents: list[Path]) -> None:
        for path in documents:
            (UPath(DOCUMENTS) / path.name).write_bytes(path.read_bytes())

    drop(written[: BATCHES // 2])
    for machine in trial.on.values():
        machine.switch_on()
    one, workspace = trial.on["one"], f"{TREE}/home/workspace.yaml"
    health = f"{PROGRAMS}/dagster api grpc-health-check --port {int(os.environ['LOCAL_STACK_PORT']) + 3}"
    trial.until("the code location answers", lambda: answers(one, health), seconds=180)
    one.run(f"{PROGRAMS}/dagster sensor start new_documents --workspace {workspace}")
    trial.until("a quarter of the batches done", lambda: trial.finished() >= BATCHES // 4)
    trial.lose_power(returns=True)
    drop(written[BATCHES // 2 :])
    trial.until("three quarters of the batches done", lambda: trial.finished() >= BATCHES - BATCHES // 4)
    trial.lose_power(returns=False)
    trial.until("every batch done", lambda: trial.finished() == BATCHES)
    one.run(f"{PROGRAMS}/dagster sensor start cheap_stages --workspace {workspace}")
    trial.until("examples to train on", lambda: trial.week.count("training_examples") > 0)
    trial.until("all runs ended", trial.week.idle)
    train_on_both(trial.on)
    # Where the weights are.
    tags = json.dumps({WORKER_TAG: "one"})
    one.run(f"{PROGRAMS}/dagster job launch --job retrain --workspace {workspace} --tags {shlex.quote(tags)}")
    trial.until("a release deployed", lambda: trial.week.count("deployment") > 0)
    trial.until("all runs ended", trial.week.idle)
    judge(trial, {path.name for path in written})


def train_on_both(on: dict[str, Machine]) -> None:
    """One training, a process of it on each machine.

    Raises:
        WrongOutcomeError: it fails, or the weights are not where they should be.
    """
    call("ip link add eth1 netns ep-one type veth peer name eth1 netns ep-two")
    training = []
    for rank, machine in enumerate(on.values()):
        call(f"ip -n ep-{machine.name} addr add {CABLE}{rank + 1}/30 dev eth1")
        call(f"ip -n ep-{machine.name} link set eth1 up")
        there = f"--nnodes {len(on)} --node-rank {rank} --master-addr {CABLE}1 --master-port 29400"
        torchrun = f"{PROGRAMS}/torchrun {there} --nproc-per-node 1 -m embed_pipeline.training"
        training.append(machine.begin(f"env GLOO_SOCKET_IFNAME=eth1 EMBED_PIPELINE_EMBEDDING__DEVICE=cpu {torchrun}"))
    began = time.monotonic()
    for machine, process in zip(on.values(), training, strict=True):
        machine.succeed(process)
    logger.info("one training on both machines, after %.0f s", time.monotonic() - began)
    winners = {name: list((m.folder / name / "store" / "models").rglob("winner-*/seed.json")) for name, m in on.items()}
    if [len(found) for found in winners.values()] != [1, 0]:
        raise WrongOutcomeError(f"weights of the training lie in {winners}")


def answers(machine: Machine, command: str) -> bool:
    """Whether a command succeeds on a machine."""
    try:
        machine.run(command)
    except WrongOutcomeError:
        return False
    return True


def judge(trial: Trial, expected: set[str]) -> None:
    """Everything is there once, from both machines, and paid for once but for what the rule says."""
    documents, pairs, scores, corpus = (
        table(name) for name in (tables.DOCUMENTS, tables.QA_PAIRS, tables.QA_SCORES, tables.CORPUS)
    )
    done = [run for run in trial.instance.get_runs(limit=500) if run.status is dg.DagsterRunStatus.SUCCESS]
    shares = Counter(run.tags[WORKER_TAG] for run in done if "dagster/partition" in run.tags)
    trained = [run for run in done if run.job_name == "retrain"]
    said = [entry.user_message for run in trained for entry in trial.instance.all_logs(run.run_id)]
    asked = (trial.folder / PAID).read_text(encoding="utf-8").split()
    twice = len(asked) - len(set(asked))
    kept = {name: machine.count_answers() for name, machine in trial.on.items()}
    per_document = pairs.explode("document_ids")["document_ids"].value_counts()["count"]
    logger.info(
        "batches: %s; %d pairs; calls: %d, asked twice: %d, allowed: %d; answers kept: %s",
        dict(shares), len(pairs), len(asked), twice, trial.allowed_twice, kept,
    )  # fmt: skip
    outcomes = {
        f"{documents['path'].n_unique()} documents in {len(documents)} rows": len(documents)
        == documents["path"].n_unique()
        == BATCHES,
        f"the corpus has {corpus['path'].n_unique()} documents": set(corpus["path"]) == expected,
        f"pairs of {len(per_document)} documents": len(per_document) == BATCHES,
        "a pair is stored twice": pairs["qa_id"].is_unique().all(),
        "pairs without a score": set(pairs["qa_id"]) == set(scores["qa_id"]),
        f"batches were shared as {dict(shares)}": all(shares[name] >= BATCHES // 4 for name in MACHINES),
        f"{twice} calls were paid twice, {trial.allowed_twice} may be": twice <= trial.allowed_twice,
        f"{len(trained)} runs of retrain, or it trained anew": len(trained) == 1
        and any("is trained already" in line for line in said),
    }
    wrong = [what for what, right in outcomes.items() if not right]
    if wrong:
        raise WrongOutcomeError("; ".join(wrong))


def main() -> None:
    """Do it in the folder that the first argument names."""
    folder = Path(sys.argv[1]).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "home").mkdir(parents=True)
    os.environ["DAGSTER_HOME"] = str(folder / "home")

    def end(*_: object) -> NoReturn:
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)
    clean_up()
    began = time.monotonic()
    configure(folder)
    try:
        with services(folder) as storage, ExitStack() as stack:
            from mlflow import MlflowClient

            MlflowClient(mlflow_address()).create_experiment("embed-pipeline", f"s3://{BUCKET}/mlflow")
            on = machines(folder, storage)
            for machine in on.values():
                stack.callback(machine.switch_off)
            instance = stack.enter_context(dg.DagsterInstance.get())
            try_machines(folder, Trial(folder, instance, on))
    except WrongOutcomeError as error:
        logger.error("%s", error)  # noqa: TRY400 - the message is for a person
        sys.exit(1)
    logger.info(
        "%d batches and a training on two machines are complete, after %.0f s", BATCHES, time.monotonic() - began
    )


if __name__ == "__main__":
    main()
