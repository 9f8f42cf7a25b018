"""The steps of ``deploy/try_containers.sh``: build, run, break, stop, back up and restore the stack, each one checked.

Needs an engine with compose, and the base images. Nothing but Python's standard library; what needs more runs in the
images. Ends with a table of what was tried, and status 1 where anything is not as it should be.
"""
# ruff: noqa: INP001, S310, S603, T201, BLE001 - a script that runs programs of this machine

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
FOLDER = Path(sys.argv[1]).resolve()
STACK = "trial"
LABEL = f"embed_pipeline.stack={STACK}"
PORTS = {"DAGSTER_PORT": 13000, "MLFLOW_PORT": 15000, "EMBEDDINGS_PORT": 18000}
KEY = "trial-key"
# What a person may choose, and what pasted into an address breaks it.
PASSWORD, MLFLOW_PASSWORD = "p@ss:w/rd%1#x", "m@f/ow:%2?#"
SETTINGS = """
[embedding]
model = "/settings/model"
[corpus]
segment_tokens = 60
min_segment_tokens = 10
[synthesis]
# The stub answers by schema alone.
path = "structured"
judge = "asked"
near_duplicate_similarity = 1
[training_data]
min_test_questions = 2
[training]
epochs = 1
[evaluation]
query_sets = []
bootstrap_samples = 200
[gates]
# A model of random weights learns little; what is tried is the way, not the gain.
min_accepted_pairs = 5
min_gain = -1
[llm]
max_concurrency = 2
[orchestration]
poll_seconds = 5
settle_seconds = 2
"""
STUB = """
import sys, time
from embed_pipeline_tests.project import well_behaved
from embed_pipeline_tests.stub_endpoint import stub_endpoint
with stub_endpoint(well_behaved, latency=float(sys.argv[1]), port=9000, host="0.0.0.0"):
    time.sleep(86400)
"""
DOCUMENTS = """
import sys
from pathlib import Path
from embed_pipeline_tests.project import Project, write_document
for number in range(int(sys.argv[1]), int(sys.argv[2])):
    write_document(Project(Path("/out")), number)
"""
MODEL = """
from pathlib import Path
from embed_pipeline_tests.tiny import write_tiny_model
write_tiny_model(Path("/out/model"))
"""
ROWS = """
import polars as pl, sys
from pathlib import Path
path = Path("/data/store/tables") / sys.argv[1]
frame = pl.read_parquet(path / "*.parquet" if path.is_dir() else path.with_suffix(".parquet"))
print(frame.height, frame[sys.argv[2]].n_unique())
"""
CONNECT = """
import socket, sys
for place in sys.argv[1:]:
    host, port = place.split(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        print(place, "yes")
    except OSError:
        print(place, "no")
"""


class WrongOutcomeError(RuntimeError):
    """Something is not as it should be."""


def say(line: str) -> None:
    """A line of the log."""
    print(time.strftime("%T"), line, flush=True)


def expect(holds: object, otherwise: str) -> None:
    """Raise unless something holds."""
    if not holds:
        raise WrongOutcomeError(otherwise)


def call(*command: str, check: bool = True, given: str | None = None) -> str:
    """What a program prints."""
    with (FOLDER / "commands.log").open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%T')} {' '.join(command)}\n")
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False, input=given)
        log.write(done.stdout + done.stderr)
    if check and done.returncode:
        message = f"{' '.join(command)[:300]} ended with status {done.returncode}: {done.stderr[-2000:]}"
        raise WrongOutcomeError(message)
    return done.stdout.strip()


def compose(*arguments: str, check: bool = True) -> str:
    """What docker compose prints."""
    return call("docker", "compose", *arguments, check=check)


def stack(*arguments: str) -> str:
    """What deploy/stack.sh prints."""
    return call(str(HERE / "deploy" / "stack.sh"), *arguments)


def in_service(service: str, program: str, *arguments: str) -> str:
    """What a Python program prints in a running service."""
    return compose("exec", "--no-TTY", service, "python", "-c", program, *arguments)


def with_tests(program: str, folder: Path, *arguments: str) -> str:
    """What a program prints that uses the tests' material and writes into a folder of this machine as /out."""
    tests = f"{HERE / 'embed_pipeline_tests'}:/tests/embed_pipeline_tests:ro"
    return call(
        "docker", "run", "--rm", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}", "--volume", tests,
        "--volume", f"{folder}:/out", "--env", "PYTHONPATH=/tests", "embed-pipeline:cpu", "python", "-c", program,
        *arguments,
    )  # fmt: skip


def containers(*filters: str) -> list[str]:
    """Names of this stack's containers of runs and steps."""
    chosen = [part for name in filters for part in ("--filter", name)]
    return call("docker", "ps", "--filter", f"label={LABEL}", *chosen, "--format", "{{.Names}}").split()


def until(what: str, holds: Callable[[], object], seconds: float) -> float:
    """Wait until something holds; returns the seconds that it took."""
    began = time.monotonic()
    while True:
        found = holds()
        taken = time.monotonic() - began
        if found:
            say(f"  {what}, after {taken:.0f} s")
            return taken
        expect(taken < seconds, f"after {seconds:.0f} s still not: {what}; runs: {[shown(run) for run in runs()]}")
        time.sleep(1)


def graphql(query: str, **variables: Any) -> Any:  # noqa: ANN401 - JSON
    """Data that Dagster's webserver answers with."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    address = f"http://127.0.0.1:{PORTS['DAGSTER_PORT']}/graphql"
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        raise WrongOutcomeError(error.read().decode()[:1000]) from error
    expect("errors" not in found, f"GraphQL: {str(found.get('errors'))[:500]}")
    return found["data"]


def runs(job: str = "") -> list[dict[str, Any]]:
    """Runs, newest first."""
    query = "query($filter: RunsFilter) { runsOrError(filter: $filter, limit: 50) { ... on Runs { results {"
    query += " runId jobName status tags { key value } } } ... on PythonError { message } } }"
    found = graphql(query, filter={"pipelineName": job} if job else {})["runsOrError"]
    return list(found["results"])


def shown(run: dict[str, Any]) -> str:
    """A run in words."""
    return f"{run['jobName']} {run['runId'][:8]} {run['status']}"


def status_of(run_id: str) -> str:
    """A run's status."""
    return next((run["status"] for run in runs() if run["runId"] == run_id), "unknown")


def events(run_id: str) -> list[tuple[str, str, str]]:
    """A run's events: type, step, message."""
    query = "query($id: ID!) { logsForRun(runId: $id, limit: 1000) { ... on EventConnection { events {"
    query += " ... on MessageEvent { eventType stepKey message } } } } }"
    found = graphql(query, id=run_id)["logsForRun"]["events"]
    return [(event["eventType"] or "", event["stepKey"] or "", event["message"]) for event in found]


def started(run_id: str, step: str) -> int:
    """How often a step began."""
    return sum(kind == "STEP_START" and key == step for kind, key, _ in events(run_id))


def asks(run_id: str) -> bool:
    """Whether a run of sdg has come to asking the language model."""
    return any(started(run_id, step) for step in ("document_artifacts", "qa_pairs"))


def switch_sensor(*, on: bool) -> None:
    """Start or stop the sensor new_documents."""
    selector = {"repositoryLocationName": "embed_pipeline", "repositoryName": "__repository__"}
    query = "mutation($s: SensorSelector!) { startSensor(sensorSelector: $s) { ... on Sensor { sensorState { id } }"
    query += " ... on PythonError { message } } }"
    found = graphql(query, s={**selector, "sensorName": "new_documents"})["startSensor"]
    expect("sensorState" in found, f"the sensor does not start: {found}")
    if not on:
        query = "mutation($id: String) { stopSensor(id: $id) { ... on PythonError { message } } }"
        graphql(query, id=found["sensorState"]["id"])


def launch(job: str) -> str:
    """Start a job from the UI; returns the run's id."""
    query = "mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename ... on LaunchRunSuccess {"
    query += " run { runId } } ... on PythonError { message } } }"
    selector = {"repositoryLocationName": "embed_pipeline", "repositoryName": "__repository__", "jobName": job}
    found = graphql(query, p={"selector": selector, "mode": "default", "runConfigData": {}})["launchRun"]
    expect("run" in found, f"{job} does not start: {found}")
    return str(found["run"]["runId"])


def ended(run_id: str, seconds: float, wanted: str = "SUCCESS") -> None:
    """Wait for a run's end."""
    until(f"run {run_id[:8]} ended", lambda: status_of(run_id) in {"SUCCESS", "FAILURE", "CANCELED"}, seconds)
    failures = [f"{key} {message}" for kind, key, message in events(run_id) if "FAILURE" in kind]
    expect(status_of(run_id) == wanted, f"run {run_id} is {status_of(run_id)}: {failures[:4]}")


def rows(table: str, column: str) -> list[int]:
    """Rows of a table, and different values of one of its columns."""
    return [int(number) for number in in_service("code", ROWS, table, column).split()]


def ask(path: str, *, key: str | None = KEY, **fields: Any) -> tuple[int, Any]:  # noqa: ANN401 - JSON
    """Status and answer of the endpoint."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    body = json.dumps(fields).encode() if fields else None
    request = urllib.request.Request(f"http://127.0.0.1:{PORTS['EMBEDDINGS_PORT']}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text[:1] in b"{[" else text
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError as error:
        return 0, error


def vector() -> list[float]:
    """The served vector of a text."""
    status, answer = ask("/v1/embeddings", model="embed-pipeline", input="value of a class")
    expect(status == 200, f"/v1/embeddings answers {status}")  # noqa: PLR2004 - HTTP
    return list(answer["data"][0]["embedding"])


def stub(latency: float) -> None:
    """Start the stub language model again, this slow."""
    call("docker", "rm", "--force", f"{STACK}-llm", check=False)
    tests = f"{HERE / 'embed_pipeline_tests'}:/tests/embed_pipeline_tests:ro"
    call(
        "docker", "run", "--detach", "--name", f"{STACK}-llm", "--network", f"{STACK}-models", "--network-alias", "llm",
        "--volume", tests, "--env", "PYTHONPATH=/tests", "embed-pipeline:cpu", "python", "-c", STUB, str(latency),
    )  # fmt: skip


def prepare() -> None:
    """A clean stack's settings, and folders that user 10001 can read."""
    for name in ("documents", "settings"):
        (FOLDER / name).mkdir(exist_ok=True)
    (FOLDER / "settings" / "embed_pipeline.toml").write_text(SETTINGS, encoding="utf-8")
    values = {
        "COMPOSE_PROFILES": "cpu",
        "STACK": STACK,
        "DOCUMENTS_FOLDER": str(FOLDER / "documents"),
        "SETTINGS_FOLDER": str(FOLDER / "settings"),
        "POSTGRES_PASSWORD": f"'{PASSWORD}'",
        "MLFLOW_POSTGRES_PASSWORD": f"'{MLFLOW_PASSWORD}'",
        "EMBED_PIPELINE_SERVING_API_KEY": KEY,
        "EMBED_PIPELINE_LLM__BASE_URL": "http://llm:9000/v1",
        "EMBED_PIPELINE_LLM__MODEL": "stub",
        "RUN_MEMORY": "6g",
        **{name: str(port) for name, port in PORTS.items()},
    }
    if "TORCH_INDEX" in os.environ:
        values["TORCH_INDEX"] = os.environ["TORCH_INDEX"]
    lines = [f"{name}={value}" for name, value in values.items()]
    (FOLDER / "env").write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.environ["COMPOSE_ENV_FILES"] = str(FOLDER / "env")


def build() -> None:
    """Both images, from the files as they are; again with one line of code changed, only its layer is new."""
    compose("build")
    for name in ("control", "cpu"):
        size = int(call("docker", "image", "inspect", f"embed-pipeline:{name}", "--format", "{{.Size}}"))
        say(f"  embed-pipeline:{name} has {size / 1e9:.2f} GB")


def fill() -> None:
    """Documents and a tiny model."""
    if not (FOLDER / "settings" / "model").exists():
        with_tests(MODEL, FOLDER / "settings")
    with_tests(DOCUMENTS, FOLDER, "0", "12")
    call("chmod", "--recursive", "a+rX", str(FOLDER / "documents"), str(FOLDER / "settings"))


def up() -> None:
    """Everything healthy, the endpoint waiting for its first release among it."""
    compose("up", "--detach", "--wait", "--wait-timeout", "600")
    expect(ask("/v1/health/live")[0] == 200, "the endpoint is not alive")  # noqa: PLR2004 - HTTP
    expect(ask("/v1/health/ready")[0] == 503, "the endpoint is ready without a release")  # noqa: PLR2004 - HTTP
    stub(0.05)


def guarded() -> None:
    """Networks apart, roots read-only, no password in a process list, MLflow in its own database alone."""
    for service, places in {
        "embeddings": ["docker:2375", "postgres:5432", "webserver:3000", "mlflow:5000", "code:4000"],
        "mlflow": ["docker:2375", "webserver:3000"],
        "code": ["docker:2375"],
    }.items():
        reached = [line for line in in_service(service, CONNECT, *places).splitlines() if line.endswith("yes")]
        expect(not reached, f"{service} reaches {reached}")
    try_database = "import psycopg2; psycopg2.connect(dbname='dagster')"
    refused = compose("exec", "--no-TTY", "mlflow", "python", "-c", try_database, check=False)
    log = (FOLDER / "commands.log").read_text(encoding="utf-8")
    expect(not refused and "permission denied for database" in log, "MLflow's user may enter Dagster's database")
    for service in compose("ps", "--services").split():
        name = compose("ps", "--quiet", service)
        shown_processes = call("docker", "top", name)
        expect(PASSWORD not in shown_processes and MLFLOW_PASSWORD not in shown_processes, f"a password in {service}'s")
        details = json.loads(call("docker", "inspect", name))[0]["HostConfig"]
        expect(details["ReadonlyRootfs"] and details["CapDrop"] == ["ALL"], f"{service}: root or capabilities")
        expect(details["LogConfig"]["Config"].get("max-size"), f"{service}: its log grows without end")
        expect(details["Memory"] and details["PidsLimit"], f"{service}: no limit of memory or processes")


def sdg_by_the_sensor() -> None:
    """New documents become a run in a container, and its steps containers of their own."""
    switch_sensor(on=True)
    until("a run of sdg", lambda: runs("sdg"), 180)
    run_id = runs("sdg")[0]["runId"]
    until("a step in a container", lambda: containers("name=dagster-step"), 180)
    ended(run_id, 900)
    switch_sensor(on=False)
    expect(rows("documents", "path") == [12, 12], f"documents: {rows('documents', 'path')}")
    details = json.loads(call("docker", "inspect", *call("docker", "ps", "-aq", "--filter", f"label={LABEL}").split()))
    for container in details:
        host = container["HostConfig"]
        expect(host["ReadonlyRootfs"] and host["Memory"] and host["LogConfig"]["Config"], f"{container['Name']}")
    say(f"  {len(details)} containers for the run and its steps")


def a_command() -> None:
    """A command that takes longer than the monitor's look is no failed run."""
    with_tests(DOCUMENTS, FOLDER, "12", "18")
    call("chmod", "--recursive", "a+rX", str(FOLDER / "documents"))
    stub(4)
    began = time.monotonic()
    compose("exec", "--no-TTY", "code", "embed-pipeline", "sdg")
    say(f"  the command took {time.monotonic() - began:.0f} s; the monitor looks every 30 s")
    stub(0.05)
    compose("exec", "--no-TTY", "code", "embed-pipeline", "prep")
    for run in runs():
        if any(tag["key"] == "embed_pipeline/command" for tag in run["tags"]):
            wrong = [message for _, _, message in events(run["runId"]) if "Detected run worker status" in message]
            expect(run["status"] == "SUCCESS" and not wrong, f"{shown(run)}: {wrong}")


def a_command_killed() -> None:
    """A command that dies is recorded as failed by the monitor, and nothing runs it again."""
    with_tests(DOCUMENTS, FOLDER, "18", "20")
    call("chmod", "--recursive", "a+rX", str(FOLDER / "documents"))
    stub(20)
    known = {run["runId"] for run in runs("sdg")}
    compose("exec", "--detach", "code", "embed-pipeline", "sdg")
    until("the command's run", lambda: [run for run in runs("sdg") if run["runId"] not in known], 120)
    [run] = [run for run in runs("sdg") if run["runId"] not in known]
    until(
        "it asks the model",
        lambda: started(run["runId"], "qa_pairs") or started(run["runId"], "document_artifacts"),
        120,
    )
    kill = "import os, signal, glob\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n"
    kill += " if b'embed-pipeline\\0sdg' in open(p, 'rb').read(): os.kill(int(p.split('/')[2]), signal.SIGKILL)"
    in_service("code", kill)
    until("its run is failed", lambda: status_of(run["runId"]) == "FAILURE", 120)
    stub(0.05)
    compose("exec", "--no-TTY", "code", "embed-pipeline", "sdg")
    compose("exec", "--no-TTY", "code", "embed-pipeline", "prep")


def a_run_killed() -> None:
    """The container of a training's run is killed: another takes it up, nothing is trained twice, a release is made."""
    run_id = launch("retrain")
    until("the training began", lambda: started(run_id, "finetuned_model"), 300)
    [name] = containers(f"label=dagster/run_id={run_id}")
    call("docker", "kill", name)
    say(f"  killed {name}")
    ended(run_id, 1200)
    expect(started(run_id, "finetuned_model") == 1, "the training was begun twice")
    log = " ".join(message for _, _, message in events(run_id))
    expect("resume run" in log, "no other container took it up")
    expect(len(runs("retrain")) == 1, f"runs: {[shown(run) for run in runs('retrain')]}")


def served() -> None:
    """The endpoint, which has waited since the start, serves the release; with the key alone."""
    until("ready", lambda: ask("/v1/health/ready")[0] == 200, 120)  # noqa: PLR2004 - HTTP
    expect(len(vector()) == 32, f"{len(vector())} dimensions")  # noqa: PLR2004 - of the tiny model
    for key in (None, "wrong"):
        status, _ = ask("/v1/embeddings", key=key, model="embed-pipeline", input="in")
        expect(status == 401, f"key {key}: {status}")  # noqa: PLR2004 - HTTP
    say(f"  serving {ask('/v1/metadata')[1]['data'][0].get('version', '')}")


def cancelled() -> None:
    """A run is ended from the UI while a step waits for the model: run and step end, and nothing is written later."""
    with_tests(DOCUMENTS, FOLDER, "20", "24")
    call("chmod", "--recursive", "a+rX", str(FOLDER / "documents"))
    stub(20)
    known = {run["runId"] for run in runs("sdg")}
    switch_sensor(on=True)
    until("a run of sdg", lambda: [run for run in runs("sdg") if run["runId"] not in known], 120)
    switch_sensor(on=False)
    run_id = runs("sdg")[0]["runId"]
    until("it asks the model", lambda: asks(run_id), 300)
    began = time.monotonic()
    graphql("mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id)
    ended(run_id, 150, "CANCELED")
    until("no container of it runs", lambda: not containers(), 60)
    say(f"  everything ended {time.monotonic() - began:.0f} s after the click")


def stopped_with_a_run() -> None:
    """The stack is stopped while a run is at work: its containers end, networks go, and it is up again whole."""
    known = {run["runId"] for run in runs("sdg")}
    switch_sensor(on=True)
    with_tests(DOCUMENTS, FOLDER, "24", "26")
    call("chmod", "--recursive", "a+rX", str(FOLDER / "documents"))
    until("a run of sdg", lambda: [run for run in runs("sdg") if run["runId"] not in known], 120)
    switch_sensor(on=False)
    until("a step in a container", lambda: containers("name=dagster-step"), 180)
    call("docker", "network", "disconnect", f"{STACK}-models", f"{STACK}-llm")
    stack("stop")
    left = call("docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}")
    networks = call("docker", "network", "ls", "--filter", f"name={STACK}-", "--quiet")
    expect(not left and not networks, f"left: containers {left}, networks {networks}")
    compose("up", "--detach", "--wait", "--wait-timeout", "600")
    until("the code location is loaded", lambda: runs("sdg"), 120)
    unfinished = [shown(run) for run in runs() if run["status"] not in {"SUCCESS", "FAILURE", "CANCELED"}]
    expect(not unfinished, f"runs without an end: {unfinished}")
    until("ready", lambda: ask("/v1/health/ready")[0] == 200, 120)  # noqa: PLR2004 - HTTP
    stub(0.05)


def backed_up_and_restored() -> None:
    """Everything is deleted and comes back: runs, tables, MLflow's versions, the same vectors from the endpoint."""
    before = {"vector": vector(), "runs": sorted(map(shown, runs())), "rows": rows("qa_dataset", "qa_id")}
    stack("backup", str(FOLDER / "backup"))
    sizes = {path.name: path.stat().st_size for path in sorted((FOLDER / "backup").iterdir())}
    say(f"  {sizes}")
    call("docker", "rm", "--force", f"{STACK}-llm")
    stack("stop", "--volumes")
    volumes = call("docker", "volume", "ls", "--quiet", "--filter", f"name={STACK}-")
    expect(not volumes, f"volumes left: {volumes}")
    stack("restore", str(FOLDER / "backup"))
    compose("up", "--detach", "--wait", "--wait-timeout", "600")
    until("ready", lambda: ask("/v1/health/ready")[0] == 200, 180)  # noqa: PLR2004 - HTTP
    after = {"vector": vector(), "runs": sorted(map(shown, runs())), "rows": rows("qa_dataset", "qa_id")}
    expect(after == before, f"not the same: {[name for name in before if before[name] != after[name]]}")
    with urllib.request.urlopen(f"http://127.0.0.1:{PORTS['MLFLOW_PORT']}/health", timeout=30) as answer:
        expect(answer.status == 200, "MLflow")  # noqa: PLR2004 - HTTP
    compose("exec", "--no-TTY", "code", "embed-pipeline", "rollback", check=False)
    say("  " + compose("exec", "--no-TTY", "code", "embed-pipeline", "status").splitlines()[1][:100])


def pruned() -> None:
    """Containers of ended runs go, and nothing else."""
    stub(0.05)
    run_id = launch("prep")
    ended(run_id, 300)
    expect(call("docker", "ps", "-aq", "--filter", f"label={LABEL}"), "there are no ended containers to begin with")
    services = compose("ps", "--quiet")
    stack("prune", "1s")
    expect(not call("docker", "ps", "-aq", "--filter", f"label={LABEL}"), "ended containers are left")
    expect(compose("ps", "--quiet") == services, "services went, too")


def upgraded() -> None:
    """The way to a new version's databases, from and to the same version."""
    stack("upgrade")
    compose("up", "--detach", "--wait", "--wait-timeout", "600")


def memory() -> None:
    """What the services need when nothing is at work."""
    for line in call("docker", "stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}").splitlines():
        say(f"  {line}")


STEPS = (
    build, fill, up, guarded, sdg_by_the_sensor, a_command, a_command_killed, a_run_killed, served, memory, cancelled,
    stopped_with_a_run, backed_up_and_restored, pruned, upgraded,
)  # fmt: skip


def main() -> int:
    """Do the steps, all of them, and show what came of each; 1 where one failed."""
    prepare()
    call("docker", "rm", "--force", f"{STACK}-llm", check=False)
    stack("stop", "--volumes")
    wanted = os.environ.get("TRIAL_STEPS", "").split() or [step.__name__ for step in STEPS]
    outcomes: list[tuple[str, float, str]] = []
    for step in (step for step in STEPS if step.__name__ in wanted):
        say(f"{step.__name__}: {step.__doc__}")
        began = time.monotonic()
        try:
            step()
            outcome = "ok"
        except Exception as error:
            outcome = f"FAILED: {error}"
            if not isinstance(error, WrongOutcomeError):
                traceback.print_exc()
            say(f"  {outcome}")
            logs = compose("logs", "--no-color", "--tail", "200", check=False)
            (FOLDER / f"{step.__name__}.log").write_text(logs, encoding="utf-8")
        outcomes.append((step.__name__, time.monotonic() - began, outcome))
        if step in {build, fill, up} and outcome != "ok":
            say("nothing else can be tried")
            break
    if os.environ.get("TRIAL_KEEP") != "yes":
        call("docker", "rm", "--force", f"{STACK}-llm", check=False)
        stack("stop", "--volumes")
    print()
    for name, seconds, outcome in outcomes:
        print(f"{name:24} {seconds:6.0f} s  {outcome[:160]}")
    failed = sum(outcome != "ok" for _, _, outcome in outcomes)
    print(f"{len(outcomes) - failed} passed, {failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
