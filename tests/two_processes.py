"""Run by `accelerate launch`: trains a tiny PRM, leaves its history and weights. Arguments: base, out, accumulate."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from workbench import labels, packing, tasks
from workbench.types import Labelled, Step
from workbench.verifiers.prm import Training, train


def main(base: str, out: Path, accumulate: int) -> None:
    task, chains = tasks.get("arithmetic"), []
    for i, problem in enumerate(task.load("train", 80, seed=3, level=2)):
        right = task.demonstration(problem)
        for trace in (right, replace(right, steps=(*right.steps[:1], Step(f"{i}+1=0"), *right.steps[2:]))):
            chains.append(Labelled(problem, trace, tuple(labels.oracle([(problem, trace)])[0])))

    config = Training(
        "full", steps=3, batch=3, accumulate=accumulate, capacity=128, lr=3e-3, head_lr=0, check_every=1, held_out=0.2
    )
    rows, written, write = [], [], packing.Store.write
    packing.Store.write = lambda folder, found: written.append(folder.name) or write(folder, found)
    train(chains, base, out, config, log=rows.append, progress=False)
    rank = int(os.environ.get("RANK", 0))
    (out / f"written-by-{rank}.json").write_text(json.dumps(written))
    if rank == 0:
        (out / "rows.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
