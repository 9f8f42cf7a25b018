"""Bytes of a file to text, without what is no text."""

from __future__ import annotations

import codecs
import re
import unicodedata

from embed_pipeline.text.blocks import clean_text

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
         (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_MAX_CONTROL_SHARE = 0.01
_MAX_DAMAGED_SHARE = 0.01
_LEAST_LETTERS_A_DAMAGE = 8
_DETECTED_BYTES = 500_000
# What browsers read in place of what a page declares.
_DECLARED = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252",
             "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "shift-jis": "cp932", "euc-kr": "cp949",
             "iso-8859-9": "cp1254", "utf-16": "utf-8"}  # fmt: skip
# Encodings of a byte a letter that Latin scripts were written in, the likeliest first.
_LATIN_ENCODINGS = ("cp1252", "cp1250", "iso8859_2", "cp1254", "cp1257", "mac_roman", "cp850", "cp437", "iso8859_15",
                    "iso8859_16", "cp1258")  # fmt: skip
# Letters beyond ASCII that one language needs.
_ALPHABETS = (
    "äöüßéà", "àâæçéèêëîïôœùûüÿ", "áéíñóúüàèïç", "ãáàâçéêíóôõúü", "àèéìíîòóùú", "æøåäöéüóò", "áéíóúýþæöð", "éëïóèöü",
    "ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíĺľňóôŕšťúýž", "áéíóöőúüű", "ăâîșțşţ", "čćđšž", "çğıöşüâîû", "āčēģīķļņšūž",
    "ąčęėįšųūž", "äöüõšž",
    "àảãáạăằẳẵắặâầẩẫấậđèẻẽéẹêềểễếệìỉĩíịòỏõóọôồổỗốộơờởỡớợùủũúụưừửữứựỳỷỹýỵ",
)  # fmt: skip
_LETTER_SETS = tuple(frozenset(alphabet + alphabet.upper().replace("SS", "") + "İ" * ("ı" in alphabet))
                     for alphabet in _ALPHABETS)  # fmt: skip
_QUOTES_AND_SIGNS = frozenset("‘’‚“”„«»‹›–—…•·€£¥§©®™°±¹²³¼½¾×÷¡¿†‡¢ºªµ\u00a0")
_LEAST_FITTING = 0.9
# Encodings of a byte a letter for other scripts, and the letters that most of their texts are made of.
_OTHER_ENCODINGS = {
    "оеаинтсрвлкмі": ("cp1251", "koi8_u", "koi8_r", "iso8859_5", "cp866", "mac_cyrillic"),
    "αοιετσνηυρπκςά": ("cp1253", "iso8859_7", "mac_greek"),
    "اليمنوترةبعدفسهكقح": ("cp1256", "iso8859_6"),
    "יוהלארמתבשנעםדחקפמ": ("cp1255", "iso8859_8"),
}
_LEAST_FREQUENT = 0.55
_QUOTES = frozenset("‘’‚“”„«»–—…№\u00a0")
# How Japanese mail begins a run of letters of two bytes.
_JAPANESE_ESCAPES = (b"\x1b$B", b"\x1b$@")
_MOST_BEYOND_ASCII = 0.35

# Two letters of Latin script at the start of UTF-16 or UTF-32 without a mark.
_WIDE_START = re.compile(rb"\0{0,3}[^\0]\0+[^\0]\0")
_NULS = re.compile(rb"\0+")
_MAX_NUL_SHARE = 0.2

# Addresses are ASCII, and base64 is letters, digits and few signs: what follows may do so without a space.
_PAYLOAD = r"(?:(?<=;base64,)[a-z0-9+/=%_-]*|(?<!;base64,)[^\s()<>\[\]!\"'`\x80-\U0010ffff]*)"
_MIME = r"data:(?:[a-z]{1,40}/[\w.+-]{1,80})?(?:;[\w=.+-]{1,80})*,"
_SCHEME = re.compile("data:", re.IGNORECASE)
_DATA_IMAGE = re.compile(rf"!\[([^\[\]\n]{{0,500}})\]\(\s{{0,9}}<?{_MIME}{_PAYLOAD}>?[^()\n]{{0,300}}\)", re.IGNORECASE)
_DATA_DEFINITION = re.compile(
    rf"^ {{0,3}}\[[^\[\]\n]{{1,200}}\]:[ \t]{{0,9}}<?{_MIME}[^\n]*\n?", re.IGNORECASE | re.MULTILINE
)
_DATA_TAG = re.compile(rf"<img\b[^<>]{{0,2000}}?{_MIME}[^<>]*>", re.IGNORECASE)
_DATA = re.compile(rf"{_MIME}{_PAYLOAD}", re.IGNORECASE)
_LONGEST_SHOWN_DATA = 100


def decode(content: bytes, *, is_html: bool = False, is_rows: bool = False) -> str:
    """Bytes to newline-normalised, clean Unicode text.

    A byte order mark decides, then what a page declares, then UTF-8: a file of which nearly all is UTF-8 stays that,
    with U+FFFD for what is damaged. Else, where the letters beyond ASCII make words of a Latin script, the likeliest of
    its encodings, Windows-1252 before all; else what charset-normalizer detects.

    Rows may hold NUL bytes, which interrupted writers leave: they are dropped, unless each letter seems to have one.

    Raises:
        ValueError: the bytes are not text.
    """
    encoding = next((name for mark, name in _BOMS if content.startswith(mark)), None)
    if is_rows and encoding is None and not _WIDE_START.match(content):
        few = len(_NULS.findall(content)) <= _MAX_NUL_SHARE * len(content)
        content = content.replace(b"\0", b"") if few else content
    if encoding is None and b"\0" in content:
        raise ValueError("it holds NUL bytes")
    text = _as_declared(content) if is_html and encoding is None else None
    try:
        if text is None and encoding is None and any(escape in content for escape in _JAPANESE_ESCAPES):
            encoding = "iso2022_jp"
        text = text if text is not None else content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise ValueError(f"it begins as {encoding} does, but {error.reason}") from error
        text = _damaged_utf8(content) or _latin(content) or _of_another_script(content) or _detected(content)
        if text is None:
            raise ValueError(f"it is not UTF-8 ({error.reason} at byte {error.start}) nor another encoding") from error
    control = sum(
        unicodedata.category(c) == "Cc" and c not in "\n\r\t\f\v" for c in set(text) for _ in range(text.count(c))
    )
    if control > _MAX_CONTROL_SHARE * max(len(text), 1):
        raise ValueError(f"{control} of its {len(text)} characters are control characters")
    return clean_text(text.replace("\r\n", "\n").replace("\r", "\n").replace("\f", "\n").replace("\v", "\n"))


def without_data(text: str) -> str:
    """Markdown without the files that ``data:`` addresses hold; of a picture its description stays."""
    if _SCHEME.search(text) is None:
        return text
    text = _DATA_IMAGE.sub(r"\1", text)
    text = _DATA_DEFINITION.sub("", text)
    text = _DATA_TAG.sub("", text)
    return _DATA.sub(lambda found: found[0] if len(found[0]) <= _LONGEST_SHOWN_DATA else "", text)


def _as_declared(content: bytes) -> str | None:
    """The text of a page that declares its encoding and keeps to it, but for a few bytes that are damaged.

    Letters of several bytes that are all UTF-8 are no accident, whatever is declared.
    """
    from bs4.dammit import EncodingDetector

    declared = EncodingDetector.find_declared_encoding(content, is_html=True)
    if declared is None or (not content.isascii() and is_utf8(content)):
        return None
    encoding = _DECLARED.get(declared.lower(), declared)
    try:
        return content.decode(encoding)
    except LookupError:
        return None
    except UnicodeDecodeError:
        text = content.decode(encoding, "replace")
    beyond = sum(text.count(letter) for letter in set(text) if not letter.isascii())
    is_kept = text.count("\ufffd") <= max(1, _MAX_DAMAGED_SHARE * beyond) and beyond > _LEAST_LETTERS_A_DAMAGE
    return text if is_kept and _damaged_utf8(content) is None else None


def is_utf8(content: bytes) -> bool:
    """True where all bytes are UTF-8."""
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _damaged_utf8(content: bytes) -> str | None:
    """The text where nearly all bytes are UTF-8, letters of several bytes among them."""
    text = content.decode("utf-8", "replace")
    damages = text.count("\ufffd") - content.count("\ufffd".encode())
    letters = sum(text.count(c) for c in set(text) if not c.isascii() and c != "\ufffd")
    few = damages <= _MAX_DAMAGED_SHARE * len(content) and letters >= damages
    return text if letters and (few or letters >= _LEAST_LETTERS_A_DAMAGE * damages) else None


def _latin(content: bytes) -> str | None:
    """The text in the likeliest encoding of a Latin script; None where none gives words of one language."""
    sample = content[:_DETECTED_BYTES]
    high = sum(byte > 127 for byte in sample)  # noqa: PLR2004 - ASCII ends there
    letters = sum(chr(byte).isalpha() for byte in sample if byte <= 127)  # noqa: PLR2004
    if high > _MOST_BEYOND_ASCII * (high + letters):
        return None
    best, likeliest = _LEAST_FITTING, ""
    for encoding in _LATIN_ENCODINGS:
        try:
            fit = _fit(unicodedata.normalize("NFC", sample.decode(encoding)))
        except UnicodeDecodeError:
            continue
        if fit > best:
            best, likeliest = fit, encoding
    # Vietnamese has its tones as letters of their own in Windows-1258.
    return unicodedata.normalize("NFC", content.decode(likeliest, "replace")) if likeliest else None


def _of_another_script(content: bytes) -> str | None:
    """The text in the likeliest encoding of Cyrillic, Greek, Arabic or Hebrew; None where none gives usual letters."""
    sample = content[:_DETECTED_BYTES]
    best, likeliest = _LEAST_FREQUENT, ""
    for letters, encodings in _OTHER_ENCODINGS.items():
        for encoding in encodings:
            try:
                text = sample.decode(encoding)
            except UnicodeDecodeError:
                continue
            beyond = [
                c.lower()
                for n, c in enumerate(text)
                if not c.isascii() and (c not in _QUOTES or _begins_a_word(text, n))
            ]
            fit = sum(c in letters for c in beyond) / max(1, len(beyond))
            if fit > best:
                best, likeliest = fit, encoding
    return content.decode(likeliest, "replace") if likeliest else None


def _begins_a_word(text: str, place: int) -> bool:
    """Whether a sign stands where a capital would: with a letter after it, and no letter and no sign before it."""
    after, before = text[place + 1 : place + 2], text[place - 1 : place] if place else ""
    opens = text[place] in "«“„‘"
    return not opens and after.isalpha() and after.islower() and (not before or before.isspace())


def _fit(text: str) -> float:
    """Share of the characters beyond ASCII that stand where the best-fitting language has them."""
    places = [number for number, c in enumerate(text) if not c.isascii()]
    letters = [text[place] for place in places if text[place] not in _QUOTES_AND_SIGNS and _in_case(text, place)]
    signs = sum(text[place] in _QUOTES_AND_SIGNS and not _inside_word(text, place) for place in places)
    counts = {letter: letters.count(letter) for letter in set(letters)}
    most = max(sum(n for letter, n in counts.items() if letter in known) for known in _LETTER_SETS)
    return (most + signs) / max(1, len(places))


def _in_case(text: str, place: int) -> bool:
    """False for a capital right after a small letter."""
    return not (text[place].isupper() and place and text[place - 1].islower())


def _inside_word(text: str, place: int) -> bool:
    """True for a sign other than an apostrophe or a dash between two letters."""
    around = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
    return text[place] not in "’–—·" and len(around) == 2 and around.isalpha()  # noqa: PLR2004 - both sides


def _detected(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    best = from_bytes(content[:_DETECTED_BYTES]).best()
    return content.decode(best.encoding, "replace") if best is not None else None
