"""Running programs: launch and exit, executor, distributed arrays. Imports nothing by itself."""
