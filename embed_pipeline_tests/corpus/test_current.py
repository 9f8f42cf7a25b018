from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from embed_pipeline import tables
from embed_pipeline.corpus.batches import cut_batches
from embed_pipeline.corpus.current import current_corpus, lost_titles, unknown_words
from embed_pipeline.corpus.documents import read_documents
from embed_pipeline.corpus.files import CorpusError
from embed_pipeline.corpus.segments import split_segments
from embed_pipeline.settings import Corpus, Settings

MakeSettings = Callable[..., Settings]


class _History:
    """Drops of files, each cut and read at once, so that older batches keep what they saw."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.documents: dict[str, pl.DataFrame] = {}
        self.segments: dict[str, pl.DataFrame] = {}

    def drop(self) -> None:
        for batch in cut_batches(self._settings)[0]:
            documents = read_documents(batch, self._settings)[0]
            self.documents[batch.name] = documents
            self.segments[batch.name] = split_segments(
                documents,
                self._settings.corpus,
                lambda texts: [len(text.split()) for text in texts],
                max_tokens=None,
            )

    def corpus(self) -> list[tuple[str, str]]:
        corpus, self.left_out = current_corpus(self.documents, self.segments, self._settings.corpus)
        return corpus.select("path", "text").rows()


def _paths(history: _History) -> list[str]:
    return sorted({path for path, _ in history.corpus()})


def test_the_newest_version_counts_and_a_deleted_file_drops_out(folder: Path, make_settings: MakeSettings) -> None:
    history = _History(make_settings())
    for name in ("a.md", "b.md", "c.md"):
        (folder / name).write_text(f"old {name}")
    history.drop()
    (folder / "b.md").write_text("new b.md, changed")
    (folder / "c.md").unlink()
    history.drop()
    assert history.corpus() == [("a.md", "old a.md"), ("b.md", "new b.md, changed")]
    (folder / "c.md").write_text("c.md is back")
    history.drop()
    assert history.corpus()[-1] == ("c.md", "c.md is back")


def test_a_file_that_turns_binary_drops_out(folder: Path, make_settings: MakeSettings) -> None:
    history = _History(make_settings())
    for name in ("a.md", "b.md"):
        (folder / name).write_text(f"old {name}")
    history.drop()
    (folder / "b.md").write_bytes(b"\0\1\2")
    history.drop()
    assert history.corpus() == [("a.md", "old a.md")]


def test_the_same_text_stands_once_under_its_first_present_path(folder: Path, make_settings: MakeSettings) -> None:
    history = _History(make_settings())
    (folder / "m.md").write_text("the same")
    (folder / "other.md").write_text("another")
    history.drop()
    (folder / "a.md").write_text("the same")
    history.drop()
    assert history.corpus() == [("a.md", "the same"), ("other.md", "another")]
    (folder / "a.md").unlink()
    history.drop()
    assert history.corpus() == [("m.md", "the same"), ("other.md", "another")]


def test_of_near_duplicates_the_first_seen_stays_and_the_other_is_recorded(
    folder: Path, make_settings: MakeSettings
) -> None:
    words = [f"word{number}" for number in range(400)]
    history = _History(make_settings())
    (folder / "m.md").write_text(" ".join(words))
    history.drop()
    (folder / "a.md").write_text(" ".join([*words[:-1], "changed"]))
    (folder / "b.md").write_text(" ".join([*words[:300], *(f"other{number}" for number in range(100))]))
    (folder / "c.md").write_text(" ".join(words))
    history.drop()
    # The first text is the first path's that has it now.
    assert _paths(history) == ["b.md", "c.md"]
    reasons = history.left_out.select("path", "reason", "duplicate_of").rows()
    assert reasons == [("a.md", "near_duplicate", "c.md"), ("m.md", "duplicate", "c.md")]
    assert 0.95 <= history.left_out["resemblance"][0] < history.left_out["resemblance"][1] == 1
    for path in ("c.md", "m.md"):
        (folder / path).unlink()
    history.drop()
    assert _paths(history) == ["a.md", "b.md"], "the copy takes the place of what is gone"
    assert history.left_out.is_empty()


def test_near_duplicates_stay_where_the_setting_says_so(folder: Path, make_settings: MakeSettings) -> None:
    words = [f"word{number}" for number in range(400)]
    history = _History(make_settings(near_duplicates="off"))
    (folder / "a.md").write_text(" ".join(words))
    (folder / "b.md").write_text(" ".join([*words[:-1], "changed"]))
    (folder / "c.md").write_text(" ".join(words))
    history.drop()
    assert _paths(history) == ["a.md", "b.md"]
    assert history.left_out.select("path", "reason", "duplicate_of", "resemblance").rows() == [
        ("c.md", "duplicate", "a.md", 1.0)
    ]


def test_a_document_whose_segments_are_missing_is_named(folder: Path, make_settings: MakeSettings) -> None:
    history = _History(make_settings())
    (folder / "a.md").write_text("text")
    history.drop()
    history.segments = {}
    with pytest.raises(CorpusError, match=r"1 documents have no segments, first a\.md of batch 00001-"):
        history.corpus()


def test_an_empty_corpus_is_an_error() -> None:
    with pytest.raises(CorpusError, match="no usable document in any of 0 batches"):
        current_corpus({}, {}, Corpus())


def test_unknown_words_are_summed_over_the_documents_of_the_corpus() -> None:
    rows = [
        {"segment_id": key, "document_id": key[0], "batch": "b", "position": 0, "heading_path": "", "text": "t",
         "token_count": 10, "unknown_tokens": unknown, "repeated": 0, "withheld": ""}
        for key, unknown in (("a1", 0), ("a2", 4), ("c1", 1), ("gone", 9))
    ]  # fmt: skip
    corpus = pl.DataFrame({"segment_id": ["a1", "a2", "c1"], "path": ["a.md", "a.md", "c.md"]})
    found = unknown_words(corpus, {"b": tables.SEGMENTS.frame(rows)})
    assert found.rows() == [("a.md", 20, 4), ("c.md", 10, 1)]


def test_titles_that_nothing_says_are_counted(folder: Path, make_settings: MakeSettings) -> None:
    written = {
        "apart.md": "---\ntitle: Relief valves\n---\nA body with no name.",
        "cased.md": "---\ntitle: Relief Valves\n---\nThese relief valves open.",
        "headed.md": "# Pumps\n\nThey pump.",
        "below.md": "---\ntitle: Pumps\n---\n# Intro\n\nThey pump.\n\n# Pumps\n\nThey still do.",
        "named-by-file.txt": "Nothing names this one.",
    }
    for name, text in written.items():
        (folder / name).write_text(text)
    history = _History(make_settings())
    history.drop()
    corpus, _ = current_corpus(history.documents, history.segments, Corpus())
    assert lost_titles(corpus) == 1
