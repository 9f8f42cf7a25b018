"""What no message may hold: the API key, and what an address carries to sign in."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_LEAST_KEY_CHARACTERS = 16
_HIDDEN = "***"


class Secrets:
    """Hides secrets in what endpoints say; ``repr`` shows none."""

    def __init__(self, key: str, base_urls: Sequence[str]) -> None:
        """Take the API key, empty for none, and the endpoints' addresses."""
        plain = dict.fromkeys(secret for secret in (key, *_secrets_of(base_urls)) if secret)
        forms = [form for secret in plain for form in dict.fromkeys((secret, quote(secret, safe="")))]
        self._patterns = [_pattern(form) for form in forms]
        self._keys = [re.compile(_pattern(form).pattern.encode()) for form in forms if _looks_like_a_key(form)]

    def __repr__(self) -> str:
        return f"Secrets({len(self._patterns)})"

    def hide(self, text: str) -> str:
        """Text without any of them; to be shown."""
        for pattern in self._patterns:
            text = pattern.sub(_HIDDEN, text)
        return text

    def hide_keys(self, content: bytes) -> bytes:
        """A body without those that look like keys, before any of it is cut off.

        Others, such as the "x" or "model" of a server that wants no key, may be words of what the body says.
        """
        for pattern in self._keys:
            content = pattern.sub(_HIDDEN.encode(), content)
        return content


def basic_credentials(url: str) -> str:
    """The user and password of an address in the form of HTTP's Basic authentication (RFC 7617)."""
    parts = urlsplit(url)
    return b64encode(f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()).decode()


def _looks_like_a_key(secret: str) -> bool:
    return len(secret) >= _LEAST_KEY_CHARACTERS or any(character.isdigit() for character in secret)


def _pattern(secret: str) -> re.Pattern[str]:
    """A long secret anywhere, a short one as a whole word."""
    bounds = ("", "") if len(secret) >= _LEAST_KEY_CHARACTERS else (r"(?<!\w)", r"(?!\w)")
    return re.compile(re.escape(secret).join(bounds))


def _secrets_of(base_urls: Sequence[str]) -> list[str]:
    """What addresses carry to sign in: passwords, and values of the query that are long enough to be keys."""
    secrets = []
    for url in base_urls:
        parts = urlsplit(url)
        secrets += [value for _, value in parse_qsl(parts.query) if len(value) >= _LEAST_KEY_CHARACTERS]
        if parts.password:
            secrets += [basic_credentials(url), parts.password, unquote(parts.password)]
    return secrets
