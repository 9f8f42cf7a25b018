"""Words, sentences and plain passages, and the measures over them that judge generated pairs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from embed_pipeline.text.languages import is_unspaced
from embed_pipeline.text.markdown import replace_headings

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}](?:[^\W{_IDEOGRAPHS}]|['’-])*")
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n\s*\n|\n(?=\s*(?:[*+-]|\d+\.)\s)")
_ENDS_A_SENTENCE = re.compile(r"[.!?:。！？][\"'”’»)\]]*$")
_PLAIN_WORD = re.compile(r"[\"'“‘«(]*[^\W\d_]+(?:['’-][^\W\d_]+)*[\"'”’»)]*[.,;:?!]*")
_LEAST_PROSE_CHARACTERS = 20
_LEAST_PLAIN_SHARE = 0.7
_BULLET = re.compile(r"^(?:[*+-]|\d+\.)\s+")
_STOP_WORD_LIST = (
    "a about above after again all also an and any are as at be because been before being below between both but by "
    "can could did do does doing done down during each else every few for from further get give given had has have "
    "having he her here hers him his how however i if in instead into is it its itself just let like made make many "
    "may me might mine more most must my no nor not now of off on once one only or other our out over own same shall "
    "she should so some such take than that the their them then there these they this those through to too under "
    "until up upon us use used using very want was way we were what when where which while who whom whose why will "
    "with within without would yes yet you your"
)
_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())
_JOINING = frozenset({"and", "of", "or"})
_SPECIFIC_TERM = re.compile(
    r"(?<![\w.])[A-Za-z_][\w.]*\(\)|__\w+__|(?<!\w)\w*_\w+|\b[A-Z][a-z]+[A-Z]\w*\b|\b[A-Z]{2,}\w*\b|\b\d[\d.]*\b"
    r"|`[^`]+`|[\"“][^\"”]{1,40}[\"”]"
)
_CODE = re.compile(r"\w\(\)|__\w+__|[^\W\d]_[^\W\d]|[^\W\d]\.[^\W\d]")
_NUMBER = re.compile(r"[\d.]+")
# What a sentence is about, where it says so in up to four words before its verb: an auxiliary, or after an article
# of one thing the first word in -s.
_SUBJECT = re.compile(
    r"(?:(an?|the|each|every|all|any|both)\s+)?((?:[\w.'’-]+\s+){1,4}?)"
    r"(?:is|are|was|were|has|have|had|can|cannot|could|may|might|must|should|will|would|does|do|always|never|only|also)\b"
    r"|(an?|each|every)\s+((?:[\w.'’-]+\s+){1,3}?)\w+(?<!s)s\s",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"^[\s\d.]+(?=\s)")
_SUBTITLE = re.compile(r"\s*(?:\([^()]*\)\s*$|\s[—–-]\s.*|:\s.*)", re.DOTALL)
_MOST_NAME_WORDS = 5
_NO_NAMES = frozenset(("how", "what", "why", "when", "where", "which", "who"))
_POINTER = re.compile(
    r"\W*(?:please\s+)?(?:see|refer to|cf)\b"
    r"|\W*for\s(?:\w+\s){0,2}(?:details?|information|examples?|reference|explanations?|practices|discussion|descriptions?)"
    r"\b.{0,80}?\b(?:see|refer to)\b"
    r"|\W*(?:more|further|additional)\s(?:details?|information|examples?)\b.{0,80}?\b(?:found|given|described|available)\b",
    re.IGNORECASE,
)
_CELL_BORDER = re.compile(r" ?\| ?")
_MARKUP = re.compile(r"`+|\*\*|(?<![\w*])\*(?=\S)|(?<=\S)\*(?![\w*])")
_REPEATED_MARK = re.compile(r"([^\w\s])\1{3,}")
_LINK = re.compile(r"!?\[([^\[\]]{0,500})\]\([^()\s]{0,500}\)")
_HAS_WORD = re.compile(r"\w")


def words(text: str) -> list[str]:
    """Lower-case words of ``text``, in order, without a possessive s; where no spaces are written, its characters."""
    return [re.sub(r"['’]s$", "", match.lower()).strip("'’-") for match in _WORD.findall(text)]


def stem(word: str) -> str:
    """A word without its commonest English endings: enough to match `returns` with `returned`."""
    for ending in ("ations", "ation", "ings", "ing", "ies", "ied", "ers", "er", "es", "ed", "s", "ly"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:  # noqa: PLR2004 - a stem keeps three letters
            return word[: -len(ending)]
    return word


def content_words(text: str) -> list[str]:
    """Stems of the words that carry meaning, in order."""
    return [stem(word) for word in words(text) if word not in _STOP_WORDS and (len(word) > 1 or not word.isascii())]


def overlap(text: str, source: str) -> float:
    """Share of the content words of ``text`` that occur in ``source``; 0 where it has none."""
    wanted = content_words(text)
    present = set(content_words(source))
    return sum(word in present for word in wanted) / len(wanted) if wanted else 0.0


def specific_terms(question: str) -> list[str]:
    """Identifiers, acronyms, numbers and quoted terms, as written: what a model invents when it invents."""
    return [term.strip('`"“”()') for term in _SPECIFIC_TERM.findall(question)]


def names_in(sentence: str) -> list[str]:
    """What a sentence speaks of: its subject, then its identifiers, acronyms and quoted terms; each once."""
    subject = _SUBJECT.match(_MARKUP.sub("", sentence))
    found = []
    if subject:
        article, name = (subject[1] or subject[3] or "").lower(), (subject[2] or subject[4]).strip()
        if content_words(name) and _STOP_WORDS.isdisjoint({*words(name)} - _JOINING):
            article = article if article in {"a", "an", "the"} else ""
            found.append(f"{article} {name if article else _inside_a_sentence(name)}".strip())
    for term in _SPECIFIC_TERM.findall(sentence):
        inner = term.strip('`"“”')
        if len(content_words(inner)) in {1, 2} and not _NUMBER.fullmatch(inner):
            found.append(f'"{inner}"' if inner.isalpha() and inner != term else inner)
    return list(dict.fromkeys(found))


def name_of_heading(heading: str) -> str:
    """The heading, without a subtitle, as a name inside a question.

    Empty where it is long, a question, a list, or tells to do something.
    """
    plain = _SUBTITLE.sub("", _NUMBERED.sub("", _MARKUP.sub("", heading)).strip(" .:"))
    plain = _inside_a_sentence(plain)
    said = words(plain)
    names = bool(content_words(plain)) and len(said) <= _MOST_NAME_WORDS and not plain.endswith("?")
    names = names and ", " not in plain
    return plain if names and not said[0].endswith("ing") and said[0] not in _NO_NAMES else ""


def _inside_a_sentence(name: str) -> str:
    """The name without a capital that only begins a sentence or a heading."""
    return name[:1].lower() + name[1:] if name[1:] == name[1:].lower() else name


def unsupported_terms(question: str, source: str) -> list[str]:
    """Specific terms of the question that do not occur in the source."""
    text = source.lower()
    return [term for term in specific_terms(question) if term and term.lower() not in text]


def points_elsewhere(sentence: str) -> bool:
    """Whether a sentence says no more than where to read."""
    return _POINTER.match(_MARKUP.sub("", sentence)) is not None


def is_plural(name: str) -> bool:
    """Whether an English verb after the name takes its plural form."""
    *before, last = name.split()
    ends = last.isalpha() and last.endswith("s") and not last.endswith(("ss", "us", "is"))
    return ends or "and" in before


def names_code(question: str) -> bool:
    """Whether a function, a method or a variable is named, which says by itself what is asked about."""
    return _CODE.search(question) is not None


def keywords(question: str) -> str:
    """A question as keywords: its words that carry meaning, as they were written."""
    tokens = (token.strip(".,;:?!") for token in question.split())
    return " ".join(token for token in tokens if content_words(token))


def sentences(text: str) -> list[str]:
    """Sentences and list items of ``text`` on one line each, without headings, rules and fences.

    A sentence that ends in a colon continues in the next.
    """
    text = replace_headings(text, keep=False)
    pieces = (_BULLET.sub("", " ".join(piece.split())) for piece in _SENTENCE_END.split(text))
    found: list[str] = []
    for piece in pieces:
        if found and found[-1].endswith(":"):
            found[-1] = f"{found[-1]} {piece}".rstrip()
        elif re.search(r"[^\W_]{2}", piece):
            found.append(piece)
    return found


def is_prose(sentence: str) -> bool:
    """True for a whole sentence made mostly of words: no signature, grammar rule, row of a table or piece of code."""
    if len(sentence) < _LEAST_PROSE_CHARACTERS or not _ENDS_A_SENTENCE.search(sentence):
        return False
    if is_unspaced(sentence):
        return True
    tokens = sentence.split()
    return sum(bool(_PLAIN_WORD.fullmatch(token)) for token in tokens) >= _LEAST_PLAIN_SHARE * len(tokens)


def inverse_document_frequency(texts: Iterable[str]) -> dict[str, float]:
    """ln(1 + N/df) of every content word over ``texts``."""
    counts: Counter[str] = Counter()
    total = 0
    for text in texts:
        counts.update(set(content_words(text)))
        total += 1
    return {word: math.log(1 + total / count) for word, count in counts.items()}


def support(question: str, source: str, idf: Mapping[str, float]) -> float:
    """Share of the question's content words that the source says, rare words counting more; 0 where it has none.

    A word that occurs nowhere counts like the rarest.
    """
    wanted = set(content_words(question))
    rarest = max(idf.values(), default=1.0)
    weights = {word: idf.get(word, rarest) for word in wanted}
    said = wanted & set(content_words(source))
    return sum(weights[word] for word in said) / sum(weights.values()) if weights else 0.0


def readable(text: str, characters: int) -> str:
    """The text without markup, on one line of at most ``characters``, cut at a word."""
    lines = []
    for line in replace_headings(text, keep=True).split("\n"):
        if _HAS_WORD.search(line):
            plain = _LINK.sub(r"\1", line)
            plain = _CELL_BORDER.sub(" | ", plain).strip(" |")
            lines.append(_REPEATED_MARK.sub(r"\1\1\1", _MARKUP.sub("", plain)))
    joined = " ".join(" ".join(lines).split())
    return joined if len(joined) <= characters else joined[: characters + 1].rsplit(" ", 1)[0][:characters]
