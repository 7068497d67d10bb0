"""Table of a strong-scaling run: `python scaling_table.py FOLDER` reads FOLDER/<ranks>.json.

Prints the table and writes FOLDER/scaling.csv. Speed-up and efficiency are of the measured seconds
per step, relative to the run with the fewest ranks.
"""

import csv
import json
import sys
from pathlib import Path

COLUMNS = (
    "ranks",
    "step_seconds",
    "predicted_step_seconds",
    "tokens_per_second",
    "speedup",
    "efficiency",
    "plan_digest",
)


def rows(folder: Path) -> list[dict[str, object]]:
    """One row per finished run, fewest ranks first."""
    runs = [json.loads(path.read_text()) for path in folder.glob("[0-9]*.json")]
    runs.sort(key=lambda run: run["ranks"])
    table = []
    for run in runs:
        first, seconds = runs[0], run["measured_step_seconds"]
        speedup = first["measured_step_seconds"] / seconds
        table.append(
            {
                "ranks": run["ranks"],
                "step_seconds": seconds,
                "predicted_step_seconds": run["predicted_step_seconds"],
                "tokens_per_second": run["tokens_per_second"],
                "speedup": speedup,
                "efficiency": speedup * first["ranks"] / run["ranks"],
                "plan_digest": run["plan_digest"],
            }
        )
    return table


def main(folder: Path) -> int:
    table = rows(folder)
    if not table:
        print(f"error: no run has finished in {folder}: no <ranks>.json there", file=sys.stderr)
        return 1
    with open(folder / "scaling.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    print("  ".join(f"{column:>12.12}" for column in COLUMNS))
    for row in table:
        cells = (
            f"{value:12.4g}" if isinstance(value, float) else f"{value!s:>12.12}"
            for value in row.values()
        )
        print("  ".join(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
