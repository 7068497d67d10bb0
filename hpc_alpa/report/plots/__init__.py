"""Pictures: the loss of a run, timelines of a step, stages of a plan, schedules, frontiers."""

from hpc_alpa.report.plots.figure import PlotError
from hpc_alpa.report.plots.frontier import frontier_plot
from hpc_alpa.report.plots.loss import loss_plot
from hpc_alpa.report.plots.plan import plan_plot
from hpc_alpa.report.plots.schedule import schedule_plot
from hpc_alpa.report.plots.timeline import timeline_plot

__all__ = [
    "PlotError", "frontier_plot", "loss_plot", "plan_plot", "schedule_plot", "timeline_plot",
]  # fmt: skip
