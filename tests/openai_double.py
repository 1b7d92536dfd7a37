"""A completions server on loopback that answers from a tiny model, or misbehaves as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

from workbench.policies import Sampling
from workbench.policies.local import log_probabilities


class Double:
    """`faults` are functions of the handler, one a request, that return True when they have answered (or not).

    `rewrite` changes a good answer before it is sent. `log` keeps the bodies that came. `raw`: it tells the model's
    own log-probs, whatever sampled.
    """

    def __init__(self, model, encoder):
        self.model, self.encoder, self.lock = model, encoder, threading.Lock()
        self.faults: list[Callable] = []
        self.rewrite: Callable[[dict], object] = lambda answer: answer
        self.log: list[dict] = []
        self.open, self.most, self.raw = 0, 0, False
        self.memo: dict[tuple, dict] = {}
        double = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with double.lock:
                    double.log.append(body)
                    double.open += 1
                    double.most = max(double.most, double.open)
                    fault = double.faults.pop(0) if double.faults else None
                try:
                    if fault is None or not fault(self):
                        self.answer(200, double.rewrite(double.complete(body)))
                finally:
                    with double.lock:
                        double.open -= 1

            def answer(self, status, body, **headers):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": len(data), **headers}.items():
                    self.send_header(name.replace("_", "-"), str(value))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def complete(self, body: dict) -> dict:
        """As vLLM does: token ids in and out, the stop string kept, special tokens as text."""
        use = Sampling(body["temperature"], top_p=body["top_p"], top_k=body.get("top_k", 0))
        key = (*body["prompt"], body["seed"] if use.temperature else 0, body["max_tokens"], use, self.raw)
        with self.lock:
            if key not in self.memo:
                self.memo[key] = self._complete(body, use)
            return json.loads(json.dumps(self.memo[key]))

    @torch.inference_mode()
    def _complete(self, body: dict, use: Sampling) -> dict:
        ids, new, values, ended = list(body["prompt"]), [], [], "length"
        lots = np.random.default_rng(body["seed"])
        ends = self.encoder.ends_step()
        while len(new) < body["max_tokens"]:
            logits = self.model(torch.tensor([ids])).logits[:, -1]
            logprobs = log_probabilities(logits, use)[0]
            u = lots.random()
            token = int(torch.searchsorted(logprobs.exp().cumsum(0), u)) if use.temperature else int(logprobs.argmax())
            token = min(token, len(logprobs) - 1)
            ids.append(token)
            new.append(token)
            told = log_probabilities(logits, Sampling())[0] if self.raw else logprobs
            values.append(min(0.0, float(told[token])))
            if ends[token]:
                ended = "stop"
                break
        text = self.encoder.tokenizer.decode(new, skip_special_tokens=False)
        choice = {"index": 0, "text": text, "finish_reason": ended, "token_ids": new}
        choice["logprobs"] = {"tokens": [self.encoder.tokenizer.decode([t]) for t in new], "token_logprobs": values}
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(new)}
        return {"object": "text_completion", "choices": [choice], "usage": usage}
