"""What the machine refuses is one sentence with the place and what to do; text of documents is printed as text."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from embed_pipeline import cli, tables
from embed_pipeline.settings import load_settings

KEPT = "run the same command again; what was stored before is intact"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in an empty folder: exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")

    def command(*arguments, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(f"EMBED_PIPELINE_{name}", str(value))
        monkeypatch.setattr("sys.argv", ["embed-pipeline", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        return ended.value.code or 0, shown.out, shown.err

    return command


def is_one_sentence(err, *parts):
    assert "Traceback" not in err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    for part in parts:
        assert part in err, err


def test_a_store_that_cannot_be_made(run, tmp_path):
    (tmp_path / "file").write_text("x")
    status, _, err = run("status", PATHS__STORE=tmp_path / "file" / "store")
    assert status == 1
    is_one_sentence(err, "Not a directory", str(tmp_path / "file"), KEPT)


@pytest.mark.parametrize("number", [28, 30, 122, 13, 5])
def test_a_disk_that_takes_nothing(run, tmp_path, monkeypatch, number):
    def refuse(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    status, _, err = run("status", PATHS__STORE=tmp_path / "store")
    assert status == 1
    advice = {28: "free space there", 122: "free space there", 5: "check the disk"}.get(number, "make it writable")
    is_one_sentence(err, os.strerror(number), str(tmp_path / "store" / "dagster" / "dagster.yaml"), advice, KEPT)


def test_a_database_that_is_damaged(run, tmp_path):
    (tmp_path / "store" / "dagster" / "history").mkdir(parents=True)
    (tmp_path / "store" / "dagster" / "history" / "runs.db").write_bytes(b"no database " * 1000)
    status, _, err = run("status", PATHS__STORE=tmp_path / "store")
    assert status == 1
    is_one_sentence(err, "a database cannot be used", "file is not a database", KEPT)


def test_a_database_server_that_is_dead(run, tmp_path, monkeypatch):
    pytest.importorskip("dagster_postgres")
    pytest.importorskip("psycopg")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "dagster.yaml").write_text(
        "storage:\n  postgres:\n    postgres_url: postgresql://nobody:secret@127.0.0.1:9/none\n"
    )
    status, _, err = run("status", PATHS__STORE=tmp_path / "store")
    assert status == 1
    is_one_sentence(err, "127.0.0.1", KEPT)
    assert "secret" not in err


def test_a_worker_where_dagster_executes_runs_in_another_way(run, tmp_path):
    pytest.importorskip("dagster_postgres")
    status, _, err = run("worker", PATHS__STORE=tmp_path / "store")
    assert status == 1
    is_one_sentence(err, "runs are executed by DefaultRunLauncher", "set run_launcher to WorkerRunLauncher")


def test_brackets_and_escapes_in_paths_and_documents_are_shown(run, tmp_path):
    store = tmp_path / "store"
    (store / "tables").mkdir(parents=True)
    for table in (tables.QA_DATASET, tables.DATASET_SPLIT, tables.CORPUS, tables.HARD_NEGATIVES):
        table.empty().write_parquet(store / "tables" / f"{table.name}.parquet")
    folder = tmp_path / "out[/prod] [old] \x1b]0;title\x07"
    status, out, err = run("dataset", "beir", str(folder), PATHS__STORE=store)
    assert "MarkupError" not in err
    assert "\x1b" not in out + err
    if status == 0:
        assert r"out[/prod] [old] \x1b]0;title\x07" in out
        assert folder.is_dir()


@pytest.mark.parametrize("key", ["", " \n"])
def test_a_blank_key_is_refused_at_the_start(run, tmp_path, key):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    status, _, err = run("serve", "--bundle", str(bundle), SERVING_API_KEY=key, SERVING__PORT="auto")
    assert status == 1
    is_one_sentence(err, "EMBED_PIPELINE_SERVING_API_KEY is set and blank")


def test_init_writes_a_project_and_overwrites_nothing(run, tmp_path):
    status, out, _ = run("init", "new")
    project = tmp_path / "new"
    assert status == 0
    assert "put documents into new/data/documents" in out
    assert {path.name for path in project.iterdir()} == {
        ".gitignore", "dagster.yaml", "data", "embed_pipeline.toml", "requirements-weights.txt", "workspace.yaml",
    }  # fmt: skip
    settings = project / "embed_pipeline.toml"
    assert load_settings(settings) == load_settings(), "what it sets is commented out"
    settings.write_text(re.sub(r"^# ([a-z_]+ = )", r"\1", settings.read_text(), flags=re.MULTILINE))
    assert load_settings(settings).llm.max_cost == 20, "its examples are settings"
    status, _, err = run("init", "new")
    assert status == 1
    is_one_sentence(err, "new already has .gitignore", "name another folder")


@pytest.mark.parametrize("name", ["dagster.yaml", "workspace.yaml", "requirements-weights.txt"])
def test_a_new_project_gets_the_files_of_this_one(name):
    root = Path(cli.__file__).parents[1]
    assert (root / "embed_pipeline" / "project_files" / name).read_bytes() == (root / name).read_bytes()
