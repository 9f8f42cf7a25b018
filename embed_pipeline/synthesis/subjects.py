"""What a segment is about that the segments beside it are not: its name in a question over all of them."""

from __future__ import annotations

from collections.abc import Sequence

from embed_pipeline.synthesis.passages import readable
from embed_pipeline.synthesis.plan import Source
from embed_pipeline.synthesis.words import content_words

_MOST_WORDS = 5
_MOST_CHARACTERS = 60


def subjects_of(sources: Sequence[Source], seed: int) -> list[str]:
    """A name for each source, its heading or an artifact, with a word that the others do not say; empty for none.

    Args:
        sources: at least two.
        seed: chooses among the names.
    """
    names: list[str] = []
    for place, source in enumerate(sources):
        others = [other for number, other in enumerate(sources) if number != place]
        elsewhere = set(content_words(" ".join(f"{other.title} {other.text}" for other in others)))
        named = (readable(candidate, _MOST_CHARACTERS) for candidate in (source.heading, *source.artifacts))
        fitting = [name for name in dict.fromkeys(named) if _fits(name, elsewhere) and name not in names]
        names.append(fitting[seed % len(fitting)] if fitting else "")
    return names


def _fits(name: str, elsewhere: set[str]) -> bool:
    """Short, and with a word that stands nowhere else."""
    return len(name.split()) <= _MOST_WORDS and bool(set(content_words(name)) - elsewhere)
