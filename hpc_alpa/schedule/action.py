"""Actions and schedules, with the notation `2F0`: stage 2, forward, microbatch 0."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Self

from hpc_alpa.errors import ScheduleError


class Pass(StrEnum):
    """What an action runs; the value is its letter in the notation.

    In a schedule with a W, B is the half of the backward pass that makes what the stage before
    waits for, and W the other half: weight gradients. In a schedule without, B is all of it.
    """

    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"


_ACTION = re.compile(rf"(\d+)([{''.join(Pass)}])(\d+)")


@dataclass(frozen=True, order=True)
class Action:
    """One pass of one microbatch on one stage, written `<stage><F|B|W><microbatch>`: `2F0`."""

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
    """The actions of each submesh in the order in which it runs them.

    A tuple with one tuple of actions per submesh, which has one stage or several. `str` writes one
    line per submesh, `parse` reads it:

        0F0 0F1 0B0 0B1
        1F0 1B0 1F1 1B1
    """

    def __new__(cls, submeshes: Iterable[Iterable[Action]]) -> Self:
        return super().__new__(cls, (tuple(actions) for actions in submeshes))

    @property
    def num_submeshes(self) -> int:
        return len(self)

    @cached_property
    def num_stages(self) -> int:
        """One more than the largest stage that any submesh names."""
        return max((action.stage + 1 for row in self for action in row), default=0)

    @cached_property
    def num_microbatches(self) -> int:
        """One more than the largest microbatch that any submesh names."""
        return max((action.microbatch + 1 for row in self for action in row), default=0)

    @cached_property
    def passes(self) -> frozenset[Pass]:
        """The passes that have actions."""
        return frozenset(action.kind for row in self for action in row)

    @property
    def last_pass(self) -> Pass:
        """What a microbatch runs last on a stage: W where the backward pass is split."""
        return max(self.passes, key=list(Pass).index, default=Pass.FORWARD)

    @cached_property
    def placement(self) -> tuple[int, ...]:
        """The submesh of each stage; of one that several run, the last of them."""
        where = {action.stage: k for k, row in enumerate(self) for action in row}
        return tuple(where.get(stage, 0) for stage in range(self.num_stages))

    def only(self, keep: Callable[[Action], bool]) -> Self:
        """The schedule of the actions for which `keep` holds."""
        return type(self)((a for a in row if keep(a)) for row in self)

    def __str__(self) -> str:
        return "\n".join(" ".join(map(str, row)) for row in self)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The schedule that `text` writes, one line per submesh. Raises ScheduleError."""
        return cls(map(Action.parse, line.split()) for line in text.strip().splitlines())
