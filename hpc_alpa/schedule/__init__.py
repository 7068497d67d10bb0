"""Pipeline schedules: the order of actions on every stage, as values that print and parse."""

from hpc_alpa.schedule.action import Action, Pass, Schedule
from hpc_alpa.schedule.check import check, peak_in_flight, ticks, timeline
from hpc_alpa.schedule.table import SCHEDULES

__all__ = [
    "SCHEDULES", "Action", "Pass", "Schedule", "check", "peak_in_flight", "ticks", "timeline",
]  # fmt: skip
