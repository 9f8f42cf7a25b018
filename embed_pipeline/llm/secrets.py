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
        self._all = [form for secret in plain for form in dict.fromkeys((secret, quote(secret, safe="")))]

    def __repr__(self) -> str:
        return f"Secrets({len(self._all)})"

    def hide(self, text: str) -> str:
        """Text without any of them; to be shown."""
        for secret in self._all:
            text = _pattern(secret).sub(_HIDDEN, text)
        return text

    def hide_keys(self, content: bytes) -> bytes:
        """A body without those that look like keys, before any of it is cut off.

        Others, such as the "x" or "model" of a server that wants no key, may be words of what the body says.
        """
        for secret in self._all:
            if len(secret) >= _LEAST_KEY_CHARACTERS or any(character.isdigit() for character in secret):
                content = re.sub(_pattern(secret).pattern.encode(), _HIDDEN.encode(), content)
        return content


def basic_credentials(url: str) -> str:
    """The user and password of an address in the form of HTTP's Basic authentication (RFC 7617)."""
    parts = urlsplit(url)
    return b64encode(f"{unquote(parts.username or '')}:{unquote(parts.password or '')}".encode()).decode()


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
