"""vLLM's CPU build sampling many sequences at once: the peer of the local policy's decoding.

    .venv/bin/python benchmarks/_smollm2.py; bash benchmarks/peers.sh vllm
    runs/bench/venv-vllm/bin/python benchmarks/_vllm.py FILE.json

FILE.json: {"model": checkpoint folder, "prompts": [[token ids], …], "tokens": 64, "threads": 2} and, optional,
"repeats" (timed runs, the best counts; 1), "seed" (of the engine; 0) and "seeds" (one a prompt: every sequence then has
a generator of its own). Every prompt is one sequence of exactly `tokens` tokens at temperature 1.
Prints one JSON line; the log of vLLM goes to stderr. Start-up and one warm-up run are not timed.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path


def main(path: str) -> dict:
    wanted = json.loads(Path(path).read_text())
    prompts, tokens, threads = wanted["prompts"], wanted.get("tokens", 64), wanted.get("threads", 2)
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),  # else it keeps a core for itself, or finds no NUMA
        "VLLM_CPU_KVCACHE_SPACE": str(wanted.get("cache_gb", 2)),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: no sockets, and no second Python's turns
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.pop("OMP_NUM_THREADS", None)  # torch's own threads would stand beside vLLM's, several times slower
    from vllm import LLM, SamplingParams

    began = time.perf_counter()
    longest = max(map(len, prompts)) + tokens
    llm = LLM(
        model=str(Path(wanted["model"]).resolve()),
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=longest,
        max_num_seqs=len(prompts),
        max_num_batched_tokens=max(2048, longest, sum(map(len, prompts))),  # all prompts in one step
        generation_config="vllm",  # the sampling below and nothing else
        seed=wanted.get("seed", 0),
    )
    start = time.perf_counter() - began
    rows = [{"prompt_token_ids": ids} for ids in prompts]
    seeds = wanted.get("seeds") or [None] * len(prompts)
    how = [
        SamplingParams(temperature=1.0, max_tokens=tokens, ignore_eos=True, detokenize=False, seed=seed)
        for seed in seeds
    ]

    def run() -> tuple[int, float]:
        begin = time.perf_counter()
        out = llm.generate(rows, how, use_tqdm=False)
        return sum(len(row.outputs[0].token_ids) for row in out), time.perf_counter() - begin

    runs = [run() for _ in range(1 + wanted.get("repeats", 1))][1:]
    written, seconds = min(runs, key=lambda pair: pair[1])
    return {
        "tokens_per_second": round(written / seconds, 1),
        "seconds": round(seconds, 3),
        "tokens": written,
        "start_seconds": round(start, 1),
        "all_seconds": [round(taken, 2) for _, taken in runs],
    }


def preload() -> None:
    """Start again with Intel's OpenMP, as vLLM advises: gcc's waits in loops, up to 5 times slower on shared cores."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if library.exists() and str(library) not in os.environ.get("LD_PRELOAD", ""):
        before = [os.environ["LD_PRELOAD"]] if os.environ.get("LD_PRELOAD") else []
        os.environ["LD_PRELOAD"] = ":".join([str(library), *before])
        os.execv(sys.executable, [sys.executable, *sys.argv])


if __name__ == "__main__":
    preload()
    with contextlib.redirect_stdout(sys.stderr):
        line = main(sys.argv[1])
    print(json.dumps(line), flush=True)
