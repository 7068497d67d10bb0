"""Tables in a terminal, in a pipe, without UTF-8 and in little space."""

import io
import re

import pytest

from hpc_alpa.report.rows import StageRow
from hpc_alpa.report.tables import machine_table, plan_table, show

ROWS = (
    StageRow(
        stage=0,
        ranks=(0, 1),
        mesh=(1, 2),
        layers=("embedding", "layer 0"),
        specs={"ffn/w1": "RS1", "attention/qkv": "RS1"},
        collectives={"all_reduce": 16, "all_gather": 4},
        predicted_seconds=0.0123,
        predicted_bytes=1.5e9,
        measured_bytes=1.42e9,
    ),
    StageRow(1, (2, 5), (2,), (), measured_seconds=0.5),
)


class Stream(io.TextIOWrapper):
    """A stream of a given encoding, a terminal or not."""

    def __init__(self, encoding: str, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    @property
    def text(self) -> str:
        self.flush()
        self.seek(0)
        return self.read()


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def _cells(text: str) -> list[list[str]]:
    return [[c.strip() for c in re.split("[│|]", line)[1:-1]] for line in text.splitlines()]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_plan_table_in_a_pipe(encoding: str) -> None:
    stream = Stream(encoding)
    show(plan_table(ROWS, caption="step: predicted 24 ms"), stream)
    text = stream.text
    cells = _cells(text)
    assert text.isascii() is (encoding != "utf-8") and "\x1b" not in text
    for row in (
        ["stage 0", "embedding", "ffn/w1        RS1", "all_reduce 16", "12.3 ms", "-"],
        ["ranks 0-1", "layer 0", "attention/qkv RS1", "all_gather 4", "1.5 GB", "1.42 GB"],
        ["mesh 1x2", "", "", "", "", ""],
        ["stage 1", "-", "-", "-", "-", "500 ms"],
        ["ranks 2, 5", "", "", "", "-", "-"],
    ):
        assert row in cells
    assert text.splitlines()[-1] == "step: predicted 24 ms"
    assert not any(line.endswith(" ") for line in text.splitlines())


def test_machine_table_keeps_every_letter() -> None:
    stream = Stream("ascii")
    facts = {"path": "/tmp/[red]x[/red]", "name": "Zürich \N{GREEK SMALL LETTER MU}", "empty": ""}
    show(machine_table(facts), stream)
    cells = _cells(stream.text)
    assert ["path", "/tmp/[red]x[/red]"] in cells  # no markup
    assert ["name", "Z?rich ?"] in cells  # no UnicodeEncodeError
    assert ["empty", ""] in cells


def test_a_narrow_stream_folds_and_cuts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    stream = Stream("ascii")
    show(plan_table(ROWS), stream)
    assert max(map(len, stream.text.splitlines())) <= 60
    rows = [cells for cells in _cells(stream.text) if len(cells) == 6]
    weights = "".join(row[2] for row in rows).replace(" ", "")
    assert "attention/qkvRS1" in weights


def test_a_terminal_gets_styles_and_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Stream("utf-8", terminal=True)
    show(plan_table(ROWS), stream)
    assert "\x1b[1m" in stream.text and "╭" in stream.text


def test_show_writes_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    show(machine_table({"ranks": "4"}))
    assert "ranks" in capsys.readouterr().out
