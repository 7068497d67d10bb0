"""The progress of a run under a clock of our own."""

import pytest

from hpc_alpa.report.progress import WINDOW, Progress
from tests.test_report_tables import Stream, plain_environment  # noqa: F401


class Clock:
    """Seconds that go by when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _train(stream: Stream, clock: Clock, steps: int, num_steps: int, rank: int = 0) -> Progress:
    with Progress(num_steps, 1000, rank=rank, file=stream, interval=5.0, clock=clock) as progress:
        for i in range(steps):
            clock.now += 30.0 if i == 0 else 2.0  # the first step compiles
            progress.update(loss=5.0 - i)
    return progress


def test_plain_lines_every_few_seconds() -> None:
    stream = Stream("ascii")
    _train(stream, Clock(), steps=8, num_steps=8)
    assert stream.text.splitlines() == [
        "step 1/8  loss 5.000",
        "step 4/8  loss 2.000  500 tokens/s  0:08 left",
        "step 7/8  loss -1.000  500 tokens/s  0:02 left",
        "step 8/8  loss -2.000  500 tokens/s  0:00 left",
    ]


def test_the_last_step_of_a_run_that_ends_early_is_shown() -> None:
    stream, clock = Stream("ascii"), Clock()
    with pytest.raises(KeyboardInterrupt), Progress(10, 1000, file=stream, clock=clock) as progress:
        progress.update(1.0)
        raise KeyboardInterrupt
    assert stream.text == "step  1/10  loss 1.000\n"


def test_only_rank_0_shows_anything() -> None:
    stream = Stream("ascii", terminal=True)
    progress = _train(stream, Clock(), steps=8, num_steps=8, rank=1)
    assert stream.text == "" and progress.step == 8


def test_the_speed_is_that_of_the_last_steps() -> None:
    stream, clock = Stream("ascii"), Clock()
    progress = Progress(1000, 1000, file=stream, clock=clock)
    for i in range(1 + 2 * WINDOW):
        clock.now += 2.0 if i < WINDOW else 0.5
        progress.update(1.0)
    assert progress.tokens_per_second == pytest.approx(2000)


def test_a_continued_run_counts_from_its_first_step() -> None:
    stream = Stream("ascii")
    with Progress(10, 1000, file=stream, interval=0, first_step=7, clock=Clock()) as progress:
        progress.update(1.0)
    assert stream.text == "step  8/10  loss 1.000\n"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    for encoding, bar in (("utf-8", "━━━"), ("ascii", "---")):
        stream = Stream(encoding, terminal=True)
        _train(stream, Clock(), steps=4, num_steps=4)
        assert "step 4/4  loss 2.000  500 tokens/s  0:00 left" in stream.text
        assert bar in stream.text
