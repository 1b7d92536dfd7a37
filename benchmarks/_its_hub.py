"""its_hub's beam search, its own OpenAI client against `transformers serve`: the peer of the local policy's beam.

    .venv/bin/python benchmarks/_smollm2.py; bash benchmarks/peers.sh its-hub
    runs/bench/venv-its-hub/bin/python benchmarks/_its_hub.py FILE.json

FILE.json: {"problems": [prompt texts], "n": 16, "width": 4, "step_tokens": 16, "rounds": 4, "model": policy
checkpoint, "prm": PRM checkpoint, "url": "http://127.0.0.1:8123/v1"} and, optional,
  "break"        false: a step is exactly step_tokens tokens, nothing ends early; true: a line break ends a step too
  "concurrency"  problems searched at a time (all)
  "continuous"   the server batches its requests (true); false: it answers them one by one, far slower
  "threads"      of the server and of the PRM, each (all cores)
The server is started and stopped here. Prints one JSON line; start-up and one problem to warm up are not timed.

Where its beam differs from ours (`workbench.search.beam`), the same n and width given:
- Its `beam_width` is how many beams are kept, and budget / beam_width the copies of each. Ours are n/width and width,
  so it is given n/width. The first round has `width` chains, not n.
- `rounds` means the same in both: the first steps, then at most `rounds` more. Here a chain that has all its steps
  counts as stopped, closed or not. The best-scored chain is the answer: there is no vote.
- A chain that stopped is copied like the others and stays among the n.
- The PRM is given prompt and text, so every round it reads every chain anew, and it must find the steps again: at
  line breaks and at the end. A chain is worth its worst step.
- Text, not tokens, goes to and fro: every step has its prefix tokenised anew, in other pieces now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from urllib.parse import urlsplit

from workbench.format import END_ASSISTANT, TAGS, Encoder

TEMPLATE = (  # a last assistant message is a chain that goes on: `transformers serve` has no continue_final_message
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}</user><reasoning>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
)

SERVE = """
import os, threading, time
def watch(parent=os.getppid()):  # whoever started the server is gone, however it went: so is the server
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=watch, daemon=True).start()
from transformers.cli.transformers import main
main()
"""


def served(wanted: dict, folder: Path) -> Path:
    """The checkpoint by links, with configs of its own: the generation config tells the server what ends a step, and
    the tags are no special tokens, since the server takes those out of its text and no chain would be seen to close."""
    from transformers import AutoTokenizer

    model = Path(wanted["model"]).resolve()
    for file in model.iterdir():
        (folder / file.name).symlink_to(file)

    def write(name: str, what: dict) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps(what))

    def read(name: str) -> dict:
        return json.loads((model / name).read_text())

    tokenizer = read("tokenizer.json")
    for token in tokenizer["added_tokens"]:
        token["special"] = token["special"] and token["content"] not in TAGS
    write("tokenizer.json", tokenizer)
    write("tokenizer_config.json", read("tokenizer_config.json") | {"extra_special_tokens": []})
    config = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    if wanted.get("break"):  # continuous batching knows tokens that end a request, and no stop strings
        ends = Encoder(AutoTokenizer.from_pretrained(model)).ends_step()
        config["eos_token_id"] = [i for i, end in enumerate(ends) if end]
    write("generation_config.json", config)
    if not wanted.get("break"):
        write("config.json", read("config.json") | {"eos_token_id": None})
    return folder


def alive(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/health", timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def server(wanted: dict, model: Path, log):
    """`transformers serve` of `model` at the url, for as long as the block runs."""
    url = urlsplit(wanted["url"])
    if alive(wanted["url"]):
        raise SystemExit(f"url {wanted['url']} is in use: name another port, the server is started here")
    if url.hostname not in ("127.0.0.1", "localhost"):
        raise SystemExit(f"url {wanted['url']}: the server is started on this machine only, name 127.0.0.1")
    command = [sys.executable, "-c", SERVE, "serve", str(model), "--host", url.hostname, "--port", str(url.port)]
    command += ["--device", "cpu", "--chat-template-kwargs", json.dumps({"chat_template": TEMPLATE})]
    command += ["--log-level", "error"]
    if wanted.get("continuous", True):
        command += ["--continuous-batching"]
    process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"transformers serve ended with {process.returncode}, its log: {log.name}")
            if alive(wanted["url"]):
                break
            time.sleep(0.2)
        else:
            raise SystemExit(f"transformers serve did not answer within two minutes, its log: {log.name}")
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def reward_model(folder: str):
    """Our PRM checkpoint behind its_hub's interface: (prompt, texts) -> one score a text."""
    import torch
    from its_hub.api import AbstractProcessRewardModel

    from workbench.format import BREAK
    from workbench.models import load_model

    class StepPRM(AbstractProcessRewardModel):
        def __init__(self):
            self.model, tokenizer = load_model(folder, "AutoModelForTokenClassification")
            self.encoder, self.pad, self.read, self.seconds = Encoder(tokenizer), tokenizer.pad_token_id, 0, 0.0

        async def ascore(self, prompt, texts):
            return await asyncio.to_thread(self.score, prompt, texts)

        @torch.inference_mode()
        def score(self, prompt, texts):
            begin = time.perf_counter()
            rows = [self.encode(prompt, text) for text in texts]
            width = max(len(ids) for ids, _ in rows)
            ids = torch.tensor([ids + [self.pad] * (width - len(ids)) for ids, _ in rows])
            # pads stand on the right, so causal attention alone keeps them out
            hidden = self.model.model(input_ids=ids, use_cache=False).last_hidden_state
            scores = [
                self.model.score(states[ends]).float().sigmoid().min().item()
                for states, (_, ends) in zip(hidden, rows, strict=True)
            ]
            self.read += sum(len(ids) for ids, _ in rows)
            self.seconds += time.perf_counter() - begin
            return scores

        def encode(self, prompt, text):
            ids, ends = self.encoder.prompt(prompt), []
            for line in text.splitlines(keepends=True) or [BREAK]:
                ids = ids + self.encoder.text(line)
                ends.append(len(ids) - 1)
            return ids, ends

    return StepPRM()


def main(path: str) -> dict:
    wanted = json.loads(Path(path).read_text())
    threads = wanted.get("threads") or len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # waiting in loops on shared cores was up to 5 times slower
    logging.disable(logging.WARNING)  # one for each request
    warnings.simplefilter("ignore", DeprecationWarning)  # its own, of the calls its own search makes
    from its_hub.api import GenerationUsage
    from its_hub.core.algorithms.beam_search import BeamSearch
    from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
    from its_hub.core.lms.step_generation import StepGeneration

    class Client(OpenAICompatibleLanguageModel):
        async def agenerate(self, *positional, **named):
            return await super().agenerate(*positional, **named, usage_accumulator=self.usage)

    n, width, problems = wanted.get("n", 16), wanted.get("width", 4), wanted["problems"]
    prm = reward_model(wanted["prm"])
    steps = StepGeneration(
        max_steps=wanted["rounds"],
        tokens_per_step=wanted["step_tokens"],
        temperature=1.0,
        include_stop_str_in_output=True,  # the line breaks stay in the text
        stop_token=END_ASSISTANT if wanted.get("break") else None,
    )
    search = BeamSearch(steps, prm, beam_width=n // width)

    async def solve(texts: list[str], client, some: int) -> list[str]:
        gate = asyncio.Semaphore(some)

        async def one(text: str) -> str:
            async with gate:
                return (await search.ainfer(client, text, budget=n))["content"]

        return await asyncio.gather(*map(one, texts))

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="served-")))
        log = stack.enter_context(Path(path).with_suffix(".server.log").open("w"))
        model = served(wanted, folder)
        stack.enter_context(server(wanted, model, log))
        client = Client(wanted["url"], "none", str(model), max_tries=1, verify_ssl=False)
        client.endpoint_type = "openai"  # the flags it has for vLLM are refused by this server
        client.usage = GenerationUsage()
        some = wanted.get("concurrency") or len(problems)
        asyncio.run(solve(problems[:1], client, 1))
        client.usage, prm.read, prm.seconds = GenerationUsage(), 0, 0.0
        begin = time.perf_counter()
        answers = asyncio.run(solve(problems, client, some))
        seconds = time.perf_counter() - begin
    return {
        "problems_per_second": round(len(problems) / seconds, 4),
        "tokens": client.usage.completion_tokens,
        "seconds": round(seconds, 2),
        "answers": answers,
        "requests": client.usage.num_calls,
        "prm_tokens": prm.read,
        "prm_seconds": round(prm.seconds, 2),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped and the links removed
    with contextlib.redirect_stdout(sys.stderr):
        line = main(sys.argv[1])
    print(json.dumps(line), flush=True)
