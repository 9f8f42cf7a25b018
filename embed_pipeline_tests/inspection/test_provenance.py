"""One pair, segment or document: the whole way forward and back."""

from __future__ import annotations

import pytest
from upath import UPath

from embed_pipeline.inspection.pair_index import PairIndex
from embed_pipeline.inspection.provenance import Provenance, marked, raw_responses
from embed_pipeline.lineage import LineageError, stored_tables
from embed_pipeline.llm.store import Answer, ResponseStore
from embed_pipeline_tests.inspection.material import MODELS, write_store
from embed_pipeline_tests.synthesis.material import TEXTS


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> UPath:
    return write_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def provenance(root):
    return Provenance(root, stored_tables(root), MODELS)


def test_a_pair_shows_its_hops_training_evaluation_and_models(provenance):
    found = provenance.pair("q1aa")
    (hop,) = found.hops
    (source,) = hop.sources
    assert (source.path, source.row["segment_id"], source.before, source.after) == (
        "d1.md",
        "s2",
        TEXTS["s1"],
        TEXTS["s3"],
    )
    assert source.parts == [(TEXTS["s2"], True)]
    assert [(shown.row["segment_id"], value) for shown, value in found.positives] == [("s2", 0.8)]
    assert [(shown.row["segment_id"], shown.path, value) for shown, value in found.negatives] == [
        ("s3", "d1.md", 0.7),
        ("gone", "no longer in the corpus", 0.5),
    ]
    assert [model.version for model in found.models] == ["2"]
    assert found.result is None
    lost = provenance.pair("q3aa")
    assert [hop.sources[0].row["segment_id"] for hop in lost.hops] == ["s2", "s5"]
    assert (lost.result["base_rank"], lost.result["tuned_rank"], set(lost.firsts)) == (1, None, {"s4", "s5"})
    assert lost.models == []
    with pytest.raises(LineageError, match="0 pairs"):
        provenance.pair("none")


def test_an_answer_that_was_no_pair_is_found_by_its_address(provenance, root):
    index = PairIndex.build(stored_tables(root))
    ids = sorted(key for key in index.frame["qa_id"] if key.startswith("x"))
    assert len(set(ids)) == 2
    for key in ids:
        reject, sources = provenance.reject(key)
        assert (reject["raw"], [source.path for source in sources]) == ("Why? 7", ["d2.md"])
    assert provenance.reject("x0") is None


def test_a_document_and_a_segment_say_what_was_made_of_them(provenance):
    own, versions, segments, models = provenance.document("d1")
    assert own["forget"] == "embed-pipeline forget d1.md"
    assert len(versions) == 1
    assert [row["segment_id"] for row in segments] == ["s1", "s2", "s3"]
    assert [model.version for model in models] == ["2"]
    assert provenance.document("d2")[3] == []
    assert provenance.document("none") is None
    shown, negative, count, models = provenance.segment("s3")
    assert (shown.before, shown.path, count, negative[0]["qa_id"]) == (TEXTS["s2"], "d1.md", 1, "q1aa")
    assert [model.version for model in models] == ["2"]
    assert provenance.segment("none") is None


@pytest.mark.parametrize(
    ("text", "support", "expected"),
    [
        ("One. The lamp\n is  red now. Two.", "The lamp is red now.", ["The lamp\n is  red now."]),
        ("One. The lamp is red. Two.", "lamps of the red kind", ["lamp", "red"]),
        ("A red lamp glows.", "red lamp", ["red lamp"]),
        ("過濾器堵塞時紅燈會亮起。其他。", "過濾器堵塞時紅燈會亮起。", ["過濾器堵塞時紅燈會亮起。"]),
        ("Nothing in common.", "zebra", []),
        ("a (b [c] *d* e f g h", "(b [c] *d* e f g", ["(b [c] *d* e f g"]),
        ("", "words that are not there", []),
    ],
)
def test_the_words_that_a_pair_rests_on_are_marked(text, support, expected):
    parts = marked(text, [support])
    assert "".join(part for part, _ in parts) == text
    assert [part for part, on in parts if on] == expected


def test_the_raw_response_is_found_by_the_question_or_its_end(tmp_path):
    path = tmp_path / "responses.sqlite"
    assert raw_responses(path, "What does the lamp mean?") == []
    with ResponseStore(path) as store:
        for key, text in (
            ("a", '{"question": "Say \\"stop\\" to the pump now?"}'),
            ("b", " the red lamp mean here?\nA: x"),
        ):
            store.put(key, Answer(text, "stop", 1, 1))
    assert raw_responses(path, 'Say "stop" to the pump now?')[0].startswith('{"question"')
    assert raw_responses(path, "What does the red lamp mean here?") == [" the red lamp mean here?\nA: x"]
    assert raw_responses(path, "What? Why? 100 %") == []
