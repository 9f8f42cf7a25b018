"""Languages are told apart, and their words indexed by their own rules."""

from __future__ import annotations

import bm25s
import pytest

from embed_pipeline.embedding.search import BM25
from embed_pipeline.text.languages import detect_language, dominant_language, index_terms

GERMAN = "Das Ventil öffnet bei drei Bar und schließt bei zwei. Der Bediener prüft die Dichtung vor jeder Schicht."
ENGLISH = "The valve opens at three bar and closes at two. The operator checks the seal before every shift."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (GERMAN, "de"),
        (ENGLISH, "en"),
        ("阀门在三巴时打开，在两巴时关闭。操作员必须在每班开始前检查密封圈。如果密封圈破损，请立即更换阀门。", "zh"),
        ("วาล์วจะเปิดที่ความดันสามบาร์และปิดที่สองบาร์ ผู้ปฏิบัติงานต้องตรวจสอบซีลก่อนเริ่มกะทุกครั้ง", "th"),
        ("valve_3", "en"),
        ("", "en"),
    ],
)
def test_the_language_is_found(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_the_language_of_most_characters_is_that_of_a_corpus() -> None:
    assert dominant_language([GERMAN, GERMAN, ENGLISH]) == "de"
    assert dominant_language([GERMAN, ENGLISH, ENGLISH]) == "en"
    assert dominant_language([]) == "en"


def test_words_are_stemmed_and_stop_words_left_out() -> None:
    assert index_terms(["Die Ventile der Anlagen öffnen"], "de") == [["ventil", "anlag", "offn"]]
    assert index_terms(["Клапаны и насосы"], "ru")[0] == index_terms(["клапан насос"], "ru")[0]
    assert index_terms(["阀门打开 PTFE"], "zh") == [["阀门", "门打", "打开", "ptfe"]]
    assert index_terms(["vana xyz"], "xx") == [["vana", "xyz"]]


def test_english_is_indexed_as_before() -> None:
    assert index_terms([ENGLISH], "en") == bm25s.tokenize([ENGLISH], stopwords="en", return_ids=False)


@pytest.mark.parametrize(
    ("texts", "query"),
    [
        (["阀门在三巴时打开。", "操作员检查密封圈。", "泵在夜间停止运行。"] * 10, "密封圈由谁检查？"),
        (["วาล์วจะเปิดที่ความดันสามบาร์", "ผู้ปฏิบัติงานตรวจสอบซีล", "ปั๊มหยุดทำงานตอนกลางคืน"] * 10, "ใครตรวจสอบซีล"),
        (["Das Ventil öffnet.", "Der Bediener prüfte die Dichtungen.", "Die Pumpe hält nachts an."] * 10,
         "Wann prüft man eine Dichtung?"),
    ],
)  # fmt: skip
def test_passages_are_found_by_the_words_of_their_language(texts: list[str], query: str) -> None:
    hits = BM25(texts).search([query], 1)
    assert hits.indices[0, 0] == 1
    assert hits.scores[0, 0] > 0
