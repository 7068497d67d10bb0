"""Programs run in modelled seconds, and what a run looks like over time."""
