from __future__ import annotations

import codecs
import random

import pytest

from embed_pipeline.corpus.decoding import decode, without_data

TEXT = "Größe: ein Wort, naïve café, 東京, 🙂\nzweite Zeile\n"
WESTERN = "He said “open it” – and the valve’s cap came off. "


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\v").encode(),
        TEXT.replace("ö", "o\u0308").encode(),
    ],
    ids=["utf-8", "utf-8 mark", "utf-16 le", "utf-16 be", "utf-32 le", "crlf", "vertical", "decomposed"],
)
def test_text_is_decoded_alike_from_every_encoding(content: bytes) -> None:
    assert decode(content) == TEXT


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("latin-1", "Die Größe der Tür beträgt drei Meter."),
        ("cp1252", WESTERN),
        ("cp1252", "Sjálfvirkur þrýstijafnari heldur þrýstingi í þremur börum."),
        ("cp1250", "Zażółć gęślą jaźń, pompa działa przy trzech barach."),
        ("iso8859_2", "Zażółć gęślą jaźń, pompa działa przy trzech barach."),
        ("iso8859_9", "Pompa üç barda çalışır ve vanayı açar, ışık yanıyor."),
        ("cp1254", "Pompa üç barda çalışır ve vanayı açar, ışık yanıyor."),
        ("mac_roman", "Le régulateur est ouvert à trois bars, été déjà."),
        ("cp437", "Die Größe der Tür beträgt drei Meter, später mehr."),
        ("cp1251", "Насос работает при трёх барах и открывает клапан."),
        ("cp1251", "Клапан насоса закрыт. Система охлаждения работает нормально."),
        ("cp1251", "Уровень — низкий. «Фильтр» засорён. Проверьте Насос и Ремень."),
        ("mac_cyrillic", "Клапан насоса закрыт. Система охлаждения работает нормально."),
        ("koi8-r", "Насос работает при трёх барах и открывает клапан."),
        ("iso8859_7", "Η αντλία ανοίγει τη βαλβίδα στα τρία bar."),
        ("koi8_u", "Клапан відкривається при трьох барах, і закривається знову при двох."),
        ("iso8859_5", "Насос работает при трёх барах и открывает клапан."),
        ("cp866", "Насос работает при трёх барах и открывает клапан."),
        ("cp1251", "Помпата работи при три бара и отваря клапана."),
        ("cp1253", "Η αντλία ανοίγει τη βαλβίδα στα τρία bar."),
        ("cp1256", "تفتح المضخة الصمام عند ضغط ثلاثة بار ثم تغلقه."),
        ("iso8859_6", "تفتح المضخة الصمام عند ضغط ثلاثة بار ثم تغلقه."),
        ("cp1255", "המשאבה פותחת את השסתום בלחץ של שלושה בר."),
        ("iso8859_8", "המשאבה פותחת את השסתום בלחץ של שלושה בר."),
        ("iso2022_jp", "ポンプは三バールで弁を開きます。"),
        ("gb18030", "泵在三巴时打开阀门，然后关闭。"),
        ("big5", "泵在三巴時打開閥門，然後關閉。"),
        ("shift_jis", "ポンプは三バールで弁を開きます。"),
        ("euc-jp", "ポンプは三バールで弁を開きます。"),
        ("cp949", "펌프는 세 바에서 밸브를 엽니다."),
    ],
)
@pytest.mark.parametrize("times", [1, 6])
def test_an_older_encoding_is_detected(encoding: str, text: str, times: int) -> None:
    if times == 1 and encoding in {"gb18030", "big5", "shift_jis", "euc-jp", "cp949"}:
        pytest.skip("a sentence of two bytes a letter is too short to tell by")
    assert decode((text * times).encode(encoding)) == text * times


@pytest.mark.parametrize(
    "text", ["The valve’s cap “came off” – again. ", "La vanne garde trois bars à la sortie, même l'été. ",
             "弁の開度は三バールで保たれる。", "Насос работает при трёх барах. "]
)  # fmt: skip
@pytest.mark.parametrize("damage", [b"\xe9", b"\xff", b"\xc3"])
def test_a_bad_byte_leaves_utf_8_what_it_is(text: str, damage: bytes) -> None:
    half = (text * 10).encode()
    assert decode(half + damage + b" " + half) == f"{text * 10}\ufffd {text * 10}"


def test_vietnamese_with_tones_as_letters_of_their_own_is_read() -> None:
    text = "Máy bơm mở van ở áp suất ba bar và đóng lại khi áp suất giảm. "
    parts = {"ở": "ơ\u0309", "ấ": "â\u0301", "ạ": "a\u0323", "ả": "a\u0309"}
    written = "".join(parts.get(letter, letter) for letter in text).encode("cp1258")
    assert decode(written) == text
    assert decode(written * 6) == text * 6


@pytest.mark.parametrize(
    ("charset", "text", "damage"),
    [
        ("windows-1251", "Насос работает при трёх барах. ", b"\x98"),
        ("Shift_JIS", "ポンプは三バールで弁を開きます。", b"\xfd"),
        ("EUC-KR", "펌프는 세 바에서 밸브를 엽니다. ", b"\xff"),
        ("GB2312", "泵在三巴时打开阀门，然后关闭。", b"\xff"),
        ("Big5", "泵在三巴時打開閥門，然後關閉。", b"\xff"),
    ],
)
def test_a_bad_byte_leaves_a_page_what_it_declares(charset: str, text: str, damage: bytes) -> None:
    half = (text * 6).encode(charset)
    head = f'<meta charset="{charset}"><p>'.encode()
    assert decode(head + half + damage + half, is_html=True).count(text) == 12


def test_a_page_in_utf_8_is_that_whatever_it_declares() -> None:
    page = '<meta charset="windows-1251"><p>Насос работает при трёх барах.</p>'
    assert decode(page.encode(), is_html=True) == page


def test_what_a_page_declares_is_believed_where_it_holds() -> None:
    page = '<meta charset="{}"><p>Затвор держит три бара.</p>'
    assert "Затвор" in decode(page.format("windows-1251").encode("cp1251"), is_html=True)
    assert "Затвор" in decode(page.format("windows-1252").encode(), is_html=False)
    assert "naïve “x”" in decode('<meta charset="iso-8859-1"><p>naïve “x”'.encode("cp1252"), is_html=True)


@pytest.mark.parametrize(
    "content",
    [
        b"text with a \0 in it",
        codecs.BOM_UTF16_LE + b"\x00\xd8\x00",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
        bytes(b for b in random.Random(1).randbytes(4000) if b),
        b"\x1b[31m\x01\x02\x03" * 50,
    ],
    ids=["nul", "broken utf-16", "png", "noise", "control"],
)
def test_what_is_not_text_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        decode(content)


def test_nul_bytes_between_rows_and_in_them_are_dropped() -> None:
    rows = b'{"title": "A", "text": "a\0b"}\n' + 4096 * b"\0" + b'\n{"title": "B"}\n'
    assert decode(rows, is_rows=True) == '{"title": "A", "text": "ab"}\n\n{"title": "B"}\n'
    assert decode(b"\0\0a,b\n1,2\0\n", is_rows=True) == "a,b\n1,2\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"text": "' + 200 * "泵" + '"}\n'])
def test_rows_of_two_bytes_a_letter_without_a_mark_are_refused(encoding: str, text: str) -> None:
    with pytest.raises(ValueError, match="NUL bytes"):
        decode(text.encode(encoding), is_rows=True)


PICTURE = "data:image/png;base64," + "iVBORw0KGgo+/" * 40


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (f"a ![the valve]({PICTURE}) b", "a the valve b"),
        (f'a ![the valve](<{PICTURE}> "title") b', "a the valve b"),
        (f"a\n\n[image1]: <{PICTURE}>\n\nb\n", "a\n\n\nb\n"),
        (f'a <img alt="x" src="{PICTURE}"> b', "a  b"),
        (f"a {PICTURE.upper()} b", "a  b"),
        (f"a {PICTURE.replace('data', 'Data')}. b", "a . b"),
        (f"图片{PICTURE}。然后关闭阀门，再打开。", "图片。然后关闭阀门，再打开。"),
        (f"画像（{PICTURE}==）を見る", "画像（）を見る"),
        (f"図{PICTURE}弁を閉じる", "図弁を閉じる"),
        (f"图data:text/plain,{'a%20' * 40}，然后", "图，然后"),
        (f"![图]({PICTURE})然后", "图然后"),
        ("write `data:text/plain,hello` there", "write `data:text/plain,hello` there"),
        ("the data: it is here", "the data: it is here"),
    ],
)
def test_pictures_in_addresses_are_dropped(text: str, kept: str) -> None:
    assert without_data(text) == kept
