"""The text of terms of use that a package holds as a web page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_ASIDE = {"style", "script", "button", "devsite-feedback", "devsite-thumb-rating"}
_BLOCKS = {"p", "h1", "h2", "h3", "li", "div", "aside"}


class _Article(HTMLParser):
    """Collects the text of the page's article, a paragraph a block."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.skipped: list[str] = []
        self.pieces: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if "devsite-article-body" in (dict(attrs).get("class") or ""):
            self.inside = True
        if tag in _ASIDE:
            self.skipped.append(tag)
        if self.inside and tag in _BLOCKS:
            self.pieces.append("\n\n- " if tag == "li" else "\n\n")

    def handle_endtag(self, tag: str) -> None:
        if self.skipped and self.skipped[-1] == tag:
            self.skipped.pop()
        if tag == "article":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside and not self.skipped:
            self.pieces.append(re.sub(r"\s+", " ", data))


def plain_text(html: str) -> str:
    """The article of a page of Google's developer sites as text: a paragraph a line."""
    article = _Article()
    article.feed(html)
    text = re.sub(r"[ \t]+", " ", "".join(article.pieces))
    return re.sub(r"\s*\n\s*", "\n\n", text).strip()
