"""Mining by rule: never a positive, a rejected passage or a duplicate; and one example for each positive."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from embed_pipeline import tables
from embed_pipeline.settings import Embedding, Settings
from embed_pipeline.training_data import candidates as candidates_module
from embed_pipeline.training_data.candidates import similarity_ceiling
from embed_pipeline.training_data.negatives import MiningError, mine_hard_negatives, unroll
from embed_pipeline.training_data.questions import SCHEMA
from embed_pipeline_tests.training_data import material
from embed_pipeline_tests.training_data.material import GivenVectors, prose, settings
from embed_pipeline_tests.training_data.mined import mined


def questions(*rows: tuple[str, str, list[str]]) -> pl.DataFrame:
    return pl.DataFrame(
        [(qa_id, "generated", text, positives, [], []) for qa_id, text, positives in rows], schema=SCHEMA, orient="row"
    )


def angle(degrees: float) -> list[float]:
    return [float(np.cos(np.radians(degrees))), float(np.sin(np.radians(degrees)))]


def mine(
    asked: pl.DataFrame, corpus: pl.DataFrame, vectors: dict[str, list[float]], **options: Any
) -> list[dict[str, Any]]:
    return mine_hard_negatives(asked, corpus, settings(**options), GivenVectors(vectors)).to_dicts()


def around(*degrees: float) -> tuple[pl.DataFrame, dict[str, list[float]]]:
    """A corpus of one-segment documents at these angles from the question ``q``."""
    texts = [prose(i) for i in range(len(degrees))]
    corpus = material.corpus({f"{i:02}": [text] for i, text in enumerate(texts)})
    return corpus, {"q": angle(0), **{text: angle(d) for text, d in zip(texts, degrees, strict=True)}}


def test_most_similar_under_the_ceiling_best_first():
    corpus, vectors = around(40, 0, 10, 41, 50, 45)
    (row,) = mine(questions(("a", "q", ["00#0"])), corpus, vectors, num_negatives=2)
    assert row["negative_segment_ids"] == ["05#0", "04#0"]
    assert row["above_ceiling"] == 3
    assert row["positive_similarities"] == pytest.approx([np.cos(np.radians(40))])
    assert row["ceiling"] == pytest.approx(0.95 * np.cos(np.radians(40)))
    assert row["negative_similarities"] == pytest.approx([np.cos(np.radians(45)), np.cos(np.radians(50))])


def test_an_answer_that_is_not_trained_on_is_no_negative_of_anybody_who_asks_the_same():
    corpus, vectors = around(10, 40, 45, 50)
    asked = questions(("a", "q", ["00#0"]), ("b", "q", ["00#0"]))
    asked = asked.with_columns(other_answer_ids=pl.Series([["01#0"], []], dtype=pl.List(pl.String)))
    for row in mine(asked, corpus, vectors, num_negatives=2):
        assert row["positive_segment_ids"] == ["00#0"]
        assert row["negative_segment_ids"] == ["02#0", "03#0"]
    wrong = asked.with_columns(other_answer_ids=pl.Series([["zz"], []], dtype=pl.List(pl.String)))
    with pytest.raises(MiningError, match="zz"):
        mine(wrong, corpus, vectors)


def test_the_least_similar_positive_sets_the_ceiling():
    corpus, vectors = around(10, 60, 30, 70, 61)
    (row,) = mine(questions(("a", "q", ["00#0", "01#0"])), corpus, vectors, num_negatives=3)
    assert row["negative_segment_ids"] == ["03#0"]
    assert row["above_ceiling"] == 2


def test_negative_similarities_have_a_ceiling_below_the_positive():
    assert similarity_ceiling([-0.2], settings().training_data) == pytest.approx(-0.21)
    assert similarity_ceiling([0.4], settings().training_data) == pytest.approx(0.38)
    corpus, vectors = around(120, 119, 121, 122.5, 150)
    (row,) = mine(questions(("a", "q", ["00#0"])), corpus, vectors, num_negatives=4)
    assert row["negative_segment_ids"] == ["03#0", "04#0"]


def test_fewer_survive_fewer_are_returned():
    corpus, vectors = around(60, 5, 6, 7)
    (row,) = mine(questions(("a", "q", ["00#0"])), corpus, vectors, num_negatives=3)
    assert row["negative_segment_ids"] == []
    assert row["above_ceiling"] == 3
    corpus, vectors = around(60, 80)
    (row,) = mine(questions(("a", "q", ["00#0"])), corpus, vectors, num_negatives=5)
    assert row["negative_segment_ids"] == ["01#0"]


def test_negatives_far_below_many_that_come_too_close_are_found():
    corpus, vectors = around(60, *np.linspace(1, 40, 60), 80, 70)
    (row,) = mine(questions(("a", "q", ["00#0"])), corpus, vectors, num_negatives=2)
    assert row["negative_segment_ids"] == ["62#0", "61#0"]
    assert row["above_ceiling"] == 60


def test_copies_of_a_positive_are_no_negatives_and_copies_of_a_negative_one():
    copied = prose(1).split()
    copied[-1] = "edited"
    texts = {
        "a": [prose(1)],
        "b": [prose(1)],
        "c": [" ".join(copied)],
        "d": [prose(2)],
        "e": [prose(2)],
        "f": [prose(3)],
    }
    corpus = material.corpus(texts | {"b": [prose(1), "more"]})
    vectors = {
        "q": angle(0),
        prose(1): angle(30),
        " ".join(copied): angle(40),
        prose(2): angle(50),
        prose(3): angle(60),
    }
    (row,) = mine(questions(("x", "q", ["b#0", "a#0"])), corpus, vectors | {"more": angle(70)}, num_negatives=5)
    assert row["negative_segment_ids"] == ["d#0", "f#0", "b#1"]
    assert row["positive_segment_ids"] == ["b#0"]


def test_positives_of_the_same_question_asked_again_are_no_negatives():
    corpus, vectors = around(40, 50, 60)
    vectors |= {"What?": angle(0), "what": angle(0)}
    asked = questions(("a", "What?", ["00#0"]), ("b", "what", ["01#0"]))
    rows = mine(asked, corpus, vectors, num_negatives=3)
    assert [row["negative_segment_ids"] for row in rows] == [["02#0"], ["02#0"]]


def test_range_counts_candidates_without_positives():
    corpus, vectors = around(10, 40, 42, 44, 46, 48)
    asked = questions(("a", "q", ["00#0"]))
    (row,) = mine(asked, corpus, vectors, num_negatives=9, range_min=1, range_max=4)
    assert row["negative_segment_ids"] == ["02#0", "03#0", "04#0"]


def test_the_corpus_is_encoded_once_each_text_once(monkeypatch):
    monkeypatch.setattr(candidates_module, "QUESTIONS_PER_BLOCK", 2)
    corpus, vectors = around(10, 40, 50)
    vectors |= {f"q{i}": angle(i) for i in range(5)}
    encoder = GivenVectors(vectors)
    asked = questions(*((f"a{i}", f"q{i}", ["00#0"]) for i in range(5)))
    whole = mine_hard_negatives(asked, corpus, settings(), encoder)
    assert encoder.calls == [("query", 5), ("passage", 3)]
    monkeypatch.setattr(candidates_module, "QUESTIONS_PER_BLOCK", 100)
    assert mine_hard_negatives(asked, corpus, settings(), encoder).equals(whole)


def test_no_negatives_wanted():
    corpus, vectors = around(10, 40)
    (row,) = mine(questions(("a", "q", ["00#0"])), corpus, vectors, num_negatives=0)
    assert row["negative_segment_ids"] == []
    assert row["positive_similarities"]


@pytest.mark.parametrize("positives", [[], ["nowhere#0"]])
def test_a_question_without_a_known_positive_is_refused(positives):
    corpus, vectors = around(10)
    with pytest.raises(MiningError, match="question 'a': positives or labelled negatives"):
        mine(questions(("a", "q", positives)), corpus, vectors)


@st.composite
def _tasks(draw: st.DrawFn) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, list[float]], Settings]:
    """Corpora of few directions and texts, so that ties, copies and near-copies are common."""
    directions = st.lists(st.sampled_from([-2.0, -1.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3)
    bases = [prose(i, 12) for i in range(draw(st.integers(2, 8)))]
    texts = [
        draw(st.sampled_from([base, base + " tail", base + " " + prose(90 + i, 30)]))
        for i, base in enumerate(bases * 2)
    ]
    corpus = material.corpus({f"{i:02}": [text, f"own text of {i}"] for i, text in enumerate(texts)})
    ids = corpus["segment_id"].to_list()
    asked = [
        (
            f"a{i}",
            draw(st.sampled_from(["one?", "One", "two", f"three{i}"])),
            draw(st.lists(st.sampled_from(ids), min_size=1, max_size=4)),
        )
        for i in range(draw(st.integers(1, 4)))
    ]
    vectors = {text: draw(directions) for text in sorted({*corpus["text"], *(row[1] for row in asked)})}
    range_min = draw(st.integers(0, 3))
    options = settings(
        num_negatives=draw(st.integers(0, 5)),
        relative_margin=draw(st.sampled_from([0.0, 0.05, 0.5])),
        range_min=range_min,
        range_max=range_min + draw(st.integers(1, 12)),
        near_duplicate_passages=draw(st.sampled_from([0.8, 1.0])),
    )
    return questions(*asked), corpus, vectors, options


@pytest.mark.slow
@hypothesis_settings(max_examples=150, deadline=None)
@given(_tasks())
def test_the_rules_hold_whatever_the_corpus(task):
    asked, corpus, vectors, options = task
    mined = mine_hard_negatives(asked, corpus, options, GivenVectors(vectors)).to_dicts()
    texts = dict(corpus.sort("segment_id").select("segment_id", "text").iter_rows())
    ordered = list(asked.sort("qa_id").select("qa_id", "question", "positive_segment_ids").iter_rows())
    unit = dict(zip(vectors, GivenVectors(vectors).encode(list(vectors), "query").astype(np.float64), strict=True))
    wanted = options.training_data
    assert [row["qa_id"] for row in mined] == [qa_id for qa_id, _, _ in ordered]
    for row, (_, question, positives) in zip(mined, ordered, strict=True):
        same = question.lower().strip("?")
        known = {texts[p] for _, text, own in ordered for p in own if text.lower().strip("?") == same}
        similarity = {text: float(np.float32(unit[question] @ unit[text])) for text in dict.fromkeys(texts.values())}
        ceiling = similarity_ceiling([similarity[texts[p]] for p in positives], wanted)
        ranked = sorted((text for text in similarity if text not in known), key=lambda text: -similarity[text])
        survivors = [
            text
            for text in ranked[wanted.range_min : wanted.range_max]
            if similarity[text] <= ceiling
            and not any(_near(text, own, wanted.near_duplicate_passages) for own in known)
        ]
        found = [texts[n] for n in row["negative_segment_ids"]]
        assert len(found) == len(set(found))
        assert row["negative_similarities"] == [similarity[text] for text in found]
        assert found == survivors[: wanted.num_negatives]


def _near(one: str, other: str, threshold: float) -> bool:
    small, large = sorted((_grams(one), _grams(other)), key=len)
    return len(small & large) >= threshold * len(small)


def _grams(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}


def test_a_question_becomes_one_example_for_each_positive():
    frame = mined(
        {"qa_id": "b", "positive_segment_ids": ["s2", "s1"], "positive_similarities": [0.7, 0.6]},
        {"qa_id": "a", "positive_segment_ids": ["s3"], "positive_similarities": [0.9]},
    )
    rows = unroll(frame).to_dicts()
    assert [(row["qa_id"], row["positive_segment_id"], row["positive_similarity"]) for row in rows] == [
        ("a", "s3", 0.9),
        ("b", "s2", 0.7),
        ("b", "s1", 0.6),
    ]
    assert rows[1]["negative_segment_ids"] == rows[2]["negative_segment_ids"] == ["s8", "s9"]
    assert len({row["example_id"] for row in rows}) == 3
    assert unroll(frame).equals(unroll(frame.reverse()))


def test_no_questions_no_examples():
    assert unroll(tables.HARD_NEGATIVES.empty()).equals(tables.TRAINING_EXAMPLES.empty())


def test_passages_are_embedded_with_their_context_and_compared_without():
    texts = [prose(0), prose(1), prose(2), prose(0)]
    corpus = material.corpus(
        {f"{i:02}": [text] for i, text in enumerate(texts)}, {f"{i:02}": f"T{i}" for i in range(4)}
    )
    vectors = {f"T{i}\n\n{text}": angle(d) for i, (text, d) in enumerate(zip(texts, (10, 40, 50, 30), strict=True))}
    options = settings(num_negatives=3).model_copy(update={"embedding": Embedding(context="title")})
    asked = questions(("a", "q", ["00#0"]), ("b", "r", ["03#0"]))
    found = mine_hard_negatives(asked, corpus, options, GivenVectors({"q": angle(0), "r": angle(0), **vectors}))
    # 03#0 says what 00#0 says: it is no negative of it, but is embedded as what it is.
    assert found["negative_segment_ids"].to_list() == [["01#0", "02#0"]] * 2
    assert found["positive_segment_ids"].to_list() == [["00#0"], ["03#0"]]
    assert [round(one, 4) for (one,) in found["positive_similarities"]] == [0.9848, 0.866]
