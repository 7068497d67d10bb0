"""Every error a user can meet, one class per kind.

A message says what, where, both values and what to do, in that order; the class's docstring has the
longer cause. `assert` is for our own logic only.
"""


class HpcAlpaError(Exception):
    """Base of all named errors of the library."""


class TracingError(HpcAlpaError):
    """The function does something that a trace cannot record.

    A traced array has a type but no values, so Python control flow on values, in-place writes,
    hidden randomness and functions outside the NumPy protocol have no meaning in the graph.
    """


class GraphError(HpcAlpaError):
    """A graph is not well formed, or its text does not parse."""


class ShardingError(HpcAlpaError):
    """A value cannot lie on a mesh as asked.

    An axis does not divide a dim, or a spec is malformed.
    """


class ClusterError(HpcAlpaError):
    """A cluster description is incomplete or contradicts itself."""


class CostError(HpcAlpaError):
    """A cost is missing, or a cost database cannot be used.

    Truncated or foreign files, a newer schema, and another machine's numbers are refused by name.
    """


class PlanError(HpcAlpaError):
    """A plan cannot be made, read or used.

    It was made for another graph or number of ranks, or its file is malformed.
    """


class InfeasibleError(PlanError):
    """No plan meets a limit.

    The message names the limit, by how much it is missed and the nearest fit.

    Attributes:
        missing: by how much the nearest fit misses the limit, in the limit's unit; infinite where
            no fit is known.
    """

    def __init__(self, message: str, *, missing: float = float("inf")) -> None:
        super().__init__(message)
        self.missing = missing


class ScheduleError(HpcAlpaError):
    """A schedule breaks a dependency, misses an action or cannot make progress."""


class ProgramError(HpcAlpaError):
    """The programs of the ranks do not fit together.

    A message without its receive, two orders of collectives, a cycle of waits, a use after free, or
    a write to a buffer that a pending message reads.
    """


class LaunchError(HpcAlpaError):
    """The processes were not started as one MPI job of the expected size."""


class CommError(HpcAlpaError):
    """Ranks disagree about a message or a collective."""


class DataError(HpcAlpaError):
    """Input data is missing, or does not have the declared form."""
