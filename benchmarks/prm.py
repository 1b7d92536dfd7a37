"""Training a PRM: packed trees against the straightforward way, on the same PRM800K rows, base, cores and labels.

Straightforward, as the last public PRM trainers did it: a row is a chain and its step ends, padded to the longest of
its batch; a shared step is read, and learnt from, as often as chains share it. `WORKBENCH_PRM800K` names the rows.

Sections (`WORKBENCH_BENCH=speed,data` runs some of them): speed, data.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _sections import row, run

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("WORKBENCH_PRM800K", ROOT.parent / "shared/data/prm800k/phase1_train.stepwise.parquet"))
PROBLEMS, CHAINS = 2, 16  # of so many problems, so many chains each: minutes, and not an hour


def main() -> list[dict]:
    from workbench.types import WorkbenchError

    if not DATA.exists():
        raise WorkbenchError(f"{DATA} is not there: let WORKBENCH_PRM800K name PRM800K's phase-1 train rows")
    return run("prm", speed, data)


def speed() -> list[dict]:
    """Each way in a process of its own, so that its peak memory is its own; the same labels and first weights.

    The straightforward way visits a shared step once a chain, so it also makes more updates.
    """
    found = {}
    for way in ("straight", "packed"):
        out = subprocess.run([sys.executable, __file__, way], cwd=ROOT, capture_output=True, text=True, check=True)
        found[way] = json.loads(out.stdout.splitlines()[-1])
        print(way, found[way], flush=True)
    packed, straight = found["packed"], found["straight"]
    faster = packed["rate"] / straight["rate"]
    computed = packed["computed"] / straight["computed"]
    return [
        row("tokens of chains, straightforward", straight["rate"], "tokens/s"),
        row("tokens of chains, packed", packed["rate"], "tokens/s"),
        row("the same chains, packed over straightforward", faster, "x", ">= 2", faster >= 2),
        row("computed tokens, padding included", computed, "of straightforward"),
        row("computed tokens a second", packed["raw"] / straight["raw"], "x"),
        row("padding, packed", packed["padding"], "share", "< 0.05", packed["padding"] < 0.05),
        row("held-out loss after one pass, straightforward", straight["loss"], "nats"),
        row("held-out loss after one pass, packed", packed["loss"], "nats"),
        row("peak memory, packed over straightforward", packed["peak"] / straight["peak"], "x", "<= 1",
            packed["peak"] <= straight["peak"]),
    ]  # fmt: skip


def data() -> list[dict]:
    """1,000,000 rows from a file to packed rows on disk: time, and memory at its peak."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w") as file:
            for i in range(1_000_000):
                label = {"steps": [f"{i} + 1 = {i + 1}", "so it is odd"], "label": i % 3 - 1}
                file.write(json.dumps({"problem": f"Is {i} even?", **label, "final_answer_correct": False}) + "\n")
        command = [sys.executable, __file__, "stream", str(path), folder]
        out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(out.stdout.splitlines()[-1])
    return [
        row("1,000,000 rows read, checked and packed", found["seconds"], "s"),
        row("memory at the peak", found["peak"], "MB", "<= 1000", found["peak"] <= 1000),
    ]


# --- what runs in a process of its own ---


def peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def sample() -> list:
    """Some chains of some problems, no longer than both ways can hold, up to their last label."""
    import itertools

    from workbench.stepdata import Rows
    from workbench.types import Trace

    chosen, rng = [], random.Random(0)
    for _, group in itertools.groupby(Rows(DATA), lambda chain: chain.problem.id):
        group = list(group)
        if len(group) >= CHAINS and sum(len(step.text) for step in group[-1].trace.steps) < 1200:
            cut = []
            for c in rng.sample(group, CHAINS):
                n = max(i for i, x in enumerate(c.labels) if x is not None) + 1
                cut.append(c._replace(trace=Trace(c.trace.steps[:n], "cut"), labels=c.labels[:n]))
            chosen += cut
        if len(chosen) == (PROBLEMS + 2) * CHAINS:
            return chosen
    return chosen


def train(way: str) -> dict:
    import torch

    from workbench.format import Encoder
    from workbench.packing import collate, judged, pack
    from workbench.verifiers import prm

    model, tokenizer = prm.open_base("smollm2", prm.Training("lora", dtype="float32"))
    encoder, chains = Encoder(tokenizer), sample()
    chains, others = chains[: PROBLEMS * CHAINS], chains[PROBLEMS * CHAINS :]
    fits = [c for c in chains if len(encoder.encode(c.problem.prompt, c.trace.steps).ids) <= 384]
    straight = [judged(*c, encoder) for c in fits]
    rows = straight if way == "straight" else list(pack(fits, encoder, 384))
    batch = 2 if way == "straight" else 1  # rows of the packed way are full: as many tokens at a time, or fewer
    if way == "straight":
        random.Random(0).shuffle(rows)
        order = list(range(len(rows)))
    else:
        order = list(prm.Ordered([len(r.ids) for r in rows], batch, 0))
    batches = [[rows[i] for i in order[at : at + batch]] for at in range(0, len(order), batch)]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    computed = real = 0
    began = time.perf_counter()
    for part in batches:
        b = collate(part, tokenizer.pad_token_id)
        loss = prm.bce(model, b)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        computed, real = computed + b["input_ids"].numel(), real + sum(len(r.ids) for r in part)
    seconds = time.perf_counter() - began
    tokens = sum(len(r.ids) for r in straight)  # the same work for both: what the chains hold
    return {"rate": tokens / seconds, "raw": computed / seconds, "computed": computed, "padding": 1 - real / computed,
            "loss": held_out(model, encoder, others), "seconds": seconds, "peak": peak()}  # fmt: skip


def held_out(model, encoder, chains) -> float:
    """Mean cross-entropy over the labels of problems that were not trained on, each label once."""
    import torch

    from workbench.packing import collate, pack
    from workbench.verifiers import prm

    total = items = 0.0
    with torch.inference_mode():
        for forest in pack(chains, encoder, 384):
            batch = collate([forest], encoder.tokenizer.pad_token_id)
            n = int(batch["items"])
            total, items = total + prm.bce(model, batch).item() * n, items + n
    return total / items


def stream(path: str, folder: str) -> dict:
    from workbench.format import Encoder
    from workbench.models import character_tokenizer
    from workbench.packing import Store, pack
    from workbench.stepdata import Rows

    began = time.perf_counter()
    store = Store.write(Path(folder) / "packed", pack(Rows(path), Encoder(character_tokenizer()), 512))
    return {"labels": store.labels, "seconds": time.perf_counter() - began, "peak": peak()}


if __name__ == "__main__":
    print(json.dumps(stream(*sys.argv[2:]) if sys.argv[1] == "stream" else train(sys.argv[1])))
