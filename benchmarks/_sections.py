"""What the benchmarks with several sections share: which of them run, and the rows that they give."""

from __future__ import annotations

import os
from collections.abc import Callable

from workbench.types import WorkbenchError


def run(name: str, *sections: Callable[[], list[dict]]) -> list[dict]:
    """The rows of those sections that `WORKBENCH_BENCH` names, by default of all; in the order that it names them."""
    known = {section.__name__: section for section in sections}
    asked = [word for word in os.environ.get("WORKBENCH_BENCH", ",".join(known)).split(",") if word]
    if unknown := [word for word in asked if word not in known]:
        raise WorkbenchError(f"no section {', '.join(unknown)}: choose among {', '.join(known)}")
    rows = []
    for word in asked:
        print(f"{name}: {word} …", flush=True)
        rows += known[word]()
    return rows


def row(name: str, value: float, unit: str, goal: str | None = None, holds: bool | None = None) -> dict:
    return {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "holds": holds}
