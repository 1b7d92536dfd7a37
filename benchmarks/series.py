"""Does the series keep its promises? Reads the last `make reproduce` and its claims; measures nothing anew."""

from __future__ import annotations

import json

from workbench.claims import decide, load
from workbench.pipeline import runs_folder
from workbench.types import WorkbenchError

GOALS = {
    "sft.pass_at_1": ("pass@1 of the taught policy", "in 0.3..0.7"),
    "search.prm_over_majority": ("guided search minus the vote at equal FLOPs", "> 0"),
    "rl.outcome_gain": ("pass@1 gained by RL", ">= 0.2"),
    "flywheel.star_gain": ("pass@1 gained by STaR", ">= 0.15"),
    "scaling.compute_optimal_factor": ("best-of-n's FLOPs over those of the best setting per difficulty", ">= 4"),
    "scaling.small_over_large_easy": ("small with search minus large, easy and middle bins", "> 0"),
}


def main() -> list[dict]:
    log = runs_folder("runs") / "nano" / "reproduce.jsonl"
    if not log.exists():
        raise WorkbenchError("nothing to report yet: run `make reproduce` first")
    calls = [json.loads(line) for line in log.read_text().splitlines()]
    rows, peak = [], max(call["peak_mb"] for call in calls)
    if full := [call["seconds"] for call in calls if call["built"] == call["stages"]]:
        rows.append(row("reproduce from nothing", full[-1] / 60, "min", "<= 15", full[-1] <= 900))
    rows.append(row("peak memory", peak / 1024, "GB", "<= 4", peak <= 4096))
    again = [call["seconds"] for call in calls if not call["built"] and not call["ran"]]
    if again:
        rows.append(row("reproduce again", again[-1], "s", "<= 20", again[-1] <= 20))
    found = {claim.id: claim for claim in load(runs_folder("runs"), "nano")}
    for id, (name, goal) in GOALS.items():
        if id not in found:
            raise WorkbenchError(f"no claim {id} is recorded: run `make reproduce` first")
        claim = found[id]
        value, holds = getattr(claim.estimate, "value", None), decide(claim.estimate, goal) == "holds"
        rows.append(row(f"{name} ({claim.estimate or 'not measured'})", value, "", goal, holds))
    return rows


def row(name: str, value: float | None, unit: str, goal: str, holds: bool) -> dict:
    return {
        "name": name,
        "value": None if value is None else round(value, 4),
        "unit": unit,
        "goal": goal,
        "holds": holds,
    }
