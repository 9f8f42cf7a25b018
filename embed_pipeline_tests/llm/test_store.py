"""Stored answers survive kills and other processes, and damage is noticed."""

from __future__ import annotations

import multiprocessing
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from embed_pipeline.llm.store import Answer, ResponseStore, ResponseStoreError, request_key

ANSWER = Answer("an answer", "stop", 12, 3)


def test_an_answer_survives_reopening(tmp_path: Path) -> None:
    with ResponseStore(tmp_path / "deep" / "r.sqlite") as store:
        assert store.get("k") is None
        store.put("k", ANSWER)
    with ResponseStore(tmp_path / "deep" / "r.sqlite") as store:
        assert store.get("k") == Answer("an answer", "stop", 12, 3, cached=True)
        assert (store.hits, store.misses, len(store)) == (1, 0, 1)


def test_a_store_of_an_earlier_version_is_read_and_takes_log_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as store:
        store.put("old", ANSWER)
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE responses DROP COLUMN log_probability")
    database.commit()
    database.close()
    with ResponseStore(path) as store:
        store.put("new", replace(ANSWER, log_probability=-0.5))
    with ResponseStore(path) as store:
        assert store.get("old") == replace(ANSWER, cached=True)
        assert store.get("new") == replace(ANSWER, cached=True, log_probability=-0.5)


def test_the_key_depends_on_every_part_and_not_on_order() -> None:
    request = {"model": "m", "messages": [{"role": "user", "content": "q"}], "temperature": 0.3, "schema": {"a": 1}}
    assert request_key(request) == request_key(dict(reversed(request.items())))
    for name, value in (("model", "n"), ("messages", []), ("temperature", 0.4), ("schema", {})):
        assert request_key({**request, name: value}) != request_key(request)
    with pytest.raises(ValueError):
        request_key({"temperature": float("nan")})


def test_the_first_answer_stays(store: ResponseStore) -> None:
    assert store.put("k", ANSWER) == ANSWER
    assert store.put("k", Answer("another", "stop", 1, 1)).text == "an answer"
    assert store.get("k").text == "an answer"


@pytest.mark.parametrize("damage", ["not a database", "overwritten pages", "future format"])
def test_a_corrupt_file_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "responses.sqlite"
    with ResponseStore(path) as store:
        for number in range(500):
            store.put(f"{number:064}", Answer("text " * 50, "stop", 1, 1))
    if damage == "not a database":
        path.write_bytes(b"this is no database at all" * 200)
    elif damage == "overwritten pages":
        content = bytearray(path.read_bytes())
        content[8192:40960] = b"\x5a" * (40960 - 8192)
        path.write_bytes(content)
    else:
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
    with pytest.raises(ResponseStoreError, match=r"responses\.sqlite cannot be used: .+ move it away") as caught:
        ResponseStore(path)
    assert str(path) in str(caught.value)


def test_a_flipped_letter_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    with ResponseStore(path) as store:
        store.put("k", Answer("a truthful answer", "stop", 1, 1))
    path.write_bytes(path.read_bytes().replace(b"a truthful", b"a tRuthful"))
    with ResponseStore(path) as store, pytest.raises(ResponseStoreError, match="row k does not match its checksum"):
        store.get("k")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResponseStoreError, match="file/responses"):
        ResponseStore(tmp_path / "file" / "responses.sqlite")


def _write(path: Path, process: int) -> None:
    with ResponseStore(path) as store:
        for number in range(100):
            store.put(f"{process}-{number}", ANSWER)


def test_processes_write_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "responses.sqlite"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    with ResponseStore(path) as store:
        assert len(store) == 300


def test_opening_waits_for_a_process_that_is_making_the_same_store(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("CREATE TABLE being_made (x)")
    done = threading.Timer(0.3, writer.execute, ("COMMIT",))
    done.start()
    with ResponseStore(path) as store:
        assert store.put("k", ANSWER) == ANSWER
    done.join()
    writer.close()


def test_answers_that_are_meant_are_removed_for_good(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    with ResponseStore(path) as store:
        store.put("plain", Answer("What is a quern?", "stop", 1, 1))
        store.put("escaped", Answer('{"question": "Who wrote \\"Emma\\"?"}', "stop", 1, 1))
        store.put("other", Answer("a kettle", "stop", 1, 1))
        store.put("kiln", Answer("a quern and a kiln", "stop", 1, 1))
        assert store.remove_where(lambda text: "quern" in text or "Emma" in text) == 3
        assert store.texts() == ["a kettle"]
        assert store.get("other") is not None
    held = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"kiln" not in held
    assert b"Emma" not in held
