"""Reads reports back: the numbers that a page shows, what it refers to, and its figures."""

import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

from matplotlib.image import imread

_VOID = {"meta", "img", "wbr"}


class _Checker(HTMLParser):
    """Follows the tags of a page: all are closed in order, and none points outside the page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name, value in attrs:
            assert name not in ("href", "srcset", "data"), (tag, name)
            assert not name.startswith("on"), (tag, name)
            assert name != "src" or (value or "").startswith("data:image/png;base64,")
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def assert_self_contained(page: str) -> None:
    """Checks that the page is well formed and needs no other file."""
    checker = _Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style


def shown(page: str) -> dict[float, set[str]]:
    """Returns the texts that a page shows for each exact number."""
    texts: dict[float, set[str]] = {}
    for raw, text in re.findall(r'<data value="([^"]+)">([^<]*)</data>', page):
        texts.setdefault(float(raw), set()).add(text.replace("\xa0", " "))
    return texts


def figure_names(folder: Path) -> set[str]:
    """Returns the names of a report's figures, each of which must show something."""
    paths = list((folder / "figures").iterdir())
    for path in paths:
        image = imread(BytesIO(path.read_bytes()), format="png")
        assert image.shape[0] > 100 and image.shape[1] > 200, path
        assert image.std() > 0.02, path
    return {path.stem for path in paths}
