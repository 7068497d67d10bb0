"""Actions and schedules, with the notation `2F0`: stage 2, forward, microbatch 0."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from hpc_alpa.errors import ScheduleError


class Pass(StrEnum):
    """What an action runs; the value is its letter in the notation."""

    FORWARD = "F"
    BACKWARD = "B"


_ACTION = re.compile(rf"(\d+)([{''.join(Pass)}])(\d+)")


@dataclass(frozen=True, order=True)
class Action:
    """One pass of one microbatch on one stage, written `<stage><F|B><microbatch>`: `2F0`, `1B3`."""

    stage: int
    kind: Pass
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.microbatch}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The action that `text` writes. Raises ScheduleError."""
        match = _ACTION.fullmatch(text)
        if match is None:
            raise ScheduleError(
                f"{text!r} is not an action: expected <stage><{'|'.join(Pass)}><microbatch>, "
                "as in 2F0"
            )
        return cls(int(match[1]), Pass(match[2]), int(match[3]))


class Schedule(tuple[tuple[Action, ...], ...]):
    """The actions of each stage in the order in which the stage runs them.

    A tuple with one tuple of actions per stage. `str` writes one line per stage, `parse` reads it:

        0F0 0F1 0B0 0B1
        1F0 1B0 1F1 1B1
    """

    __slots__ = ()

    def __new__(cls, stages: Iterable[Iterable[Action]]) -> Self:
        return super().__new__(cls, (tuple(actions) for actions in stages))

    @property
    def num_stages(self) -> int:
        return len(self)

    @property
    def num_microbatches(self) -> int:
        """One more than the largest microbatch that any stage names."""
        return max((action.microbatch + 1 for stage in self for action in stage), default=0)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, stage)) for stage in self)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The schedule that `text` writes, one line per stage. Raises ScheduleError."""
        return cls(map(Action.parse, line.split()) for line in text.strip().splitlines())
