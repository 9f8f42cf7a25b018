from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from embed_pipeline.corpus.batches import cut_batches, forget_path, load_batch
from embed_pipeline.corpus.boilerplate import (
    Cleaned,
    find_boilerplate,
    learned_lines,
    remember_lines,
    remove_boilerplate,
)
from embed_pipeline.corpus.current import present_documents
from embed_pipeline.corpus.documents import clean_documents, read_documents
from embed_pipeline.corpus.sample import write_sample
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.settings import Corpus, Settings
from embed_pipeline.text.blocks import from_rows
from embed_pipeline.text.markdown import markdown_blocks

MakeSettings = Callable[..., Settings]

CORPUS = Corpus(boilerplate_share=0.3, boilerplate_documents=10)
MENU = "- [Home](/)\n- [Products and services](/products)\n- [Contact us](/contact)"
FOOT = "Copyright Example Works. All rights reserved.\nNo part may be copied without leave."


def body(topic: int, words: int = 120) -> str:
    """A page that shares no line with another."""
    chance = random.Random(topic)
    return f"# Page {topic}\n\n" + " ".join(f"t{topic}w{chance.randrange(50)}" for _ in range(words)) + "\n"


def _cleaned(texts: Sequence[str], corpus: Corpus, known: Sequence[str] = ()) -> Cleaned:
    return remove_boilerplate([(text, markdown_blocks(text)) for text in texts], corpus, known)


def framed(topic: int, frame: str = FOOT) -> str:
    return f"{body(topic)}\n{frame}\n"


def test_what_many_documents_say_stays_in_the_first_and_leaves_the_others() -> None:
    texts = [f"{MENU}\n\n{framed(topic)}" for topic in range(12)] + [body(topic) for topic in range(20, 28)]
    cleaned = _cleaned(texts, CORPUS)
    assert cleaned.texts[0] == texts[0]
    assert list(cleaned.texts[1:12]) == [body(topic) + "\n" for topic in range(1, 12)]
    assert list(cleaned.texts[12:]) == texts[12:]
    assert {(line.documents, line.removed_from) for line in cleaned.lines} == {(12, 11)}
    assert {line.text for line in cleaned.lines} == {*MENU.split("\n"), *FOOT.split("\n")}


def test_lines_are_listed_most_frequent_first() -> None:
    texts = [framed(topic) for topic in range(10)] + [
        framed(topic, "Read the notes on safety first.") for topic in range(20, 35)
    ]
    found = [(line.text.split()[0], line.documents) for line in _cleaned(texts, CORPUS).lines]
    assert found == [("Read", 15), ("Copyright", 10), ("No", 10)]


def test_a_menu_in_another_order_is_the_same_menu() -> None:
    entries = MENU.split("\n")
    texts = [f"{chr(10).join(entries[topic % 3 :] + entries[: topic % 3])}\n\n{body(topic)}" for topic in range(12)]
    assert _cleaned(texts, CORPUS).texts[1:] == tuple(body(topic) for topic in range(1, 12))


@pytest.mark.parametrize(
    ("documents", "share", "found"), [(9, 0.3, False), (10, 0.3, True), (12, 0.7, False), (12, "off", False)]
)
def test_both_bounds_must_be_reached_and_off_is_off(documents: int, share: Any, *, found: bool) -> None:
    texts = [framed(topic) for topic in range(documents)] + [body(topic) for topic in range(20, 28)]
    cleaned = _cleaned(texts, Corpus(boilerplate_share=share, boilerplate_documents=10))
    assert bool(cleaned.lines) == (cleaned.texts != tuple(texts)) == found


@pytest.mark.parametrize(
    "kept",
    [
        "## What to do next time",
        "What to do next time\n====================",
        "```\nimport numpy as np\n```",
        "```\nimport numpy as np\n\nimport polars as pl now\n```",
        "    import numpy as np now",
        "| Name | Type | What it means |\n|---|---|---|",
        "The function takes these arguments:",
        "Example",
    ],
    ids=["heading", "underlined", "fence", "fence with blank line", "code", "table", "introduction", "word"],
)
def test_structure_is_never_taken(kept: str) -> None:
    texts = [framed(topic, kept) for topic in range(12)]
    assert _cleaned(texts, CORPUS).texts == tuple(texts)


def test_a_common_line_within_a_paragraph_of_its_own_stays() -> None:
    texts = [framed(topic, f"This one says {topic} things.\n{FOOT}") for topic in range(12)]
    assert _cleaned(texts, CORPUS).texts == tuple(texts)


def test_numbers_of_pages_are_one_line_and_other_numbers_are_not() -> None:
    def paged(topic: int) -> str:
        return "\n".join(f"{body(100 * topic + page)}\nManual of 2024, page {page} of 4\n" for page in range(1, 5))

    cleaned = _cleaned([paged(topic) for topic in range(12)], CORPUS)
    assert not any("page 2 of 4" in text for text in cleaned.texts)
    assert sum("page 1 of 4" in text for text in cleaned.texts) == 1
    versions = [framed(topic, f"Available since version 3.{topic}") for topic in range(30)]
    assert _cleaned(versions, CORPUS).texts == tuple(versions)


def test_versions_of_one_document_are_left_whole_and_have_no_say() -> None:
    paragraphs = "\n".join(body(topic, 30) for topic in range(20))
    versions = [f"{paragraphs}\nNew in release {number}: {body(500 + number, 20)}" for number in range(14)]
    texts = versions + [body(topic) for topic in range(30, 40)]
    assert _cleaned(texts, CORPUS).texts == tuple(texts)


def test_copies_of_one_text_count_once() -> None:
    texts = [framed(0)] * 12 + [body(topic) for topic in range(20, 28)]
    assert _cleaned(texts, CORPUS).texts == tuple(texts)


def test_what_earlier_batches_found_leaves_every_document_of_a_small_batch() -> None:
    found = _cleaned([framed(topic) for topic in range(12)], CORPUS)
    known = [line.line_id for line in found.lines]
    later = _cleaned([framed(50), framed(51)], CORPUS, known)
    assert later.texts == (body(50) + "\n", body(51) + "\n")
    assert [(line.documents, line.removed_from) for line in later.lines] == [(2, 2)] * 2


def test_the_sample_has_none(tmp_path: Path) -> None:
    texts = [path.read_text() for path in write_sample("python", tmp_path)]
    assert _cleaned(texts, Corpus()).texts == tuple(texts)


def _drop(folder: Path, settings: Settings, *topics: int, frame: str = FOOT) -> tuple[pl.DataFrame, pl.DataFrame]:
    for topic in topics:
        (folder / f"{topic:03}.md").write_text(framed(topic, frame))
    (batch,), _ = cut_batches(settings)
    documents, lines = clean_documents(read_documents(batch, settings)[0], batch, settings)
    remember_lines(settings.paths.root, lines["line_id"].to_list(), batch.name)
    return documents, lines


@pytest.mark.slow
def test_a_batch_takes_out_what_was_known_when_it_was_cut_and_no_more(
    folder: Path, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    first = _drop(folder, settings, *range(12))
    assert first[1].select("documents", "removed_from", "known").rows() == [(12, 11, False)] * 2
    later = _drop(folder, settings, 50, 51)
    assert later[0]["text"].to_list() == [body(50) + "\n", body(51) + "\n"]
    assert later[1].select("documents", "removed_from", "known").rows() == [(2, 2, True)] * 2
    # What is learned afterwards does not reach into batches whose questions are paid for.
    _drop(folder, settings, *range(100, 112), frame="Printed on recycled paper by Example Works.")
    names = [later[0]["batch"][0], first[0]["batch"][0]]
    for name, before in zip(names, (later, first), strict=True):
        batch = load_batch(settings.paths.root, name)
        again = clean_documents(read_documents(batch, settings)[0], batch, settings)
        assert again[0].equals(before[0])
    forget_path(settings.paths, "050.md")
    assert load_batch(settings.paths.root, names[0]).boilerplate == tuple(sorted(first[1]["line_id"]))


def test_cleaned_documents_are_what_segments_are_cut_from(folder: Path, make_settings: MakeSettings) -> None:
    settings = make_settings()
    documents, _ = _drop(folder, settings, *range(12))
    segments = split_segments(
        documents, settings.corpus, lambda texts: [len(text.split()) for text in texts], max_tokens=None
    )
    joined = segments.group_by("document_id", maintain_order=True).agg(pl.col("text").str.join(""))
    assert dict(joined.iter_rows()) == dict(documents.select("document_id", "text").iter_rows())
    for text, blocks in documents.select("text", "blocks").iter_rows():
        assert from_rows(blocks) == markdown_blocks(text)
    raw = read_documents(load_batch(settings.paths.root, documents["batch"][0]), settings)[0]
    assert (raw["document_id"] == documents["document_id"]).to_list() == [True, *[False] * 11]


def test_rows_of_tables_are_data(folder: Path, make_settings: MakeSettings) -> None:
    for number in range(12):
        (folder / f"{number}.csv").write_text(f"name,state\nvalve {number},open to all users\n")
    settings = make_settings(suffixes=(".csv",))
    (batch,), _ = cut_batches(settings)
    raw = read_documents(batch, settings)[0]
    cleaned, lines = clean_documents(raw, batch, settings)
    assert cleaned.equals(raw)
    assert lines.is_empty()


def test_small_batches_together_show_what_none_shows_alone(folder: Path, make_settings: MakeSettings) -> None:
    settings = make_settings()
    drops = [_drop(folder, settings, *range(5 * drop, 5 * drop + 5))[0] for drop in range(3)]
    assert learned_lines(settings.paths.root) == ()
    batches = {frame["batch"][0]: frame for frame in drops}
    remember_lines(settings.paths.root, find_boilerplate(batches, present_documents(batches), settings.corpus))
    assert len(learned_lines(settings.paths.root)) == 2
    assert _drop(folder, settings, 60)[0]["text"].to_list() == [body(60) + "\n"]
