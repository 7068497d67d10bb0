"""Pictures of a run: its loss, the timelines of a step, the stages of a plan."""

from hpc_alpa.report.plots.figure import PlotError
from hpc_alpa.report.plots.loss import loss_plot
from hpc_alpa.report.plots.plan import plan_plot
from hpc_alpa.report.plots.timeline import timeline_plot

__all__ = ["PlotError", "loss_plot", "plan_plot", "timeline_plot"]
