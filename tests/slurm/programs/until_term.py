"""A program that a time limit stops: rank 0 says how often it was started, all wait for SIGTERM.

usage: until_term.py --out FOLDER [what else the job scripts pass]
On its second start it ends by itself, as a resumed training that had little left to do.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--out", type=Path, required=True)
folder = parser.parse_known_args()[0].out

stopped = False


def stop(number: int, frame: object) -> None:
    global stopped
    stopped = True


signal.signal(signal.SIGTERM, stop)
rank = int(os.environ["SLURM_PROCID"])
starts = len(list(folder.glob(f"start-{rank}-*")))
(folder / f"start-{rank}-{starts}").write_text(str(os.getpid()))
deadline = time.monotonic() + 60
while starts == 0 and not stopped:
    if time.monotonic() > deadline:
        sys.exit("no SIGTERM within 60 s")
    time.sleep(0.02)
(folder / f"end-{rank}-{starts}").write_text("SIGTERM" if stopped else "done")
