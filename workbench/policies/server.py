"""The server policy: any OpenAI-compatible completions server, one request a step, many in flight."""

from __future__ import annotations

import json
import math
import re
import threading
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path

from ..format import ASSISTANT, BREAK, CLOSING, END_ASSISTANT, USER, Encoder, parse_step, render_prompt, render_step
from ..models import Price
from ..tasks import digest
from ..types import Node, Problem, ProblemError, Step, WorkbenchError
from . import Sampling, Want

_TOO_LONG = re.compile(r"context.{0,12}(length|size|window)|prompt.{0,40}too long|longer than the maximum", re.I)


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
_LLAMA = {"cache_prompt": True, "samplers": ["temperature", "top_k", "top_p"]}  # and no min-p, in this order
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
    server lacks, an answer that is none, a server that stays away, each with its address, told at once (a request that
    is open then ends by itself, unheard, and a program not before it); a prompt that is too long is a ProblemError. A
    token count in `usage` that is not what came is warned about once; what came is what counts.

    Log-probs are those of the distribution that samples. vLLM gives them with `--logprobs-mode processed_logprobs`;
    before the first draw that is not plain, 8 tokens are asked for, unbilled, to see. `logprobs=False` goes without.
    A step has log-probs for all its tokens or none: llama.cpp (start it with --special) leaves out that of the break.
    Ids come from the server, or from its token strings, or the text is tokenised anew. Where tags are hidden (always by
    `transformers serve`, which has no log-probs either), `usage` tells by the number of tokens whether a line was an
    answer, and a tag amid a line is not seen. Left out: chat, streaming; an "openai" server that tells neither tokens
    nor its stop_reason hides that a break, not the end, cut an answer.

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
        weakref.finalize(self, self.client.close)
        self._filtered = self.dialect.filtered or not self.logprobs
        self._warned: dict[str, str] = {}

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
        if bad := self._too_long(wants, sampling):
            raise ProblemError(bad)
        plain = not sampling.temperature or (sampling.temperature, sampling.top_p, sampling.top_k) == (1, 1, 0)
        if wants and not plain and not self._filtered:
            self._probe(wants[0].problem, halt)
        pool, more = ThreadPoolExecutor(self.in_flight), (seed, sampling, halt, bad)
        try:
            jobs = [[pool.submit(self._chain, w, w.first + k, *more) for k in range(w.n)] for w in wants]
            done, _ = wait([job for row in jobs for job in row], return_when=FIRST_EXCEPTION)
            if errors := [error for job in done if (error := job.exception()) is not None]:
                raise errors[0]
        except BaseException:  # an interrupt too: no more requests, no more retries, and open ones are not waited for
            halt.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()
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
            # bad: all will be asked for again; halt: nobody waits for it
            while not (node.finished or halt.is_set()) and (not chain or (want.to_end and not bad)):
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
        body = self._body(self._prompt(problem, node, close), most, seed, sampling)
        choice, ids, values, said = self._checked(self._ask(problem, body, halt), most, close)
        if ids is None:
            chunk = self._head(close) + self._chunk(choice, said["completion_tokens"], close)
            ids = self.encoder.tagged(chunk) or self.encoder.text(BREAK)
            over = BREAK in chunk or chunk.endswith(END_ASSISTANT)
        else:
            ids = [*own, *ids]
            chunk, over = self._decoded(ids), self._ends(ids[-1])
        came = {"prompt_tokens": len(self._ids(problem, node, close)), "completion_tokens": len(ids) - len(own)}
        for name, count in came.items():
            if said[name] not in (None, count):
                self._warn(name, f"says {said[name]} {name} where {count} came: what came is counted")
        if self.logprobs and len(values) != came["completion_tokens"]:
            self._warn(
                "logprobs", f"gave {len(values)} log-probs for {len(ids) - len(own)} tokens: such steps have none"
            )
            values = []
        step, stop = parse_step(chunk, self.encoder.reasoning)
        if not over:
            stop = "length" if choice["finish_reason"] == "length" else "cut"
        elif stop is None and len(ids) >= left:
            stop = "length"
        step = Step(step.text, step.final, tuple(ids), (*[0.0] * len(own), *values) if values else ())
        return Node(path, (*node.steps, step), stop)

    # --- one answer ---

    def _decoded(self, ids: Sequence[int]) -> str:
        return self.encoder.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _ends(self, token: int) -> bool:
        ends = self.encoder.ends_step()
        return token < len(ends) and ends[token]

    def _chunk(self, choice: dict, said, close: bool) -> str:
        """The text of a chunk with the end that the server has cut off: a break, or the tags of an answer."""
        text, full = choice["text"], choice["finish_reason"] == "length"
        if BREAK in text or text.endswith(END_ASSISTANT):
            return text
        opened = close or ASSISTANT in text or not self.encoder.reasoning
        hidden, tags = said - len(self.encoder.tagged(text)) if isinstance(said, int) else None, 1 if opened else 3
        whole = (text if opened else CLOSING + text) + END_ASSISTANT
        if full:
            return whole if self.dialect.hides and hidden == tags else text
        if self.dialect.hides:
            return whole if hidden is None or hidden >= tags else text + END_ASSISTANT
        told = choice.get("stop_reason", choice.get("matched_stop", BREAK if self.dialect.ids else None))
        return whole if told != BREAK and (opened or (hidden or 0) >= tags) else text + BREAK

    def _tokens(self, choice: dict, most: int, close: bool) -> tuple[list[int] | None, list[float]]:
        """(ids, None if they cannot be told; log-probs)."""
        table, ids, values = choice.get("logprobs") or {}, choice.get("token_ids"), []
        entries = table.get("content") or []
        if self.logprobs:
            values = table.get("token_logprobs")
            values = values or [e["logprob"] if "logprob" in e else math.log(e["prob"]) for e in entries]
            if not values and choice["text"]:
                raise WorkbenchError(
                    f"{self.url} gives no log-probs: start it with them, or use Server(logprobs=False)"
                )
            if not all(math.isfinite(v) and v <= 1e-4 for v in values):
                raise ValueError(f"log-probs that are none, {values[:5]}")
        if ids is None:
            ids = self._named(table.get("tokens") or [e.get("id", e.get("token")) for e in entries], choice, close)
        if ids is not None and not (0 < len(ids) <= most and all(isinstance(i, int) and 0 <= i < 2**31 for i in ids)):
            raise ValueError(f"{len(ids)} tokens where 1 to {most} were asked for, {str(ids[:5])}")
        if any(self._ends(i) for i in (ids or ())[:-1]):
            raise ValueError(f"it wrote on behind the end of a step, {self._decoded(ids)!r}")
        return ids, [min(0.0, float(v)) for v in values]

    def _named(self, names: Sequence, choice: dict, close: bool) -> list[int] | None:
        """Ids of tokens given by id or as strings, with the break that the server has cut off; None where unsure."""
        ids: list[int] = []
        for name in names:
            tag = name if isinstance(name, int) else self.encoder.tag_ids.get(name)
            known = self.encoder.text(name) if tag is None else [tag]
            if len(known) != 1:
                return None
            ids += known
        text, written = choice["text"], self._decoded(ids)
        if not ids or not (isinstance(names[0], int) or text.startswith(written) or written.startswith(text)):
            return None
        if self._ends(ids[-1]) or choice["finish_reason"] == "length":
            return ids
        rest = text[len(written) :] if text.startswith(written) else ""
        whole = self._chunk({**choice, "text": written + rest}, None, close)
        return ids + self.encoder.tagged(whole[len(written) :])

    def _checked(self, answer, most: int, close: bool) -> tuple[dict, list[int] | None, list[float], dict]:
        """(choice, ids or None, log-probs, usage) of an answer that has the shape of a completion."""
        try:
            [choice] = answer["choices"]
            if not isinstance(choice["text"], str) or choice["finish_reason"] not in ("stop", "length"):
                raise ValueError("it has no text, or ended for another reason than stop and length")
            usage = answer.get("usage") or {}
            counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
            return choice, *self._tokens(choice, most, close), counts
        except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
            raise WorkbenchError(
                f"{self.url} gave no completion but {str(answer)[:200]!r} ({type(error).__name__}: {error}): is it an "
                "OpenAI server, and of this dialect?"
            ) from error

    # --- one request ---

    def _probe(self, problem: Problem, halt: threading.Event) -> None:
        """Are log-probs those after the filters? If these leave one token, it has exactly 0, even in a guess."""
        prompt = [self.encoder.tag_ids[USER]] if self.dialect.ids else USER
        body = self._body(prompt, 8, 0, Sampling(top_p=1e-6))
        _, _, values, _ = self._checked(self._ask(problem, body, halt), 8, False)
        if any(value < -1e-5 for value in values):
            raise WorkbenchError(
                f"{self.url} gives log-probs of the model, not of the distribution that samples: start vLLM with "
                "--logprobs-mode processed_logprobs, or draw at temperature 1 unfiltered, or use Server(logprobs=False)"
            )
        self._filtered = True

    def _ask(self, problem: Problem, body: dict, halt: threading.Event):
        import httpx

        begin = time.monotonic()
        for attempt in range(self.retries + 1):
            pause, wanted = min(0.5 * 2**attempt, self.timeout), None
            try:
                status, headers, data = self._post(body)
            except httpx.RequestError as error:  # refused, dropped, timed out, undecodable
                why = f"{type(error).__name__}: {error}"
            else:
                text = data[:300].decode(errors="replace")
                if status == 200:
                    try:
                        return json.loads(data)
                    except (ValueError, RecursionError):
                        why = f"an answer that is no JSON: {text[:80]!r}"
                elif status in (408, 429) or status >= 500:
                    why, wanted = f"status {status}: {text}", _retry_after(headers.get("Retry-After", ""))
                elif status in (400, 413, 422) and _TOO_LONG.search(text):
                    raise ProblemError({problem.id: f"{self.url} finds its prompt too long: {text}"})
                else:
                    raise WorkbenchError(
                        f"{self.url} refused a request with status {status}: {text}; are the address (…/v1), model, "
                        "key and dialect right?"
                    )
            if wanted is not None and wanted > self.timeout:
                why += f" (it asks to wait {wanted:.0f} s, longer than timeout={self.timeout})"
                break
            if attempt == self.retries or self._wait(halt, pause if wanted is None else wanted):
                break
        raise WorkbenchError(
            f"{self.url} gave no answer to {attempt + 1} requests in {time.monotonic() - begin:.0f} s, "
            f"the last time {why}; is the server running?"
        )

    def _post(self, body: dict) -> tuple[int, Mapping[str, str], bytes]:
        import httpx

        begin, parts = time.monotonic(), []
        with self.client.stream("POST", self.url, json=body) as answer:
            for part in answer.iter_bytes():
                parts.append(part)
                if time.monotonic() - begin > self.timeout:
                    raise httpx.ReadTimeout(f"still sending after {self.timeout} s")
            return answer.status_code, answer.headers, b"".join(parts)

    @staticmethod
    def _wait(halt: threading.Event, seconds: float) -> bool:
        """Wait; True if there is no more to wait for, another request having failed."""
        return halt.wait(seconds)

    def _warn(self, kind: str, message: str) -> None:
        if self._warned.setdefault(kind, message) is message:  # one step, so threads do not warn twice
            warnings.warn(f"{self.url} {message}", stacklevel=2)


def _retry_after(value: str) -> float | None:
    """Seconds to wait: the header has a number or a date; None if it has neither."""
    try:
        number = re.fullmatch(r"[\d.]+", value)
        return max(0.0, float(value) if number else parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
