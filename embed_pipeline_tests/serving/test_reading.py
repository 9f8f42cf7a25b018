"""Token ids within the limit: what is kept, at either end, and that long texts are not read whole."""

from __future__ import annotations

import numpy as np
import pytest

from embed_pipeline.embedding.onnx_backend import OnnxBackend
from embed_pipeline.serving.reading import WHOLE_CHARACTERS, Reader
from embed_pipeline.serving.serving_errors import RequestError, ServingError

LIMIT = 64


@pytest.fixture(scope="module")
def backend(bundle):
    return OnnxBackend(bundle / "onnx", threads=1)


@pytest.fixture(scope="module")
def reader(backend):
    return Reader(backend)


def words(*texts: str) -> str:
    return " ".join(texts)


def ids(backend, text):
    return backend.tokenize([text])[0].tolist()


def test_a_text_that_fits_is_read_as_the_model_reads_it(backend, reader):
    reading = reader.read(["python class", "value"], "passage", "NONE")
    assert [row.tolist() for row in reading.rows] == [ids(backend, "the python class"), ids(backend, "the value")]
    assert reading.truncated == 0


def test_a_text_of_exactly_the_limit_is_not_too_long(backend, reader):
    # [CLS] what is ... [SEP]
    row = reader.read(["in " * (LIMIT - 4)], "query", "NONE").rows[0]
    assert len(row) == LIMIT
    with pytest.raises(RequestError, match=r"input\[5\] has 65 tokens, and the model reads at most 64"):
        reader.read(["in " * (LIMIT - 3)], "query", "NONE", first=5)


def test_end_keeps_the_start_as_the_tokenizer_itself_would(backend, reader):
    text = words(*["in", "of", "to"] * 40)
    reading = reader.read([text, "a"], "query", "END")
    assert reading.truncated == 1
    assert reading.rows[0].tolist() == backend.tokenize(["what is " + text], truncate=True)[0].tolist()


def test_start_keeps_the_end_the_prefix_and_the_special_tokens(backend, reader):
    text = words("class", *["in", "of", "to"] * 40, "object")
    row = reader.read([text], "query", "START").rows[0].tolist()
    whole = ids(backend, "what is " + text)
    assert len(row) == LIMIT
    assert row[:3] == whole[:3]
    assert row[3:] == whole[-(LIMIT - 3) :]


@pytest.mark.parametrize("filling", ["in of to ", "in\n", "xyz", "\u4e2d", "x" * 150 + " "])
@pytest.mark.parametrize("truncate", ["END", "START"])
def test_a_huge_text_gives_what_the_whole_of_it_would(backend, reader, filling, truncate):
    text = filling * (400_000 // len(filling))
    if filling == "xyz":
        text = "x y" * 130_000
    whole = ids(backend, "the " + text)
    row = reader.read([text], "passage", truncate).rows[0].tolist()
    expected = whole[: LIMIT - 1] + whole[-1:] if truncate == "END" else whole[:2] + whole[-(LIMIT - 2) :]
    assert row == expected


def test_a_huge_text_is_not_tokenised_whole(backend, monkeypatch):
    seen = []
    whole = backend.tokenize

    def counted(texts, **options):
        seen.extend(len(text) for text in texts)
        return whole(texts, **options)

    reader = Reader(backend)
    monkeypatch.setattr(backend, "tokenize", counted)
    for truncate in ("END", "START"):
        reader.read(["in of to " * 250_000], "query", truncate)
    assert max(seen) < 2 * WHOLE_CHARACTERS
    with pytest.raises(RequestError, match=r"has more than [0-9]+ tokens, and the model reads at most 64"):
        reader.read(["in of to " * 250_000], "query", "NONE")
    assert max(seen) < 2 * WHOLE_CHARACTERS


@pytest.mark.slow
def test_space_alone_does_not_count_against_a_text(backend, reader):
    for text in (" " * 300_000 + "class", "class" + " " * 300_000):
        for truncate in ("NONE", "END", "START"):
            assert reader.read([text], "query", truncate).rows[0].tolist() == ids(backend, "what is class")


def test_a_prefix_that_leaves_no_room_is_refused(backend, monkeypatch):
    monkeypatch.setattr(backend, "query_prefix", "in " * LIMIT)
    with pytest.raises(ServingError, match="has 66 tokens, and the model reads at most 64"):
        Reader(backend)


def test_a_text_without_tokens_is_refused(backend, reader, monkeypatch):
    monkeypatch.setattr(backend, "tokenize", lambda texts: [np.zeros(0, np.int32) for _ in texts])
    with pytest.raises(RequestError, match=r"input\[0\] has no token"):
        reader.read(["x"], "query", "NONE")
