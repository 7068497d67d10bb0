"""Where in the user's files a trace is: the first frame outside the tracer and NumPy."""

from __future__ import annotations

import os
import sys
from functools import cache
from types import FrameType

import numpy as np
import scipy

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A model of this library is a user here: its lines are worth naming.
_HIDDEN = tuple(
    path + os.sep
    for path in (
        *(
            os.path.join(_PACKAGE, room)
            for room in ("ir", "nn", "ops", "random", "trace", "transform")
        ),
        *(os.path.dirname(os.path.abspath(str(m.__file__))) for m in (np, scipy)),
    )
)
_HIDDEN_FILES = (os.path.join(_PACKAGE, "pytree.py"), "<frozen ", "<__array_function__")


@cache
def _is_hidden(filename: str) -> bool:
    return filename.startswith(_HIDDEN) or filename.startswith(_HIDDEN_FILES)


def user_frame() -> FrameType | None:
    """The innermost frame of the user's code, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_hidden(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def position() -> str:
    """`file.py:88` of the user's line, or "" when there is none."""
    frame = user_frame()
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def name_of(value: object) -> str | None:
    """The name under which the user's frames hold this very object, if any does."""
    frame = user_frame()
    while frame is not None:
        for names in (frame.f_locals, frame.f_globals):
            for name, held in list(names.items()):
                if held is value:
                    return name
        frame = frame.f_back
    return None
