"""The HTML page: whole in itself, safe against names, and true to what it is given."""

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hpc_alpa.report.page import POLICY, Run, page, save
from hpc_alpa.report.rows import StageRow
from hpc_alpa.simulate.timeline import Timeline, from_chrome
from tests.test_timeline_events import random_events

pytest.importorskip("matplotlib")

EVIL = '<script src="https://example.org/x.js">&"\''
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Tags with attributes, and texts; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def attributes(self, tag: str, name: str) -> list[str]:
        return [found.get(name) or "" for this, found in self.tags if this == tag]


def _run() -> Run:
    return Run(
        title=f"a run {EVIL}",
        facts={f"fact {EVIL}": EVIL},
        stages=(StageRow(0, (0, 1), (2,), (EVIL,), {EVIL: "RS0"}, {"all_reduce": 3}, 0.0123),),
        plan={"stages": [EVIL]},
        timelines=tuple(Timeline(random_events(i, 30), o) for i, o in enumerate(ORIGINS)),
        losses=(5.0, 4.0, 3.0),
        validation={3: 3.1},
        unigram=4.77,
        bigram=3.49,
    )


ORIGINS = ("predicted", "measured")


def test_nothing_is_loaded_and_names_stay_names() -> None:
    found = Page(page(_run()))
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found.tags}
    for tag, name in (("img", "src"), ("a", "href")):
        assert all(value.startswith("data:") for value in found.attributes(tag, name))
    assert POLICY in found.attributes("meta", "content") and "http" not in POLICY
    styles = [t for t in found.texts if "font:" in t]
    assert len(styles) == 1 and not re.search(r"url\(|@import", styles[0])
    assert found.texts.count(EVIL) >= 2  # the fact and the layer
    assert any(json.dumps(EVIL)[1:-1] in text for text in found.texts)  # the plan file


def test_the_page_holds_pictures_table_and_timeline() -> None:
    found = Page(page(_run()))
    pictures = found.attributes("img", "src")
    assert len(pictures) == 3
    for picture in pictures:
        data = base64.b64decode(picture.removeprefix("data:image/png;base64,"))
        assert data.startswith(b"\x89PNG")
    assert all(found.attributes("img", "alt"))
    assert any("12.3 ms" in text for text in found.texts)
    (link,) = found.attributes("a", "href")
    trace = json.loads(base64.b64decode(link.partition("base64,")[2]))
    assert [t.origin for t in from_chrome(trace)] == list(ORIGINS)
    rows = sum(text in ORIGINS for text in found.texts)
    assert rows == sum(len(timeline.ranks) for timeline in _run().timelines)


def test_what_is_empty_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    save(path, Run("nothing yet"))
    found = Page(path.read_text(encoding="utf-8"))
    assert not {"img", "h2", "table", "dl", "details"} & {tag for tag, _ in found.tags}
    assert "nothing yet" in found.texts
    assert list(tmp_path.iterdir()) == [path]
