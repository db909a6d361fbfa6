"""Texts of strangers, made fit to be shown: of sane length, without what no page may hold."""

from __future__ import annotations

import html
import re

_MAX_CHARACTERS = 4000
# Controls, and the marks that turn the direction of all that follows, beyond the text itself.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe\uffff]")


def clean_text(text: str, max_characters: int = _MAX_CHARACTERS) -> str:
    r"""Return a text that can be written as UTF-8, elided where it is too long.

    >>> clean_text("a\x00b\ud800c")
    'a\ufffdb?c'
    >>> clean_text("0123456789", max_characters=5)
    '01234… (5 characters more)'
    """
    text = text.encode("utf-8", "replace").decode()
    if (num_more := len(text) - max_characters) > 0:
        text = f"{text[:max_characters]}… ({num_more:,} characters more)"
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n"))


def escape_text(text: str, max_characters: int = _MAX_CHARACTERS) -> str:
    """Return a text as HTML, for elements and for quoted attributes.

    >>> escape_text("<b> & 'c'")
    '&lt;b&gt; &amp; &#x27;c&#x27;'
    """
    return html.escape(clean_text(text, max_characters), quote=True)
