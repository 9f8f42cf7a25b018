"""Near-duplicate documents and questions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy.cluster.hierarchy import DisjointSet

from embed_pipeline.text.shingles import Shingler, containment
from embed_pipeline.training_data.near_duplicates import (
    join_near_duplicates,
    near_duplicate_questions,
)
from embed_pipeline_tests.training_data.material import prose


def groups(texts: list[str], threshold: float = 0.6) -> list[list[int]]:
    sets = DisjointSet(range(len(texts)))
    join_near_duplicates(texts, threshold, sets)
    return sorted(sorted(group) for group in sets.subsets() if len(group) > 1)


def test_a_quoted_page_and_an_edited_copy_join_and_a_shared_paragraph_does_not():
    edited = prose(4).split()
    edited[30] = "changed"
    texts = [prose(1), prose(2, 500) + " " + prose(1), prose(4), " ".join(edited), prose(5) + " " + prose(6, 20)]
    texts += [prose(7) + " " + prose(6, 20), "", "", "short note", "short note"]
    assert groups(texts) == [[0, 1], [2, 3], [8, 9]]


def test_many_copies_of_a_template_are_one_group_beyond_the_window():
    """Of a run of texts that share a 5-gram, the 64 that follow each are looked at."""
    texts = [f"{prose(1, 120)} value {i}" for i in range(150)] + [prose(i) for i in range(2, 20)]
    assert groups(texts) == [list(range(150))]


def test_equals_the_comparison_of_all_pairs():
    rng = np.random.default_rng(5)
    base = [prose(i, 80).split() for i in range(12)]
    texts = []
    for i in range(60):
        words = list(base[i % 12])
        start = int(rng.integers(0, 40))
        words[start : start + int(rng.integers(0, 60))] = prose(100 + i, 20).split()
        texts.append(" ".join(words))
    expected = DisjointSet(range(len(texts)))
    shingler = Shingler()
    hashes = [shingler.hashes(text) for text in texts]
    for one, other in combinations(range(len(texts)), 2):
        if containment(hashes[one], hashes[other]) >= 0.6:
            expected.merge(one, other)
    found = DisjointSet(range(len(texts)))
    join_near_duplicates(texts, 0.6, found)
    for one, other in combinations(range(len(texts)), 2):
        assert found.connected(one, other) == expected.connected(one, other)


def test_questions_that_ask_the_same():
    others = ["What does the yield statement return?", "How is a class body executed, step by step, in Python 3.8?"]
    same = [
        "what does THE yield statement return",
        "What do yield statements return?",
        "How is a class body executed step by step in Python 3.8, exactly?",
        "How is a class body executed step by step in Python 3.9?",
        "Which function opens a file?",
    ]
    assert near_duplicate_questions(same, others, 0.8) == {0: 0, 1: 0, 2: 1}
    assert near_duplicate_questions(["the of a"], ["The of a?"], 0.8) == {0: 0}
    assert near_duplicate_questions([], others, 0.8) == {}


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 1.0])
def test_prefix_filter_misses_nothing(threshold):
    rng = np.random.default_rng(2)
    draw = lambda: " ".join(f"word{n}" for n in rng.choice(12, int(rng.integers(1, 9)), replace=False))  # noqa: E731 - a line
    questions, others = [draw() for _ in range(80)], [draw() for _ in range(80)]
    expected = {}
    for number, question in enumerate(questions):
        mine = set(question.split())
        near = [
            other
            for other, text in enumerate(others)
            if len(mine & set(text.split())) / len(mine | set(text.split())) >= threshold
        ]
        if near:
            expected[number] = near[0]
    assert near_duplicate_questions(questions, others, threshold) == expected
