"""Containers and their configuration agree with each other and with the code. No engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.ref import InstanceRef
from packaging.specifiers import SpecifierSet

from embed_pipeline.orchestration.automation import STACK_LABEL, all_schedules
from embed_pipeline.orchestration.jobs import OVERALL_TAGS, all_assets
from embed_pipeline.orchestration.launcher import StackRunLauncher
from embed_pipeline.settings import Orchestration, Settings, load_settings

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
DAGSTER = yaml.safe_load((DEPLOY / "dagster.yaml").read_text(encoding="utf-8"))
LAUNCHER = DAGSTER["run_launcher"]["config"]
DOCKERFILES = sorted([DEPLOY / "Dockerfile", *DEPLOY.glob("*.Dockerfile")])
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("embed-pipeline:")}


OTHER_SERVERS = {"nim-embeddings": "onnx", "tei": "model", "vllm": "model"}
"""Servers that are not ours, and the folder of a release that each reads."""


def environment_of(service):
    """A service's environment with the defaults of its variables; one that must be set is ``set``."""
    values = {name: str(value) for name, value in SERVICES[service].get("environment", {}).items()}
    return {
        name: re.sub(r"\$\{\w+(?::-|:\?)?([^}]*)\}", lambda m: "set" if ":?" in m[0] else m[1], value)
        for name, value in values.items()
    }


def instructions(path):
    """Instruction and arguments of every line of a Dockerfile, continuation lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_every_part_has_its_service():
    parts = {"postgres", "docker", "mlflow", "webserver", "daemon", "code", "embeddings", "inspect"}
    assert {name for name, service in SERVICES.items() if service.get("profiles", ["cpu"]) == ["cpu"]} == parts
    assert {name for name, service in SERVICES.items() if service.get("profiles") == ["gpu"]} == {
        "code-gpu",
        "embeddings-gpu",
        "inspect-gpu",
    }
    assert all(SERVICES[name]["profiles"] == [name] for name in ("nim", *OTHER_SERVERS))


@pytest.mark.parametrize(("name", "folder"), OTHER_SERVERS.items())
def test_a_server_that_is_not_ours_reads_a_release_of_the_store(name, folder):
    service = SERVICES[name]
    assert "store:/data/store:ro" in service["volumes"]
    told = [*service.get("command", []), *map(str, service.get("environment", {}).values())]
    assert f"/data/store/release/${{RELEASE:-none}}/{folder}" in told


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_watched_and_restarted(name):
    service = SERVICES[name]
    if name not in OURS:
        assert re.fullmatch(r"[\w./-]+:(v|cpu-)?\d[\w.-]*", service["image"]), service["image"]
    assert service["healthcheck"]["test"][0] in {"CMD", "CMD-SHELL"}
    assert service["restart"] == "unless-stopped"
    assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}
    for port in service.get("ports", []):
        assert name.startswith("embeddings") or port.startswith("127.0.0.1:"), "only the embedding server is reachable"


@pytest.mark.parametrize("name", [*OURS, "postgres", "docker"])
def test_a_container_may_do_and_take_little(name):
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert service["mem_limit"]
    assert service["pids_limit"] <= 4096
    assert service.get("cap_add", []) == (
        ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"] if name == "postgres" else []
    )
    assert ("docker.sock" in str(service.get("volumes"))) is (name == "docker")


def reached_from(name):
    """Services that share a network with this one."""
    return {
        other
        for other, service in SERVICES.items()
        if other != name and set(service["networks"]) & set(SERVICES[name]["networks"])
    }


def test_what_has_no_part_in_launching_runs_reaches_neither_the_engine_nor_dagster():
    assert set(COMPOSE["networks"]) == {"engine", "dagster", "tracking", "models", "endpoint"}
    assert COMPOSE["networks"]["engine"]["internal"] is True
    assert reached_from("docker") == {"webserver", "daemon"}
    assert reached_from("embeddings") == {"embeddings-gpu"}, "the public one reaches nothing of ours"
    assert reached_from("mlflow") == {"postgres", "code", "code-gpu"}
    assert all(SERVICES[name]["networks"] == ["models"] for name in ("nim", *OTHER_SERVERS))
    # Runs start their steps, and reach what the code location reaches.
    assert set(LAUNCHER["networks"]) == {f"${{STACK}}-{name}" for name in (*SERVICES["code"]["networks"], "engine")}


def test_mlflow_has_a_user_of_its_own_and_no_password_is_part_of_an_address_or_a_command():
    environment = environment_of("mlflow")
    assert {name: environment[name] for name in ("PGUSER", "PGHOST")} == {"PGUSER": "mlflow", "PGHOST": "postgres"}
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2:///mlflow"
    assert not {"POSTGRES_PASSWORD", "DOCKER_HOST"} & environment.keys()
    assert "PASSWORD" not in str([service.get("command") for service in SERVICES.values()])
    made = (DEPLOY / "databases.sql").read_text(encoding="utf-8")
    assert "REVOKE CONNECT ON DATABASE dagster, mlflow, postgres FROM PUBLIC" in made


def test_only_gpu_services_ask_for_a_gpu():
    assert {name for name, service in SERVICES.items() if "nvidia" in str(service.get("deploy"))} == {
        "embeddings-gpu",
        "nim",
        "nim-embeddings",
        "vllm",
    }


def commands():
    """Every command of a service, a health check or an image."""
    for name, service in SERVICES.items():
        if name in OURS:
            yield from (service[part] for part in ("command",) if part in service)
            yield service["healthcheck"]["test"][1:]
    for path in DOCKERFILES:
        yield from (yaml.safe_load(arguments) for instruction, arguments in instructions(path) if instruction == "CMD")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", {" ".join(command): command for command in commands()}.values(), ids=lambda command: command[0]
)
def test_every_command_is_one_that_is_installed_and_takes_its_options(command):
    program = Path(sys.executable).parent / command[0]
    assert program.is_file(), f"{command[0]} is not installed"
    if command[0] == "python":
        compile(command[2], "health check", "exec")
        return
    verbs = [word for word in command[1:4] if re.fullmatch(r"[a-z]+(-[a-z]+)*", word)]
    shown = subprocess.run([program, *verbs, "--help"], capture_output=True, text=True, check=True, timeout=120).stdout
    assert [option for option in command if option.startswith("--") and option not in shown] == []


def test_the_workspace_names_the_code_location_where_it_listens():
    [location] = yaml.safe_load((DEPLOY / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    server = location["grpc_server"]
    for name in ("code", "code-gpu"):
        assert server["host"] in SERVICES[name]["networks"]["dagster"]["aliases"]
        assert f":{server['port']}'" in SERVICES[name]["healthcheck"]["test"][-1]
    [command] = [yaml.safe_load(a) for i, a in instructions(DEPLOY / "Dockerfile") if i == "CMD"]
    assert command[command.index("--port") + 1] == str(server["port"])
    local = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))["load_from"][0]["python_module"]
    assert command[command.index("--module-name") + 1] == local["module_name"]
    assert local["location_name"] == server["location_name"]


def test_dagster_accepts_its_configuration(monkeypatch, tmp_path):
    for name, value in environment_of("daemon").items():
        monkeypatch.setenv(name, value)
    for folder in (DEPLOY, ROOT):
        InstanceRef.from_dir(str(tmp_path), config_dir=str(folder))
    launcher = InstanceRef.from_dir(str(tmp_path), config_dir=str(DEPLOY)).run_launcher
    assert type(launcher) is StackRunLauncher
    assert launcher.networks == [volume.replace("${STACK}", "embed-pipeline") for volume in LAUNCHER["networks"]]


def test_a_run_knows_what_the_daemon_knows():
    known = environment_of("daemon")
    assert set(LAUNCHER["env_vars"]) <= known.keys()
    assert {name for name in known if name.startswith("EMBED_PIPELINE_")} - set(LAUNCHER["env_vars"]) == {
        "EMBED_PIPELINE_ORCHESTRATION__AUTOMATIC"
    }, "all but what only the code location reads"


@pytest.mark.parametrize("name", ["daemon", "code", "code-gpu", "embeddings", "embeddings-gpu", "inspect"])
def test_the_environment_holds_settings_that_exist(name, tmp_path, monkeypatch):
    empty = tmp_path / "settings.toml"
    empty.write_text("")
    for variable, value in environment_of(name).items():
        monkeypatch.setenv(variable, value)
    load_settings(empty)


def test_code_location_and_runs_know_the_same_settings():
    runs = {name: environment_of("daemon")[name] for name in LAUNCHER["env_vars"]}
    for name in ("code", "code-gpu"):
        assert runs.items() <= environment_of(name).items()


def mounted(volume):
    """Source, target and access of a service's volume."""
    if isinstance(volume, str):
        return volume
    return f"{volume['source']}:{volume['target']}:{'ro' if volume['read_only'] else 'rw'}"


def test_runs_mount_what_the_code_location_mounts():
    of_service = [re.sub(r":\?[^}]*", "", mounted(volume)) for volume in SERVICES["code"]["volumes"]]
    of_run = [volume.replace("${STACK}-", "") for volume in LAUNCHER["container_kwargs"]["volumes"]]
    assert of_run == of_service
    assert SERVICES["code-gpu"]["volumes"] == SERVICES["code"]["volumes"]
    assert all(COMPOSE["volumes"][name]["name"] == f"${{STACK:-embed-pipeline}}-{name}" for name in COMPOSE["volumes"])
    assert all(
        COMPOSE["networks"][name]["name"] == f"${{STACK:-embed-pipeline}}-{name}" for name in COMPOSE["networks"]
    )


def test_a_run_may_do_and_take_as_little_as_the_code_location():
    kwargs = LAUNCHER["container_kwargs"]
    for name in ("init", "read_only", "cap_drop", "security_opt", "pids_limit"):
        assert kwargs[name] == SERVICES["code"][name]
    assert kwargs["log_config"]["config"] == SERVICES["code"]["logging"]["options"]
    assert kwargs["mem_limit"] == "${RUN_MEMORY}"
    assert SERVICES["code"]["mem_limit"] == "${RUN_MEMORY:-16g}"
    assert kwargs["labels"][STACK_LABEL] == "${STACK}"
    assert f"label={STACK_LABEL}=$stack".split("=", 1)[1] in (DEPLOY / "stack.sh").read_text(encoding="utf-8")


def test_a_run_whose_container_dies_is_taken_up_by_another():
    assert DAGSTER["run_monitoring"]["max_resume_run_attempts"] > 0
    assert DAGSTER["run_monitoring"]["cancel_timeout_seconds"] > LAUNCHER["container_kwargs"]["stop_timeout"]


def test_containers_of_ended_runs_are_removed_by_a_schedule():
    names = {
        executor: {
            schedule.name for schedule in all_schedules(Settings(orchestration=Orchestration(executor=executor)))
        }
        for executor in ("multiprocess", "docker")
    }
    assert names == {"multiprocess": {"training"}, "docker": {"training", "containers"}}


def test_runs_are_started_from_the_image_that_the_code_location_runs():
    for name in ("code", "code-gpu"):
        assert environment_of(name)["DAGSTER_CURRENT_IMAGE"] == SERVICES[name]["image"]


@pytest.mark.parametrize("path", [DEPLOY / "dagster.yaml", ROOT / "dagster.yaml"], ids=["containers", "machine"])
def test_limits_name_what_the_code_names(path):
    concurrency = yaml.safe_load(path.read_text(encoding="utf-8"))["concurrency"]
    assert concurrency["pools"] == {"granularity": "op", "default_limit": 1}
    assert {assets.op.pool for assets in all_assets} == {None, "llm", "gpu"}
    keys = {limit["key"] for limit in concurrency["runs"]["tag_concurrency_limits"]}
    assert keys == {"dagster/partition", *OVERALL_TAGS}


def test_the_example_names_every_variable_and_no_other():
    used = set(re.findall(r"(?<!\$)\$\{(\w+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    example = re.findall(r"^(\w+)=(.*)$", (DEPLOY / "env.example").read_text(encoding="utf-8"), re.MULTILINE)
    named = {name for name, _ in example}
    assert named - used == {"COMPOSE_PROFILES"}
    defaults = {"EMBEDDINGS_PORT", "MLFLOW_PORT", "DAGSTER_PORT", "INSPECT_PORT", "INSPECT_MEMORY"}
    assert used - named == defaults, "only these have good defaults"
    assert [name for name, value in example if "KEY" in name or "PASSWORD" in name if value] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
class TestDockerfile:
    def test_base_images_are_pinned_and_slim(self, path):
        parts = instructions(path)
        pinned = dict(argument.split("=", 1) for name, argument in parts if name == "ARG" and "=" in argument)
        bases = [argument.split(" AS ")[0] for name, argument in parts if name == "FROM"]
        assert set(bases) - {argument.split(" AS ")[-1] for name, argument in parts if name == "FROM"} == {
            "${PYTHON_IMAGE}"
        }
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", pinned["PYTHON_IMAGE"])

    def test_the_last_stage_runs_as_nobody_and_starts_no_shell(self, path):
        parts = instructions(path)
        last = parts[max(place for place, (name, _) in enumerate(parts) if name == "FROM") :]
        assert [argument for name, argument in last if name == "USER"] == ["10001"]
        assert not [name for name, _ in last[[name for name, _ in last].index("USER") :] if name in {"RUN", "COPY"}]
        assert isinstance(yaml.safe_load(dict(last)["CMD"]), list)
        assert not [name for name, _ in parts if name in {"ADD", "ENTRYPOINT"}]

    def test_installs_leave_nothing_behind(self, path):
        for name, argument in instructions(path):
            if name == "RUN" and "apt-get" in argument:
                assert "--no-install-recommends" in argument
                assert argument.count("apt-get") == 2
                assert "rm -rf /var/lib/apt/lists/*" in argument
            if name == "RUN" and "pip install" in argument:
                for part in argument.split("&&"):
                    pinned = re.search(r"--constraint|--require-hashes|--no-index|==", part)
                    assert pinned or "pip install" not in part, "versions are pinned"

    def test_a_changed_line_of_code_is_the_last_layer_alone(self, path):
        parts = instructions(path)
        last = parts[max(place for place, (name, _) in enumerate(parts) if name == "FROM") :]
        copies = [argument for name, argument in last if name in {"COPY", "RUN"}]
        code = next(
            place for place, argument in enumerate(copies) if "embed_pipeline" in argument or "/wheels" in argument
        )
        dependencies = next(place for place, argument in enumerate(copies) if "/opt/venv /opt/venv" in argument)
        assert dependencies < code
        first = [
            argument for _, argument in parts[: next(p for p, (_, a) in enumerate(parts) if "pip install --const" in a)]
        ]
        assert not [argument for argument in first if "COPY embed_pipeline" in argument]

    def test_what_is_copied_is_there_and_not_ignored(self, path):
        allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
        for name, argument in instructions(path):
            if name == "COPY" and "--from" not in argument:
                for source in [word for word in argument.split() if not word.startswith("--")][:-1]:
                    assert (ROOT / source).exists(), source
                    assert any(source == name or source.startswith(f"{name}/") for name in allowed), source

    def test_no_secret_is_baked_in(self, path):
        assert not re.search(r"(PASSWORD|API_KEY|TOKEN)\s*=", path.read_text(encoding="utf-8"))


def test_kubernetes_runs_the_same_definitions_under_the_same_limits(tmp_path, monkeypatch):
    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text(encoding="utf-8"))
    [deployment] = values["dagster-user-deployments"]["deployments"]
    [server] = [entry["grpc_server"] for entry in yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]]
    assert deployment["port"] == server["port"]
    assert deployment["dagsterApiGrpcArgs"] == ["--module-name", "embed_pipeline.definitions"]
    settings = tmp_path / "settings.toml"
    settings.write_text("")
    for entry in deployment["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])
    loaded = load_settings(settings)
    assert loaded.orchestration.executor == "kubernetes"
    limits = values["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]["tagConcurrencyLimits"]
    assert limits == DAGSTER["concurrency"]["runs"]["tag_concurrency_limits"]
    mounts = {mount["mountPath"] for mount in deployment["volumeMounts"]}
    assert mounts == {mounted(volume).split(":")[-2] for volume in SERVICES["code"]["volumes"][:1]} | {"/data/store"}


def test_what_the_gpu_image_installs_is_pinned():
    pinned = [
        set(re.findall(r"^([\w-]+)==", (ROOT / name).read_text(encoding="utf-8").lower(), re.MULTILINE))
        for name in ("constraints.txt", "constraints-gpu.txt")
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {re.split("[><]", wanted)[0] for wanted in extras["gpu"]} <= pinned[1]
    assert not pinned[0] & pinned[1]
    assert {"triton", "setuptools"} <= pinned[1]


def test_what_is_pinned_runs_on_the_oldest_python_that_is_promised():
    """Debian 12 has 3.11.2: there pip finds no version where one that is pinned wants 3.11.5."""
    promised = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    [oldest] = re.findall(r">=(\d+\.\d+)", promised)
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
    too_new = {
        pin: wanted
        for package in distributions()
        if (pin := f"{package.name}=={package.version}") in pinned
        and (wanted := package.metadata.get("Requires-Python"))
        and not SpecifierSet(wanted).contains(f"{oldest}.0")
    }
    assert not too_new, "pin older versions in constraints.txt"


def of_the_chart(values):
    """Names as the chart writes them into ``dagster.yaml``: it passes on what the launcher's own schema names."""
    return {re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name): value for name, value in values.items()}


@pytest.mark.slow
def test_dagsters_launcher_and_kubernetes_accept_the_values():
    k8s = pytest.importorskip("dagster_k8s")
    from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
    from kubernetes import client

    values = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text(encoding="utf-8"))
    written = of_the_chart(values["runLauncher"]["config"]["k8sRunLauncher"])
    written["env_secrets"] = [entry["name"] for entry in written["env_secrets"]]
    written["run_k8s_config"] = of_the_chart(written["run_k8s_config"])
    written |= {"service_account_name": "dagster", "dagster_home": "/home", "instance_config_map": "map"}
    checked = process_config(k8s.K8sRunLauncher.config_type(), {**written, "postgres_password_secret": "secret"})
    assert checked.success, checked.errors
    [deployment] = values["dagster-user-deployments"]["deployments"]
    pods = [deployment["podSecurityContext"], written["run_k8s_config"]["pod_spec_config"]["securityContext"]]
    for pod in pods:
        made = k8s_model_from_dict(client.V1PodSecurityContext, k8s_snake_case_dict(client.V1PodSecurityContext, pod))
        assert (made.fs_group, made.run_as_user, made.run_as_non_root) == (10001, 10001, True)
    for container in (deployment["securityContext"], written["security_context"]):
        made = k8s_model_from_dict(client.V1SecurityContext, k8s_snake_case_dict(client.V1SecurityContext, container))
        assert made.capabilities.drop == ["ALL"]
    for volume, mount in zip(deployment["volumes"], deployment["volumeMounts"], strict=True):
        k8s_model_from_dict(client.V1Volume, k8s_snake_case_dict(client.V1Volume, volume))
        k8s_model_from_dict(client.V1VolumeMount, k8s_snake_case_dict(client.V1VolumeMount, mount))
        assert volume["name"] == mount["name"]
    # Keys that the chart's templates read; it ignores others without a word.
    assert set(values) - {name for name in values if name.startswith("x-")} == {
        "dagster-user-deployments", "runLauncher", "dagsterDaemon", "telemetry",
    }  # fmt: skip
    daemon = values["dagsterDaemon"]
    assert set(daemon) == {"runCoordinator", "runMonitoring", "runRetries"}
    assert set(daemon["runMonitoring"]) == {"enabled", "pollIntervalSeconds"}


def test_the_image_installs_extras_that_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    [named] = re.findall(r'"\$\{VARIANT\},([\w,]+)"', (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    assert {"cpu", "gpu", *named.split(",")} <= extras.keys()
    command = [sys.executable, DEPLOY / "requirements.py", f"cpu,{named}"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"faiss-cpu>=1.10", "dagster-docker>=0.29,<0.30", *extras["postgres"]} <= set(shown)


def works(program):
    """Whether this compose is there and is version 2."""
    done = subprocess.run([*program, "version", "--short"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.lstrip("v").startswith("2")


@pytest.mark.parametrize("profiles", ["cpu", "gpu", "gpu,nim"])
def test_compose_accepts_the_file(tmp_path, profiles):
    program = next(
        (found for found in (["docker", "compose"], ["docker-compose"]) if shutil.which(found[0]) and works(found)),
        None,
    )
    if program is None:
        pytest.skip("docker compose is not installed")
    example = (DEPLOY / "env.example").read_text(encoding="utf-8")
    settled = re.sub(
        r"^((?:MLFLOW_)?POSTGRES_PASSWORD|EMBED_PIPELINE_SERVING_API_KEY)=$",
        r"\1='s@c:r/t%1#$x'",
        example,
        flags=re.MULTILINE,
    )
    (tmp_path / "env").write_text(settled)
    command = [*program, "--env-file", str(tmp_path / "env"), "--file", str(ROOT / "docker-compose.yml"), "config"]
    environment = {**os.environ, "COMPOSE_PROFILES": profiles}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "s@c:r/t%1#$$x" in done.stdout
    (tmp_path / "empty").write_text("")
    unset = [*program, "--env-file", str(tmp_path / "empty"), "--file", str(ROOT / "docker-compose.yml"), "config"]
    refused = subprocess.run(unset, capture_output=True, text=True, check=False, env=environment, timeout=60)
    assert refused.returncode != 0
    assert "set it in .env" in refused.stderr
