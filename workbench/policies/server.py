"""The server policy: any OpenAI-compatible completions server, one request a step, many in flight."""

from __future__ import annotations

import json
import math
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ..format import ASSISTANT, BREAK, CLOSING, END_ASSISTANT, Encoder, parse_step, render_prompt, render_step
from ..models import Price
from ..tasks import digest
from ..types import Node, Problem, ProblemError, Step, Trace, WorkbenchError
from . import Sampling, Want


@dataclass(frozen=True)
class Dialect:
    """What a kind of server does beyond (or short of) the OpenAI schema.

    `body`: fields for each request. `ids`: takes prompts of token ids and can give ids back. `top_k`: takes one.
    `logprobs`: gives them. `keeps_break`: leaves the stop string in the text, so that a text without one was ended by
    the model. `config`: draws by a transformers generation config instead of by the schema's fields.
    """

    body: tuple[tuple[str, object], ...] = ()
    ids: bool = False
    top_k: bool = False
    logprobs: bool = True
    keeps_break: bool = False
    config: bool = False


_VLLM = (("skip_special_tokens", False), ("include_stop_str_in_output", True), ("return_token_ids", True))
DIALECTS = {
    "openai": Dialect(),
    "vllm": Dialect(_VLLM, ids=True, top_k=True, keeps_break=True),
    "llama.cpp": Dialect((("cache_prompt", True),), ids=True, top_k=True),  # start it with --special, so tags are text
    "transformers": Dialect(logprobs=False, keeps_break=True, config=True),
}


class Server:
    """A model behind an OpenAI-compatible `/v1/completions`: `vllm serve`, llama.cpp's server, `transformers serve`.

    A step is a request, with a seed of its own made from (seed, problem, node), so the same seed gives the same tree as
    far as the server honours seeds: `transformers serve` seeds all requests in flight at once, so ask it for one at a
    time (`in_flight=1`). `url` ends in /v1; `tokenizer` is the served model's and counts tokens; `config` (a
    transformers config, or a checkpoint folder) prices them; `dialect` is one of DIALECTS.

    At most `in_flight` requests are open. A refused, dropped, slow (`timeout` seconds), 429 or 5xx answer is asked for
    again up to `retries` times, waiting 0.5 s, 1 s, 2 s, … or what Retry-After says. Errors: what the server lacks for
    the request (log-probs, top-k), an answer that is not one, and a server that stays away, each with its address; a
    prompt that is too long for the server is a ProblemError. A count of tokens in `usage` that is not what came is
    warned about once; what came is what counts. Where the server gives strings instead of ids, a step is tokenised
    anew; if that gives another number of tokens, their sum of log-probs stands at the first. `transformers serve` gives
    no log-probs: steps then have none. Left out: chat completions, streaming.

    >>> policy = Server("http://127.0.0.1:8000/v1", "nano", tokenizer, config=folder, dialect="vllm")  # doctest: +SKIP
    >>> policy.extend([Want(problem, Node(), n=4, to_end=True)], seed=0)  # doctest: +SKIP
    """

    def __init__(
        self,
        url: str,
        model: str,
        tokenizer,
        config=None,
        dialect: str = "openai",
        reasoning: bool = True,
        in_flight: int = 16,
        timeout: float = 120.0,
        retries: int = 5,
        key: str | None = None,
    ):
        import httpx

        if dialect not in DIALECTS:
            raise WorkbenchError(f"unknown dialect {dialect!r}: one of {', '.join(DIALECTS)}")
        if in_flight < 1 or retries < 0:
            raise WorkbenchError(f"in_flight={in_flight}, retries={retries}: at least one request, and no fewer than 0")
        self.url, self.model, self.dialect = url.rstrip("/") + "/completions", model, DIALECTS[dialect]
        self.encoder, self.in_flight, self.retries, self.timeout = (
            Encoder(tokenizer, reasoning),
            in_flight,
            retries,
            timeout,
        )
        if isinstance(config, str | Path):
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(config)
        self.price = None if config is None else Price(config)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=in_flight)
        self.client = httpx.Client(timeout=timeout, headers=headers, limits=limits, trust_env=False)
        self._warned: set[str] = set()

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        if self.price is None:
            raise WorkbenchError(f"what a token of {self.model} costs is unknown: Server(config=…) takes its config")
        return self.price(prefix, new, head)

    def prompt_tokens(self, problem: Problem, node: Node) -> int:
        return len(self.encoder.encode(problem.prompt, node.steps).ids)

    def extend(self, wants: Sequence[Want], seed: int = 0, sampling: Sampling | None = None) -> list[list[list[Node]]]:
        sampling = sampling or Sampling()
        if sampling.top_k and not (self.dialect.top_k or self.dialect.config):
            raise WorkbenchError(
                f"{self.url}: top-k is not in the OpenAI schema; use top_p, or the server's own dialect"
            )
        with ThreadPoolExecutor(self.in_flight) as pool:
            jobs = [
                [pool.submit(self._chain, want, want.first + k, seed, sampling) for k in range(want.n)]
                for want in wants
            ]
            bad: dict[str, str] = {}
            chains: list[list[list[Node]]] = []
            try:
                for row in jobs:
                    chains.append([])
                    for job in row:
                        try:
                            chains[-1].append(job.result())
                        except ProblemError as error:
                            bad |= error.problems
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if bad:
            raise ProblemError(bad)
        return chains

    # --- one chain ---

    def _chain(self, want: Want, k: int, seed: int, sampling: Sampling) -> list[Node]:
        node, path, chain = want.node, (*want.node.path, k), []
        while not node.finished and (want.to_end or not chain):
            spent = sum(len(self.encoder.step(step)) for step in node.steps)
            close = want.close and not chain
            node = self._step(want.problem, node, path, close, seed, sampling, max(1, sampling.chain_tokens - spent))
            chain.append(node)
            path = (*path, 0)
        return chain

    def _step(self, problem, node, path, close, seed, sampling: Sampling, left: int) -> Node:
        most = min(sampling.step_tokens, left)
        head = CLOSING if close and self.encoder.reasoning else ""
        body = {"model": self.model, "prompt": self._prompt(problem, node, close), "max_tokens": most, "stop": [BREAK]}
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, **dict(self.dialect.body)}
        body |= {"seed": digest("token", seed, problem.id, *path) % 2**31}
        if self.dialect.logprobs:
            body["logprobs"] = 1
        if self.dialect.config:
            body["generation_config"] = json.dumps(self._generation(sampling, most))
        elif sampling.top_k:
            body["top_k"] = sampling.top_k
        answer = self._ask(problem, body)
        text, ids, values = self._read(answer)
        ended = answer["choices"][0].get("finish_reason")
        if ids is not None:
            text = self.encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if ended != "length":
            text = self._whole(text, bool(close))
        text = head + text
        own = self.encoder.closing() if head else []
        ids = self._ids(text) if ids is None else [*own, *ids]
        if len(values) + len(own) != len(ids):
            values = [sum(values), *[0.0] * (len(ids) - len(own) - 1)] if values else []
        values = [*[0.0] * len(own), *values] if values else []
        step, stop = parse_step(text, self.encoder.reasoning)
        if ended == "length" and BREAK not in text:
            stop = "length"
        if stop is None and len(ids) >= left:
            stop = "length"
        return Node(path, (*node.steps, Step(step.text, step.final, tuple(ids), tuple(values))), stop)

    def _prompt(self, problem: Problem, node: Node, close: bool) -> str | list[int]:
        if self.dialect.ids:
            return [*self.encoder.encode(problem.prompt, node.steps).ids, *(self.encoder.closing() if close else ())]
        trace = Trace(node.steps, "cut")
        steps = "".join(render_step(step, self.encoder.reasoning) for step in trace.steps)
        return render_prompt(problem.prompt, self.encoder.reasoning) + steps + (CLOSING if close else "")

    def _generation(self, sampling: Sampling, most: int) -> dict:
        tokenizer = self.encoder.tokenizer
        ends = {"eos_token_id": self.encoder.end_id, "pad_token_id": tokenizer.pad_token_id}
        if not sampling.temperature:
            return {"do_sample": False, "max_new_tokens": most, **ends}
        return {"do_sample": True, "top_k": sampling.top_k, "max_new_tokens": most, **ends}

    def _whole(self, text: str, closing: bool) -> str:
        """The text of a chunk with the end that the server may have cut off: a break, or the tags of an answer."""
        if text.endswith((BREAK, END_ASSISTANT)) or BREAK in text:
            return text
        opened = closing or ASSISTANT in text or not self.encoder.reasoning
        if opened:
            return text + END_ASSISTANT
        if self.dialect.keeps_break:  # the model ended, and special tokens are hidden
            return CLOSING + text + END_ASSISTANT
        return text + BREAK

    def _ids(self, text: str) -> list[int]:
        step, _ = parse_step(text, self.encoder.reasoning)
        if step.final:
            return self.encoder.step(step)
        return self.encoder.text(text) or self.encoder.text(BREAK)

    # --- one request ---

    def _ask(self, problem: Problem, body: dict) -> dict:
        import httpx

        begin, why = time.monotonic(), ""
        for attempt in range(self.retries + 1):
            wait = 0.5 * 2**attempt
            try:
                answer = self.client.post(self.url, json=body)
            except httpx.TransportError as error:  # refused, dropped, timed out
                why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            else:
                if answer.status_code == 200:
                    try:
                        return self._checked(answer.json())
                    except json.JSONDecodeError:
                        why = f"an answer that is no JSON: {answer.text[:80]!r}"
                elif answer.status_code == 429 or answer.status_code >= 500:
                    why = f"status {answer.status_code}: {answer.text[:200]}"
                    wait = self._retry_after(answer) or wait
                elif answer.status_code in (400, 413) and any(
                    word in answer.text.lower() for word in ("context", "too long", "maximum", "exceed")
                ):
                    raise ProblemError({problem.id: f"{self.url} finds its prompt too long: {answer.text[:200]}"})
                else:
                    raise WorkbenchError(
                        f"{self.url} refused a request with status {answer.status_code}: {answer.text[:300]}; "
                        "is the model's name right, and the dialect that of the server?"
                    )
            if attempt < self.retries:
                time.sleep(min(wait, self.timeout))
        raise WorkbenchError(
            f"{self.url} gave no answer to {self.retries + 1} requests in {time.monotonic() - begin:.0f} s, "
            f"the last time {why}; is the server running?"
        )

    @staticmethod
    def _retry_after(answer) -> float | None:
        try:
            return max(0.0, float(answer.headers["Retry-After"]))
        except (KeyError, ValueError):  # none, or a date
            return None

    def _checked(self, answer) -> dict:
        """The answer, if it has the shape of a completion."""
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not (isinstance(choices, list) and len(choices) == 1 and isinstance(choices[0], dict)):
            raise WorkbenchError(f"{self.url} gave no completion but {str(answer)[:120]!r}: is this an OpenAI server?")
        if not isinstance(choices[0].get("text"), str):
            raise WorkbenchError(f"{self.url} gave a completion without a text: {str(choices[0])[:120]!r}")
        return answer

    def _read(self, answer: dict) -> tuple[str, list[int] | None, list[float]]:
        """(text, ids if the server gives them, log-probs)."""
        choice = answer["choices"][0]
        ids, values = choice.get("token_ids"), []
        if self.dialect.logprobs:
            logprobs = choice.get("logprobs") or {}
            values = logprobs.get("token_logprobs") or [
                entry.get("logprob") for entry in logprobs.get("content") or () if isinstance(entry, dict)
            ]
            if not values and choice["text"]:
                raise WorkbenchError(
                    f"{self.url} gives no log-probs, which every step must have: start the server so that it does, or "
                    'use dialect="transformers", which goes without'
                )
            if not all(isinstance(v, int | float) and math.isfinite(v) and v <= 1e-6 for v in values):
                raise WorkbenchError(f"{self.url} gave log-probs that are none: {values[:5]}")
        came = len(ids) if ids is not None else len(values) or None
        said = (answer.get("usage") or {}).get("completion_tokens")
        if came is not None and said is not None and said != came and abs(said - came) > (ids is None):
            self._warn("usage", f"{self.url} says {said} tokens where {came} came: what came is counted")
        return choice["text"], ids, [min(0.0, float(v)) for v in values]

    def _warn(self, kind: str, message: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, stacklevel=2)
