"""The server policy: any OpenAI-compatible completions server, one request a step, many in flight."""

from __future__ import annotations

import json
import math
import re
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from ..format import ASSISTANT, BREAK, CLOSING, END_ASSISTANT, Encoder, parse_step, render_prompt, render_step
from ..models import Price
from ..tasks import digest
from ..types import Node, Problem, ProblemError, Step, WorkbenchError
from . import Sampling, Want

_TOO_LONG = re.compile(
    r"context.{0,12}(length|size|window)|prompt.{0,40}too long|longer than the maximum|must have less than \d+ tokens", re.I
)


@dataclass(frozen=True)
class Dialect:
    """What a kind of server does beyond (or short of) the OpenAI schema.

    `body`: fields of each request. `ids`: takes prompts of token ids. `top_k`: takes one. `logprobs`: gives them;
    `filtered`: gives them under the distribution that samples, if asked. `hides`: keeps the stop string in the text but
    hides special tokens, so that a text without a break was ended by the model. `config`: draws by a transformers
    generation config instead of by the schema's fields.
    """

    body: Mapping[str, object] = field(default_factory=dict)
    ids: bool = False
    top_k: bool = False
    logprobs: bool = True
    filtered: bool = False
    hides: bool = False
    config: bool = False


_NO_DEFAULTS = {"min_p": 0.0, "repetition_penalty": 1.0}  # else the checkpoint's generation config fills them in
_VLLM = {"skip_special_tokens": False, "include_stop_str_in_output": True, "return_token_ids": True, **_NO_DEFAULTS}
_LLAMA = {"cache_prompt": True, "samplers": ["temperature", "top_k", "top_p"]}  # else min-p and others, in another order
DIALECTS = {
    "openai": Dialect(),
    "vllm": Dialect(_VLLM, ids=True, top_k=True),
    "llama.cpp": Dialect(_LLAMA, ids=True, top_k=True, filtered=True),
    "transformers": Dialect(logprobs=False, hides=True, config=True),
}


class Server:
    """A model behind an OpenAI-compatible `/v1/completions`: `vllm serve`, llama.cpp's server, `transformers serve`.

    `url` ends in /v1; `tokenizer` is the served model's; `config` (a transformers config or a checkpoint folder) prices
    tokens and bounds the context; `dialect` is one of DIALECTS. A step is a request whose seed is made from (seed,
    problem, node): the same seed gives the same tree as far as the server honours seeds. `transformers serve` seeds all
    requests in flight at once, so ask it for one at a time (`in_flight=1`).

    At most `in_flight` requests are open, each for at most `timeout` seconds. A refused, dropped, slow, 408, 429 or 5xx
    answer is asked for again up to `retries` times, after 0.5 s, 1 s, 2 s, … or what Retry-After says. Errors: what the
    server lacks, an answer that is none, a server that stays away, each with its address; a prompt that is too long is
    a ProblemError. A token count in `usage` that is not what came is warned about once; what came is what counts.

    Log-probs are those of the distribution that samples. vLLM gives them with `--logprobs-mode processed_logprobs`;
    before the first draw that is not plain, 8 tokens are asked for, unbilled, to see. `logprobs=False` goes without.
    A step has log-probs for all its tokens or none: llama.cpp (start it with --special) leaves out that of the break.
    Ids come from the server, or from its token strings, or the text is tokenised anew. Where tags are hidden
    (`transformers serve`, which has no log-probs either), the token count tells an answer from a malformed end; a tag
    amid a line is not seen. Left out: chat, streaming; a plain "openai" server cannot say that a break ended an answer.

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
        logprobs: bool = True,
    ):
        import httpx

        if dialect not in DIALECTS:
            raise WorkbenchError(f"unknown dialect {dialect!r}: one of {', '.join(DIALECTS)}")
        if not url.startswith(("http://", "https://")):
            raise WorkbenchError(f"{url!r} is no address of a server: it begins with http:// and ends in /v1")
        if in_flight < 1 or retries < 0 or not timeout > 0:
            raise WorkbenchError(f"in_flight={in_flight}, retries={retries}, timeout={timeout}: at least 1, 0, above 0")
        self.url, self.model, self.dialect = url.rstrip("/") + "/completions", model, DIALECTS[dialect]
        self.encoder, self.logprobs = Encoder(tokenizer, reasoning), logprobs and self.dialect.logprobs
        self.in_flight, self.retries, self.timeout = in_flight, retries, timeout
        if isinstance(config, str | Path):
            from transformers import AutoConfig

            config = AutoConfig.from_pretrained(config)
        self.price = None if config is None else Price(config)
        self.limit = getattr(config, "max_position_embeddings", None)
        headers, limits = {"Authorization": f"Bearer {key}"} if key else {}, httpx.Limits(max_connections=in_flight)
        times = httpx.Timeout(timeout, pool=None)
        self.client = httpx.Client(timeout=times, headers=headers, limits=limits, trust_env=False)
        self._filtered = self.dialect.filtered or not self.logprobs
        self._warned: set[str] = set()

    def flops(self, prefix: float, new: float, head: bool = True) -> float:
        if self.price is None:
            raise WorkbenchError(f"what a token of {self.model} costs is unknown: Server(config=…) takes its config")
        return self.price(prefix, new, head)

    def prompt_tokens(self, problem: Problem, node: Node) -> int:
        return len(self.encoder.encode(problem.prompt, node.steps).ids)

    def extend(self, wants: Sequence[Want], seed: int = 0, sampling: Sampling | None = None) -> list[list[list[Node]]]:
        sampling, halt = sampling or Sampling(), threading.Event()
        if sampling.top_k and not (self.dialect.top_k or self.dialect.config):
            raise WorkbenchError(f"{self.url}: top-k is not in the OpenAI schema; use top_p, or the server's dialect")
        bad = self._too_long(wants, sampling)
        if bad:
            raise ProblemError(bad)
        plain = sampling.temperature in (0, 1) and (not sampling.temperature or (sampling.top_p, sampling.top_k) == (1, 0))
        if wants and not plain and not self._filtered:
            self._probe(wants[0], halt)
        with ThreadPoolExecutor(self.in_flight) as pool:
            jobs = [
                [pool.submit(self._chain, want, want.first + k, seed, sampling, halt, bad) for k in range(want.n)]
                for want in wants
            ]
            try:
                done, _ = wait([job for row in jobs for job in row], return_when=FIRST_EXCEPTION)
                if errors := [error for job in done if (error := job.exception()) is not None]:
                    raise errors[0]
            except BaseException:  # an interrupt too: no more requests, no more retries
                halt.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if bad:
            raise ProblemError(bad)
        return [[job.result() for job in row] for row in jobs]

    def _too_long(self, wants: Sequence[Want], sampling: Sampling) -> dict[str, str]:
        bad: dict[str, str] = {}
        for want in wants if self.limit else ():
            prefix = len(self._ids(want.problem, want.node, want.close))
            left = sampling.chain_tokens - self._spent(want.node)
            room = max(1, left if want.to_end else min(left, sampling.step_tokens))
            if prefix + room > self.limit:
                bad[want.problem.id] = f"{prefix} tokens leave no room for {room} more in a context of {self.limit}"
        return bad

    # --- one chain ---

    def _chain(self, want: Want, k: int, seed: int, sampling: Sampling, halt, bad: dict[str, str]) -> list[Node]:
        node, path, chain = want.node, (*want.node.path, k), []
        try:
            while not node.finished and (not chain or (want.to_end and not bad)):  # bad: all will be asked for again
                node = self._step(want.problem, node, path, want.close and not chain, seed, sampling, halt)
                chain.append(node)
                path = (*path, 0)
        except ProblemError as error:
            bad.update(error.problems)
        return chain

    def _spent(self, node: Node) -> int:
        return sum(len(self.encoder.step(step)) for step in node.steps)

    def _ids(self, problem: Problem, node: Node, close: bool) -> list[int]:
        return [*self.encoder.encode(problem.prompt, node.steps).ids, *(self.encoder.closing() if close else ())]

    def _prompt(self, problem: Problem, node: Node, close: bool) -> str | list[int]:
        if self.dialect.ids:
            return self._ids(problem, node, close)
        steps = "".join(render_step(step, self.encoder.reasoning) for step in node.steps)
        return render_prompt(problem.prompt, self.encoder.reasoning) + steps + self._head(close)

    def _head(self, close: bool) -> str:
        return CLOSING if close and self.encoder.reasoning else ""

    def _body(self, prompt, most: int, seed: int, sampling: Sampling) -> dict:
        body = {"model": self.model, "prompt": prompt, "max_tokens": most, "stop": [BREAK], "seed": seed}
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, **self.dialect.body}
        if self.logprobs:
            body["logprobs"] = 1
        if self.dialect.top_k:
            body |= {"top_k": sampling.top_k, "stop_token_ids": [self.encoder.end_id]}  # 0 too: servers have defaults
        if self.dialect.filtered:
            body["post_sampling_probs"] = sampling.temperature > 0
        if self.dialect.config:
            ends = {"eos_token_id": self.encoder.end_id, "pad_token_id": self.encoder.tokenizer.pad_token_id}
            drawn = {"do_sample": True, "top_k": sampling.top_k} if sampling.temperature else {"do_sample": False}
            body["generation_config"] = json.dumps({**drawn, "max_new_tokens": most, **ends})
        return body

    def _step(self, problem, node: Node, path, close: bool, seed: int, sampling: Sampling, halt) -> Node:
        own = self.encoder.closing() if close else []
        left = sampling.chain_tokens - self._spent(node)
        most = max(1, min(sampling.step_tokens, left) - len(own))
        seed = digest("token", seed, problem.id, *path) % 2**31
        answer = self._ask(problem, self._body(self._prompt(problem, node, close), most, seed, sampling), halt)
        choice, (said_prompt, said) = answer["choices"][0], self._usage(answer)
        ids, values = self._tokens(choice, most)
        if ids is None:
            chunk = self._head(close) + self._chunk(choice, said, close)
            ids = self._tokenised(chunk) or self.encoder.text(BREAK)
            over = BREAK in chunk or chunk.endswith(END_ASSISTANT)
        else:
            ids, ends = [*own, *ids], self.encoder.ends_step()
            chunk = self.encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            over = ids[-1] < len(ends) and ends[ids[-1]]
        came = len(ids) - len(own)
        if said not in (None, came):
            self._warn(f"says {said} tokens where {came} came: what came is counted")
        if said_prompt not in (None, read := len(self._ids(problem, node, close))):
            self._warn(f"read {said_prompt} tokens of prompt where {read} were meant: has it another tokenizer, a BOS?")
        if self.logprobs and len(values) != came:
            self._warn(f"gave {len(values)} log-probs for a step of {came} tokens: such steps have none")
            values = []
        step, stop = parse_step(chunk, self.encoder.reasoning)
        if not over:
            stop = "length" if choice["finish_reason"] == "length" else "cut"
        elif stop is None and len(ids) >= left:
            stop = "length"
        step = Step(step.text, step.final, tuple(ids), (*[0.0] * len(own), *values) if values else ())
        return Node(path, (*node.steps, step), stop)

    # --- one answer ---

    def _tokenised(self, text: str) -> list[int]:
        return self.encoder.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _chunk(self, choice: dict, said, close: bool) -> str:
        """The text of a chunk with the end that the server has cut off: a break, or the tags of an answer."""
        text, limit = choice["text"], choice["finish_reason"] == "length"
        if BREAK in text or text.endswith(END_ASSISTANT):
            return text
        opened = close or ASSISTANT in text or not self.encoder.reasoning
        if not self.dialect.hides:
            told = choice.get("stop_reason", choice.get("matched_stop"))
            return text if limit else text + (END_ASSISTANT if opened and told != BREAK else BREAK)
        hidden = said - len(self._tokenised(text)) if isinstance(said, int) else None
        tags = 1 if opened else 3
        if limit and hidden != tags:
            return text
        return (CLOSING if not opened and (hidden is None or hidden >= tags) else "") + text + END_ASSISTANT

    def _tokens(self, choice: dict, most: int) -> tuple[list[int] | None, list[float]]:
        """(ids, None if they cannot be told; log-probs)."""
        try:
            table, ids, values = choice.get("logprobs") or {}, choice.get("token_ids"), []
            names = table.get("tokens") or []
            if self.logprobs:
                entries = table.get("content") or []
                values = table.get("token_logprobs") or [e["logprob"] if "logprob" in e else _log(e["prob"]) for e in entries]
                names = names or [e.get("id", e.get("token")) for e in entries]
                if not values and choice["text"]:
                    raise WorkbenchError(
                        f"{self.url} gives no log-probs, which every step must have: start the server so that it does, "
                        "or go without, Server(logprobs=False)"
                    )
                if not all(math.isfinite(v) and v <= 1e-4 for v in values):
                    raise ValueError(f"log-probs that are none: {values[:5]}")
            if ids is None:
                ids = self._named(names, choice)
            if ids is not None and not (0 < len(ids) <= most and all(0 <= i < 2**31 and i == int(i) for i in ids)):
                raise ValueError(f"{len(ids)} tokens where 1 to {most} were asked for: {str(ids[:5])}")
            return ids, [min(0.0, float(v)) for v in values]
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise WorkbenchError(f"{self.url} gave a completion that is none: {error}; {str(choice)[:120]}") from error

    def _named(self, names: Sequence, choice: dict) -> list[int] | None:
        """Ids of tokens given by id or as strings, with the break that the server has cut off; None where unsure."""
        ids: list[int] = []
        for name in names:
            known = [name] if isinstance(name, int) else [self.encoder.tag_ids[name]] if name in self.encoder.tag_ids else None
            known = known or self.encoder.text(name)
            if len(known) != 1:
                return None
            ids += known
        if not ids:
            return None
        text = self.encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = self._chunk({**choice, "text": text}, None, False) if len(text) <= len(choice["text"]) else text
        return ids
