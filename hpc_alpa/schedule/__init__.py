"""Pipeline schedules: the order of actions on every submesh, as values that print and parse."""

from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.check import check, peak_in_flight, peak_on_submeshes, ticks, timeline
from hpc_alpa.schedule.replay import Replay, pass_seconds, replay
from hpc_alpa.schedule.table import SCHEDULES, Family
from hpc_alpa.schedule.torch_csv import from_csv, to_csv

__all__ = [
    "SCHEDULES", "Action", "Family", "Pass", "Replay", "Schedule", "check", "from_csv",
    "pass_seconds", "peak_in_flight", "peak_on_submeshes", "replay", "ticks", "timeline", "to_csv",
]  # fmt: skip
