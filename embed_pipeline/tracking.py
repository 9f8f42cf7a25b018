"""MLflow: runs, curves, artifacts and registered model versions; the only module that imports it.

Without a server, runs live in SQLite and artifacts next to it. Nothing is logged without being asked for: no
autologging, no telemetry.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

_SQLITE = "sqlite:///"
_ARTIFACTS = "mlartifacts"
_FOREIGN_CHARACTERS = re.compile(r"[^\w\-. :/]")
_ADDRESSES: Mapping[str, tuple[str, ...]] = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "model_versions": ("source", "storage_location"),
    "logged_models": ("artifact_location",),
}
"""Table of MLflow's database to its columns that hold addresses of artifacts."""
_TEXT_SUFFIXES = frozenset({".html", ".md", ".txt", ".json", ".jsonl", ".csv", ".tsv"})
_CUT = " …"
CHAMPION = "champion"
"""Alias of the version that is served: only a version that has passed the evaluation's gate gets it."""
_GATE = "evaluation.gate"
_REASONS = "evaluation.gate_reasons"
_PASSED = "passed"


class TrackingError(RuntimeError):
    """A run or a model version does not exist, or MLflow refuses what it is given."""


class Tracker:
    """One experiment at one tracking URI.

    Attributes:
        uri: the tracking URI.
        experiment: the experiment's name.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None = None, *, pages: str | None = None) -> None:
        """Connect; the experiment is made where it is absent.

        Args:
            uri: ``sqlite:///<file>`` or a server's ``http(s)://``.
            experiment: the experiment's name.
            artifacts: folder of artifacts; None: the server's own, and for SQLite ``mlartifacts`` next to the file.
            pages: address of MLflow's UI, for links; None: that of the server.

        Raises:
            TrackingError: MLflow cannot open the URI.
        """
        self.uri = uri
        self.experiment = experiment
        self._pages = pages or uri
        if artifacts is None and uri.startswith(_SQLITE):
            artifacts = Path(uri.removeprefix(_SQLITE)).resolve().parent / _ARTIFACTS
        self._client = _connect(uri)
        with _refusals(f"experiment {experiment!r} at {_without_password(uri)}"):
            found = self._client.get_experiment_by_name(experiment)
            location = artifacts.resolve().as_uri() if artifacts else None
            if found and artifacts and uri.startswith(_SQLITE):
                _relocate(Path(uri.removeprefix(_SQLITE)), found.artifact_location, artifacts.resolve())
            self._experiment_id: str = (
                found.experiment_id if found else self._client.create_experiment(experiment, location)
            )

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str], *, run_id: str | None = None) -> Iterator[TrackedRun]:
        """A run while the block lasts: finished after it, failed where it raises.

        Args:
            name: name of a new run.
            tags: its tags, such as the Dagster run that it belongs to.
            run_id: a run to go on with instead of a new one.

        Raises:
            TrackingError: the run to go on with does not exist.
        """
        with _refusals(f"run {run_id or name!r}"):
            run = (
                self._client.get_run(run_id)
                if run_id
                else self._client.create_run(
                    self._experiment_id, tags={k: _tag(v) for k, v in tags.items()}, run_name=name
                )
            )
            if run_id:
                self._client.update_run(run_id, status="RUNNING")
        tracked = TrackedRun(self._client, run, self._run_url(run))
        try:
            yield tracked
        except BaseException:
            self._client.set_terminated(tracked.run_id, status="FAILED")
            raise
        self._client.set_terminated(tracked.run_id, status="FINISHED")

    def fail_abandoned(self, is_over: Callable[[str], bool]) -> list[str]:
        """Record as failed the runs that are still going on though their Dagster run ``is_over``; return their ids.

        A process that is killed cannot end its own.
        """
        failed = []
        with _refusals(f"runs of experiment {self.experiment!r}"):
            for run in self._client.search_runs([self._experiment_id], "attributes.status = 'RUNNING'"):
                dagster_run = run.data.tags.get("dagster.run_id")
                if dagster_run and is_over(dagster_run):
                    self._client.set_terminated(run.info.run_id, status="FAILED")
                    failed.append(run.info.run_id)
        return failed

    def register_model(
        self, name: str, run_id: str, model_folder: Path, *, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> str:
        """Store a model folder with a run and register it as the next version of ``name``.

        Args:
            name: registered model's name; made where it is absent.
            run_id: the run that made the model.
            model_folder: the folder, stored whole as the run's artifact ``model``.
            tags: tags of the version.
            metrics: figures of the version, stored as tags ``metric.<name>``.

        Returns:
            The version.

        Raises:
            TrackingError: the folder or the run does not exist.
        """
        if not model_folder.is_dir():
            message = f"model_folder is {model_folder}: no such folder"
            raise TrackingError(message)
        figures = {f"metric.{_key(metric)}": f"{value:.6g}" for metric, value in metrics.items()}
        with _refusals(f"registered model {name!r}"):
            run = self._client.get_run(run_id)
            self._client.log_artifacts(run_id, str(model_folder), artifact_path="model")
            if not self._client.search_registered_models(filter_string=f"name='{name}'"):
                self._client.create_registered_model(name)
            version = self._client.create_model_version(
                name,
                source=f"{run.info.artifact_uri}/model",
                run_id=run_id,
                tags={key: _tag(value) for key, value in {**tags, **figures}.items()},
            )
        logger.info("registered %s version %s", name, version.version)
        return str(version.version)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Point ``alias`` (``candidate``, ``champion``) at a version, away from any other.

        Raises:
            TrackingError: there is no such version, or it is to be the champion and has not passed the gate.
        """
        with _refusals(f"version {version} of registered model {name!r}"):
            tags = self._client.get_model_version(name, version).tags
            if alias == CHAMPION and tags.get(_GATE) != _PASSED:
                found = tags.get(_REASONS) or "it was not evaluated"
                message = f"version {version} of {name} cannot be the champion, it has not passed the gate: {found}"
                raise TrackingError(message)
            self._client.set_registered_model_alias(name, alias, version)

    @contextmanager
    def moved_alias(self, name: str, alias: str, version: str) -> Iterator[None]:
        """Point ``alias`` at ``version``; where the block raises, at what it pointed at before.

        Raises:
            TrackingError: as :meth:`set_alias`.
        """
        before = self.get_version(name, alias)
        self.set_alias(name, alias, version)
        try:
            yield
        except BaseException:
            with _refusals(f"alias {alias!r} of registered model {name!r}"):
                if before is None:
                    self._client.delete_registered_model_alias(name, alias)
                else:
                    self._client.set_registered_model_alias(name, alias, before)
            raise

    def set_version_tags(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Add tags to a version, such as what its evaluation found.

        Raises:
            TrackingError: there is no such version.
        """
        with _refusals(f"version {version} of registered model {name!r}"):
            for key, value in tags.items():
                self._client.set_model_version_tag(name, version, key, _tag(value))

    def record_gate(self, name: str, version: str, failures: Sequence[str]) -> None:
        """Record on a version why it failed the evaluation's gate; no reason: it passed, and may be the champion.

        Raises:
            TrackingError: there is no such version.
        """
        outcome = "failed" if failures else _PASSED
        self.set_version_tags(name, version, {_GATE: outcome, _REASONS: "; ".join(failures)})

    def text_artifacts(self) -> Iterator[tuple[str, str]]:
        """The experiment's artifacts that are text, each under its run and path; files of models are left out.

        Raises:
            TrackingError: MLflow cannot be reached, or an artifact cannot be read.
        """
        for run_id, path in self._artifacts():
            yield f"run {run_id}: {path}", self._read(run_id, path)

    def remove_artifacts(self, is_meant: Callable[[str], bool]) -> list[str]:
        """Delete the experiment's artifacts whose text ``is_meant``, and return the run and path of each.

        Raises:
            TrackingError: MLflow cannot be reached, or its artifact store does not delete.
        """
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        removed = []
        for run_id, path in self._artifacts():
            if is_meant(self._read(run_id, path)):
                with _refusals(f"artifact {path} of run {run_id}"):
                    address = self._client.get_run(run_id).info.artifact_uri
                    get_artifact_repository(address, tracking_uri=self.uri).delete_artifacts(path)
                removed.append(f"run {run_id}: {path}")
        return removed

    def _artifacts(self) -> Iterator[tuple[str, str]]:
        """Run and path of every artifact that is text and no part of a model."""
        from mlflow.entities import ViewType

        with _refusals(f"runs of experiment {self.experiment!r}"):
            token = None
            while True:
                page = self._client.search_runs([self._experiment_id], run_view_type=ViewType.ALL, page_token=token)
                for run in page:
                    for item in self._client.list_artifacts(run.info.run_id):
                        if not item.is_dir and Path(item.path).suffix in _TEXT_SUFFIXES:
                            yield run.info.run_id, item.path
                token = page.token
                if not token:
                    return

    def _read(self, run_id: str, path: str) -> str:
        with tempfile.TemporaryDirectory() as folder, _refusals(f"artifact {path} of run {run_id}"):
            file = self._client.download_artifacts(run_id, path, folder)
            return Path(file).read_text(encoding="utf-8", errors="replace")

    def version_url(self, name: str, version: str) -> str | None:
        """The version's page on the server; None: there is no server."""
        return self._page(f"models/{quote(name, safe='')}/versions/{version}")

    def get_version(self, name: str, alias: str) -> str | None:
        """The version that ``alias`` points at; None: the model or the alias does not exist."""
        from mlflow.exceptions import MlflowException
        from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode

        absent = {ErrorCode.Name(code) for code in (INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST)}
        try:
            return str(self._client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in absent:
                return None
            message = f"alias {alias!r} of registered model {name!r}: {error.message}"
            raise TrackingError(message) from error

    def _run_url(self, run: Run) -> str | None:
        return self._page(f"experiments/{run.info.experiment_id}/runs/{run.info.run_id}")

    def _page(self, place: str) -> str | None:
        if not self._pages.startswith(("http://", "https://")):
            return None
        return f"{_without_password(self._pages).rstrip('/')}/#/{place}"


class TrackedRun:
    """A run that is going on.

    Attributes:
        run_id: MLflow's id.
        run_url: its page on the server; None: there is no server.
    """

    def __init__(self, client: MlflowClient, run: Run, run_url: str | None) -> None:
        self._client = client
        self.run_id: str = run.info.run_id
        self.run_url = run_url

    def log_parameters(self, parameters: Mapping[str, object]) -> None:
        """Record settings; values longer than MLflow stores are cut, and end in an ellipsis.

        Raises:
            TrackingError: a parameter was recorded before with another value.
        """
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_PARAMS_TAGS_PER_BATCH

        entries = [Param(_key(name), _cut(str(value), MAX_PARAM_VAL_LENGTH)) for name, value in parameters.items()]
        with _refusals(f"parameters of run {self.run_id}"):
            for start in range(0, len(entries), MAX_PARAMS_TAGS_PER_BATCH):
                self._client.log_batch(self.run_id, params=entries[start : start + MAX_PARAMS_TAGS_PER_BATCH])

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Record figures at a step; ``@`` in a name becomes ``_at_``, which MLflow accepts."""
        self.log_curves({name: [(step, value)] for name, value in metrics.items()})

    def log_curves(self, curves: Mapping[str, list[tuple[int, float]]]) -> None:
        """Record whole curves, step and value, in as few calls as MLflow allows."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_METRICS_PER_BATCH

        now = int(time.time() * 1000)
        entries = [Metric(_key(name), value, now, step) for name, points in curves.items() for step, value in points]
        with _refusals(f"metrics of run {self.run_id}"):
            for start in range(0, len(entries), MAX_METRICS_PER_BATCH):
                self._client.log_batch(self.run_id, metrics=entries[start : start + MAX_METRICS_PER_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Add tags, such as links to the orchestrator's run."""
        with _refusals(f"tags of run {self.run_id}"):
            for key, value in tags.items():
                self._client.set_tag(self.run_id, key, _tag(value))

    def log_artifact(self, artifact: Path | bytes, name: str | None = None) -> None:
        """Store a file, a folder or bytes.

        Args:
            artifact: path of a file or folder, or the content itself.
            name: file name for bytes, such as ``recall.png``; for a folder, the folder that it becomes.

        Raises:
            TrackingError: the path does not exist, or bytes come without a name.
        """
        if isinstance(artifact, bytes):
            if not name:
                message = "an artifact given as bytes needs a name"
                raise TrackingError(message)
            with tempfile.TemporaryDirectory() as folder:
                staged = Path(folder) / name
                staged.write_bytes(artifact)
                self.log_artifact(staged)
            return
        if not artifact.exists():
            message = f"artifact {artifact}: no such file or folder"
            raise TrackingError(message)
        with _refusals(f"artifact {artifact.name} of run {self.run_id}"):
            if artifact.is_dir():
                self._client.log_artifacts(self.run_id, str(artifact), artifact_path=name or artifact.name)
            else:
                self._client.log_artifact(self.run_id, str(artifact))


def _relocate(database: Path, old: str, artifacts: Path) -> None:
    """Have a database that was moved or copied with its artifacts name them where they are now.

    MLflow keeps their absolute addresses: a copied store would write into the one that it was copied from.
    """
    before = Path(unquote(urlsplit(old).path))
    if not old.startswith("file:") or before.name != _ARTIFACTS or before == artifacts:
        return
    if before.is_dir() and not artifacts.is_dir():
        return  # the database alone was moved
    logger.info("%s was moved: its artifacts, formerly in %s, are in %s", database, before, artifacts)
    new = artifacts.as_uri()
    with closing(sqlite3.connect(database)) as connection, connection:
        for table, columns in _ADDRESSES.items():
            known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
            for column in known.intersection(columns):
                moved = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - names of ours
                of_old = f"WHERE {column} = ? OR substr({column}, 1, ?) = ?"
                connection.execute(f"{moved} {of_old}", (new, len(old) + 1, old, len(old) + 1, f"{old}/"))


def upgrade_database(uri: str) -> bool:
    """Bring MLflow's database to this version's form; False: ``uri`` is a server's, who upgrades its own.

    Raises:
        TrackingError: it cannot be opened.
    """
    if uri.startswith(("http://", "https://")):
        return False
    from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine_with_retry

    with _refusals(f"tracking URI {_without_password(uri)}"):
        _upgrade_db(create_sqlalchemy_engine_with_retry(uri))
    return True


def _connect(uri: str) -> MlflowClient:
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Making or migrating the database logs every schema step.
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    if uri.startswith(_SQLITE):
        Path(uri.removeprefix(_SQLITE)).resolve().parent.mkdir(parents=True, exist_ok=True)
    with _refusals(f"tracking URI {_without_password(uri)}"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        message = f"MLflow, {what}: {error.message}"
        raise TrackingError(message) from error


def _key(name: str) -> str:
    """A name of the characters and the length that MLflow accepts."""
    from mlflow.utils.validation import MAX_ENTITY_KEY_LENGTH

    return _FOREIGN_CHARACTERS.sub("_", name.replace("@", "_at_"))[:MAX_ENTITY_KEY_LENGTH]


def _tag(value: Any) -> str:  # noqa: ANN401 - any value has a text
    from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

    return _cut(str(value), MAX_TAG_VAL_LENGTH)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - len(_CUT)] + _CUT


def _without_password(uri: str) -> str:
    return re.sub(r"//[^/@]*@", "//", uri)
