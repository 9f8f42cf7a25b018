"""Word 5-grams, and documents that are nearly others."""

from __future__ import annotations

import numpy as np

from embed_pipeline.text.shingles import HashedTexts, Shingler, containment, find_copies, resemblance


def prose(topic: int, words: int = 200) -> str:
    """Words that no other topic uses, in an order that only the topic decides."""
    rng = np.random.default_rng(topic)
    return " ".join(f"t{topic}w{number}" for number in rng.integers(0, 40, words))


def test_shingles_are_word_5_grams():
    shingler = Shingler()
    assert len(shingler.hashes("One two, three four five six")) == 2
    assert len(shingler.hashes("a b c d e a b c d e")) == 5
    np.testing.assert_array_equal(shingler.hashes("A, b c D e!"), Shingler().hashes("a b c d e"))
    assert len(shingler.hashes("two words")) == 1
    assert len(shingler.hashes(" ... ")) == 0
    assert shingler.hashes("a b c d e")[0] != shingler.hashes("a b c d f")[0]


def test_containment_is_of_the_shorter():
    shingler = Shingler()
    short, long = shingler.hashes(prose(1)), shingler.hashes(prose(1) + " " + prose(2, 300))
    assert containment(short, long) == containment(long, short) == 1
    assert containment(short, shingler.hashes(prose(3))) == 0
    assert containment(short, shingler.hashes("")) == resemblance(short, shingler.hashes("")) == 0
    assert resemblance(short, long) == resemblance(long, short) == len(short) / len(long)


def test_a_copy_names_the_first_of_its_kind_and_a_quoted_page_is_none() -> None:
    edited = prose(1, 400).split()
    edited[30] = "changed"
    texts = [prose(1, 400), prose(2), " ".join(edited), prose(2) + " " + prose(3), prose(2).upper(), "", ""]
    copies = find_copies(texts, 0.95)
    assert {index: original for index, (original, _) in copies.items()} == {2: 0, 4: 1}
    assert copies[4][1] == 1
    assert 0.95 <= copies[2][1] < 1


def test_a_chain_of_small_changes_is_cut_where_it_has_gone_too_far() -> None:
    words = prose(1, 400).split()
    chain = [" ".join([*(f"new{number}" for number in range(step)), *words[step:]]) for step in range(0, 60, 6)]
    copies = find_copies(chain, 0.95)
    left = [text for index, text in enumerate(chain) if index not in copies]
    assert len(left) > 1
    assert find_copies(left, 0.95) == {}


def test_many_copies_have_one_original_beyond_the_window() -> None:
    """Of a run of texts that share a 5-gram, the 64 before each are looked at."""
    texts = [f"{prose(1, 200)} value {number}" for number in range(150)]
    copies = find_copies(texts, 0.95)
    assert {original for original, _ in copies.values()} == {0}
    assert len(copies) == 149


def test_hashes_are_the_same_whether_there_is_room_to_keep_them_or_not() -> None:
    texts = [prose(number, 50) for number in range(5)]
    kept, computed, some = (HashedTexts(texts, room) for room in (1_000, 0, 100))
    for source in (kept, computed, some):
        for _ in range(2):
            for place, text in enumerate(texts):
                np.testing.assert_array_equal(source.hashes(place), Shingler().hashes(text))
    assert kept.hashes(4) is kept.hashes(4)
    assert computed.hashes(4) is not computed.hashes(4)
    assert some.hashes(0) is some.hashes(0)
    assert some.hashes(4) is not some.hashes(4)
