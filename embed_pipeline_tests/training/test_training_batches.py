"""Examples as batches."""

from __future__ import annotations

from pathlib import Path

import pytest

from embed_pipeline.embedding.models import load_model
from embed_pipeline.settings import Embedding
from embed_pipeline.training.loss import IGNORED, POSITIVE
from embed_pipeline.training.task import TrainingError, number_examples
from embed_pipeline.training.training_batches import Collator, ShuffledBatches
from embed_pipeline_tests.training import small


def collator(folder: Path, prefixes: tuple[str, str] = ("", "")) -> Collator:
    numbered = number_examples(small.examples(), small.passages())
    embedding = Embedding(device="cpu", query_prefix=prefixes[0], passage_prefix=prefixes[1])
    return Collator(numbered, load_model(folder, embedding))


def test_a_batch_encodes_each_distinct_passage_once_and_masks_the_siblings_positives(tiny_model: Path) -> None:
    # e00 and e12 are siblings (positives s00 and s12, negative s05); e05's positive is s05.
    batch = collator(tiny_model)([{"index": 0}, {"index": 12}, {"index": 5}])
    assert batch["passage_input_ids"].shape[0] == 4
    relations = batch["label"].tolist()
    assert sorted(row.count(POSITIVE) for row in relations) == [1, 1, 1]
    assert sorted(row.count(IGNORED) for row in relations) == [0, 1, 1]
    siblings = [row for row in relations if IGNORED in row]
    assert siblings[0].index(POSITIVE) == siblings[1].index(IGNORED)
    assert siblings[0].index(IGNORED) == siblings[1].index(POSITIVE)


def test_a_copy_of_a_positive_is_never_scored_against_its_question(tiny_model: Path) -> None:
    texts = small.passages()
    texts["s01"] = texts["s00"]
    numbered = number_examples(small.examples(), texts)
    model = load_model(tiny_model, Embedding(device="cpu"))
    batch = Collator(numbered, model)([{"index": 0}, {"index": 1}])
    # Both questions share one passage as positive; the other columns are their negatives s05 and s06.
    assert batch["label"].shape == (2, 3)
    assert {row.index(POSITIVE) for row in batch["label"].tolist()} == {batch["label"][0].tolist().index(POSITIVE)}


def test_questions_in_the_same_words_share_their_positives() -> None:
    frame = small.examples()
    same = frame.with_columns(question=frame["question"].replace("what is the object", "what is the value"))
    numbered = number_examples(same, small.passages())
    asked = numbered.question[0]
    assert numbered.question[1] == asked
    assert numbered.known[asked] == {numbered.positive[i] for i in (0, 1, 12, 13)}


def test_prefixes_are_put_before_both_sides(tiny_model: Path) -> None:
    plain, prefixed = collator(tiny_model), collator(tiny_model, ("how is ", "the a "))
    rows = [{"index": 0}]
    for side in ("question", "passage"):
        extra = prefixed(rows)[f"{side}_input_ids"].shape[1] - plain(rows)[f"{side}_input_ids"].shape[1]
        assert extra == 2


def test_an_unknown_segment_is_named() -> None:
    texts = small.passages()
    del texts["s03"]
    with pytest.raises(TrainingError, match="'s03'"):
        number_examples(small.examples(), texts)


def test_batches_depend_on_seed_and_epoch_alone_and_differ_by_at_most_one() -> None:
    batches = ShuffledBatches(10, 4, seed=1)
    first = list(batches)
    assert sorted(len(batch) for batch in first) == [3, 3, 4]
    assert sorted(i for batch in first for i in batch) == list(range(10))
    batches.set_epoch(1)
    assert list(batches) != first
    batches.set_epoch(0)
    assert list(batches) == first
    assert list(ShuffledBatches(10, 4, seed=2)) != first


def test_several_processes_get_as_many_batches_each() -> None:
    batches = list(ShuffledBatches(10, 4, seed=1, processes=2))
    assert sorted(len(batch) for batch in batches) == [2, 2, 3, 3]
    assert sorted(i for batch in batches for i in batch) == list(range(10))
    assert len(ShuffledBatches(3, 4, seed=1, processes=2)) == 2
