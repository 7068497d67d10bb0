"""What keeps a job from hanging when one of its processes fails. Imports nothing heavy.

A rank that leaves alone leaves the others waiting for ever: they wait for it in a collective, it
waits for them at its own end. So where a launcher shows more than one rank, `install` sees to it
that an uncaught exception (in any thread) or a failing `sys.exit` ends the whole job with a message
and a non-zero code, also before MPI has started: the other ranks are then waiting in MPI_Init.
`raise SystemExit(n)` without `sys.exit` cannot be told from a good end; the others then wait for
HPC_ALPA_EXIT_SECONDS.
"""

from __future__ import annotations

import atexit
import dis
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, NoReturn

from hpc_alpa.errors import LaunchError
from hpc_alpa.runtime.launchers import place

EXIT_VARIABLE = "HPC_ALPA_EXIT_SECONDS"
EXIT_SECONDS = 30.0
# A rank that leaves with an error waits only this long for the others to leave with it.
FAILED_EXIT_SECONDS = 2.0
ABORT_SECONDS = 30.0
# A launcher that hears of an abort may drop what it has not yet forwarded of the ranks' output.
FORWARD_SECONDS = 0.2

_installed = False
_rank: int | None = None
_exit_request: tuple[Any, FrameType] | None = None  # status, outermost frame
_meet_at_exit: Callable[[float], bool] | None = None


def install(size: int | None = None) -> bool:
    """Install the hooks where there is more than one rank; whether they are installed.

    Called by `import hpc_alpa`, which knows what the launcher's variables show; by `init` with the
    size that MPI has. Starts no MPI and changes no environment variable.
    """
    global _installed
    if size is None:
        try:
            found = place(os.environ)
        except LaunchError:
            return False  # init() tells it
        size = found.size if found else 1
    if _installed or size < 2:
        return _installed
    _installed = True
    sys.excepthook = _on_exception
    threading.excepthook = _on_thread_exception
    sys.exit = _exit
    atexit.register(_on_exit)
    return True


def rank_label() -> str:
    """`[rank r]`, as MPI says once it runs, before as the launcher's variables say."""
    if _rank is not None:
        return f"[rank {_rank}]"
    found = place(os.environ)
    return f"[rank {found.rank if found else 0}]"


def at_exit(rank: int, meet: Callable[[float], bool]) -> None:
    """Have the ranks meet at the end: `meet(seconds)` says whether all of them have come."""
    global _meet_at_exit, _rank
    _meet_at_exit = meet
    _rank = rank


def exit_seconds() -> float:
    """How long a rank waits for the others at its end: HPC_ALPA_EXIT_SECONDS, by default 30.

    Raises:
        LaunchError: the variable is not a number of seconds.
    """
    text = os.environ.get(EXIT_VARIABLE)
    try:
        seconds = EXIT_SECONDS if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise LaunchError(f"{EXIT_VARIABLE}={text!r}: expected a number of seconds, such as 30.")
    return seconds


def abort(code: int) -> NoReturn:
    """End all processes of the job with this exit code, starting MPI for it if need be."""
    _end_after(ABORT_SECONDS)  # MPI_Init needs the other ranks, and they may never come to it
    try:
        _flush()
        time.sleep(FORWARD_SECONDS)
        from hpc_alpa.comm.mpi_library import MPI, start

        if not MPI.Is_finalized():
            start()
            MPI.COMM_WORLD.Abort(code)
    finally:
        os._exit(code)


def _on_exception(
    kind: type[BaseException], value: BaseException, trace: TracebackType | None
) -> None:
    if isinstance(value, LaunchError):
        # It says what to do, and every rank has it: rank 0 says it in full.
        text = f"{rank_label()} LaunchError: {value}\n"
        _print(text if rank_label() == "[rank 0]" else text.splitlines(keepends=True)[0])
        _leave_unlaunched()
    else:
        _print(f"{rank_label()} {_text(kind, value, trace)}")
    abort(130 if issubclass(kind, KeyboardInterrupt) else 1)


def _on_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return  # as in threading: it ends the thread only
    name = args.thread.name if args.thread else "?"
    text = _text(args.exc_type, args.exc_value, args.exc_traceback)
    _print(f"{rank_label()} in thread {name}: {text}")
    abort(1)


def _leave_unlaunched() -> None:
    """End this process alone if MPI has not started: under a wrong launcher it would not help."""
    library = sys.modules.get("mpi4py.MPI")
    if library is None or not library.Is_initialized():
        _flush()
        os._exit(1)


def _exit(status: Any = None, /) -> NoReturn:
    """sys.exit, which besides notes its status: at the end nothing else tells the exit code."""
    global _exit_request
    if threading.current_thread() is threading.main_thread():
        main = sys._getframe()
        while main.f_back is not None:
            main = main.f_back
        _exit_request = status, main
    raise SystemExit(status)


def _exit_code() -> int:
    """The code with which sys.exit is ending this process, 0 if it is not."""
    if _exit_request is None:
        return 0
    status, main = _exit_request
    # Where the outermost frame has come to its end, the program had caught the exception.
    if dis.opname[main.f_code.co_code[main.f_lasti]].startswith("RETURN"):
        return 0
    return status & 0xFF if isinstance(status, int) else int(status is not None)


def _on_exit() -> None:
    code = _exit_code()
    library = sys.modules.get("mpi4py.MPI")
    if _meet_at_exit is None and code == 0:
        return  # MPI is not ours to end
    if library is not None and library.Is_finalized():
        return
    seconds = FAILED_EXIT_SECONDS if code else exit_seconds()
    _end_after(seconds + ABORT_SECONDS)
    from hpc_alpa.comm.mpi_library import MPI, meet, start

    start()
    try:
        met = _meet_at_exit(seconds) if _meet_at_exit else meet(MPI.COMM_WORLD, seconds)
    except MPI.Exception:  # another rank is elsewhere, in another collective
        met = False
    if met:
        MPI.Finalize()
        faulthandler.cancel_dump_traceback_later()
        return
    _print(
        f"{rank_label()} leaves with exit code {code}, but the other ranks did not within"
        f" {seconds:g} s: the job is aborted."
        + ("" if code else f" ({EXIT_VARIABLE} sets the time.)")
        + "\n"
    )
    abort(code or 1)


def _end_after(seconds: float) -> None:
    """A last resort that needs neither Python nor MPI: after `seconds` the process is ended."""
    try:
        faulthandler.dump_traceback_later(seconds, exit=True)
    except (AttributeError, OSError, RuntimeError, ValueError):
        pass  # stderr is closed or no file: do without


def _text(kind: Any, value: Any, trace: Any) -> str:
    return "".join(traceback.format_exception(kind, value, trace))


def _print(text: str) -> None:
    # One write, so that the ranks' messages do not mix.
    if sys.stderr is not None:
        sys.stderr.write(text)
    _flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
