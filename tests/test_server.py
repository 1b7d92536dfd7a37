"""The server policy against a server that behaves, one that does not, and the one that transformers ships."""

import os
import socket
import subprocess
import sys
import time

import httpx
import pytest

from workbench.policies import Sampling, Want
from workbench.policies.server import Server
from workbench.search import drive
from workbench.types import Node, ProblemError, WorkbenchError

SAMPLING = Sampling(1.0, step_tokens=12, chain_tokens=40)


@pytest.fixture
def policy(double, tokenizer):
    double.faults.clear()
    double.log.clear()
    double.most, double.rewrite = 0, lambda answer: answer
    yield Server(double.url, "micro", tokenizer, double.model.config, "vllm", in_flight=3, timeout=1.0, retries=3)
    double.faults.clear()
    double.rewrite = lambda answer: answer


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Back-off is noted down instead of waited for."""
    waits = []
    sleep = time.sleep
    monkeypatch.setattr("workbench.policies.server.time.sleep", lambda s: waits.append(s) or sleep(0.01))
    return waits


def drawn(policy, problems, n=2, **more):
    chains = policy.extend([Want(p.blind(), Node(), n, to_end=True) for p in problems], 3, SAMPLING, **more)
    return [[(node.path, node.steps, node.stop) for node in chain] for row in chains for chain in row]


def drop(handler):
    handler.connection.close()
    return True


def stall(handler):
    time.sleep(1.5)
    return drop(handler)


def status(code, text="busy", **headers):
    return lambda handler: handler.answer(code, {"error": text}, **headers) or True


def garbage(handler):
    return handler.answer(200, b"<html>gateway</html>") or True


def test_a_search_runs_on_a_server(policy, sums):
    """The whole way: driver, server, verifier-free vote, bill."""
    results = drive(sums, "majority", policy, seed=3, sampling=SAMPLING, n=3)
    again = drive(sums, "majority", policy, seed=3, sampling=SAMPLING, n=3)
    assert [r.answer for r in results] == [r.answer for r in again] and any(r.answer for r in results)
    for result in results:
        assert result.cost.sampled == sum(len(node.steps[-1].ids) for node in result.nodes) > 0
        assert result.cost.policy_flops > 0 and result.cost.prompt == policy.prompt_tokens(result.problem, Node())


def test_no_more_requests_in_flight_than_asked_for(policy, double, sums):
    """Bug: a thread a chain, so a thousand chains are a thousand sockets."""
    drawn(policy, sums, n=4)
    assert 1 < double.most <= 3 and len(double.log) > 30


@pytest.mark.parametrize("fault", [drop, stall, status(429), status(500), status(503), garbage])
def test_a_fault_that_passes_changes_nothing(policy, double, sums, fault):
    """Bugs: a dropped request is a lost chain, or an empty one; a retry with another seed."""
    want = drawn(policy, sums[:3])
    double.faults += [fault, None, fault]
    assert drawn(policy, sums[:3]) == want


def test_back_off_grows_and_heeds_the_server(policy, double, sums, no_waiting):
    """Bug: retries at once, which keep a busy server busy."""
    double.faults += [status(429), status(500), status(429, Retry_After=0.25)]
    policy.in_flight = 1
    policy.extend([Want(sums[0].blind(), Node())], 3, SAMPLING)
    assert no_waiting == [0.5, 1.0, 0.25]


@pytest.mark.parametrize("fault", [drop, status(503, "overloaded"), garbage])
def test_a_server_that_stays_away_is_named(policy, double, sums, fault):
    """Bug: an endless wait, or an exception that becomes an empty answer."""
    double.faults += [fault] * 40
    with pytest.raises(WorkbenchError, match=f"{double.url}.*gave no answer to 4 requests"):
        drawn(policy, sums[:1], n=1)


def test_a_server_that_is_not_there_is_named(tokenizer, sums):
    with pytest.raises(WorkbenchError, match="127.0.0.1:9/v1.*ConnectError.*is the server running"):
        Server("http://127.0.0.1:9/v1", "micro", tokenizer, retries=1).extend([Want(sums[0], Node())])


@pytest.mark.parametrize(
    "rewrite, message",
    [
        (lambda a: {"choices": []}, "gave no completion"),
        (lambda a: [1, 2], "gave no completion"),
        (lambda a: {"choices": [{"text": None}]}, "without a text"),
        (lambda a: a["choices"][0].pop("logprobs") and a, "gives no log-probs"),
        (lambda a: a["choices"][0].update(logprobs={"token_logprobs": [float("nan")]}) or a, "log-probs that are none"),
        (lambda a: a["choices"][0].update(logprobs={"token_logprobs": [0.7]}) or a, "log-probs that are none"),
    ],
)
def test_garbage_is_named(policy, double, sums, rewrite, message):
    """Bug: whatever has the status 200 is a completion."""
    double.rewrite = rewrite
    with pytest.raises(WorkbenchError, match=message):
        drawn(policy, sums[:1], n=1)


def test_a_server_that_lies_about_its_tokens(policy, double, sums):
    """Bug: tokens are what `usage` says, so a server decides what a method costs."""
    want = drawn(policy, sums[:2])
    double.rewrite = lambda answer: answer["usage"].update(completion_tokens=1) or answer
    with pytest.warns(UserWarning, match="says 1 tokens where .* came: what came is counted") as caught:
        assert drawn(policy, sums[:2]) == want
    assert len(caught) == 1, "once, not at every request"


def test_a_prompt_too_long_fails_its_problem_alone(policy, double, sums):
    """Bug: one long prompt ends the run of all."""
    long = policy.encoder.prompt(sums[1].prompt)

    def complete(body, inner=double.complete):
        if body["prompt"][: len(long)] == long:
            raise ConnectionAbortedError
        return inner(body)

    def refuse(handler):
        return False

    alone = drive([sums[0]], "sampling", policy, seed=3, sampling=SAMPLING)
    double.faults += [refuse]
    double.rewrite = lambda answer: answer
    double.faults.clear()
    double.faults += [status(400, "This model's maximum context length is 8 tokens")]
    policy.in_flight = 1
    with pytest.raises(ProblemError, match=sums[1].id):
        policy.extend([Want(sums[1].blind(), Node())], 3, SAMPLING)
    double.faults += [status(400, "This model's maximum context length is 8 tokens")]
    with pytest.warns(UserWarning, match="1 of 2 problems"):
        failed, kept = drive([sums[1], sums[0]], "sampling", policy, seed=3, sampling=SAMPLING)
    assert failed.stop == "error" and "too long" in failed.error and kept.answer == alone[0].answer


def test_another_refusal_is_not_a_problem(policy, double, sums):
    """Bug: a wrong model name is tried again for ever, or read as a long prompt."""
    double.faults += [status(404, "no such model")]
    with pytest.raises(WorkbenchError, match="status 404.*no such model.*name right"):
        drawn(policy, sums[:1], n=1)
    assert len(double.log) <= 3


def test_what_a_server_lacks_is_said(double, tokenizer, sums):
    plain = Server(double.url, "micro", tokenizer)
    with pytest.raises(WorkbenchError, match="top-k is not in the OpenAI schema"):
        plain.extend([Want(sums[0], Node())], 0, Sampling(top_k=5))
    with pytest.raises(WorkbenchError, match=r"Server\(config="):
        plain.flops(0, 5)
    with pytest.raises(WorkbenchError, match="unknown dialect 'gpt'"):
        Server(double.url, "micro", tokenizer, dialect="gpt")


def strings(answer):
    """As servers do that know no ids: text without the stop string, tokens as strings."""
    choice = answer["choices"][0]
    choice.pop("token_ids")
    choice["text"] = choice["text"].split("\n")[0]
    return answer


def test_text_servers_come_to_the_same_chains(policy, double, tokenizer, encoder, sums):
    """Bugs: a stop string that was cut off makes every step an answer, or every answer a step."""
    want = drawn(policy, sums)

    class Text(Server):
        def _prompt(self, problem, node, close):
            text = super()._prompt(problem, node, close)
            assert isinstance(text, str)
            ids = policy._prompt(problem, node, close)
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids, "text and ids say the same"
            return ids

    double.rewrite = strings
    text = Text(double.url, "micro", tokenizer, dialect="openai", in_flight=3)
    pairs = [(a, b) for a, b in zip(want, drawn(text, sums), strict=True) if a[-1][2] == "answer"]
    assert len(pairs) > 5
    for a, b in pairs:
        if "\ufffd" not in "".join(step.text for step in a[-1][1]):  # half a character is no text
            assert a == b


# --- the server that transformers ships ---


@pytest.fixture(scope="module")
def real(micro, tokenizer, tmp_path_factory):
    for package in ("fastapi", "openai", "uvicorn"):
        pytest.importorskip(package, reason="`transformers serve` needs the extra `server`")
    folder = tmp_path_factory.mktemp("served")
    micro.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    log = open(folder / "log", "w")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
    try:
        for _ in range(300):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                assert process.poll() is None, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        else:
            raise AssertionError((folder / "log").read_text()[-2000:])
        yield f"http://127.0.0.1:{port}/v1", str(folder)
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.mark.slow
def test_transformers_serve(real, micro, tokenizer, sums, policy):
    """The real server: greedy chains are those of the model itself, sampled ones end as chains do."""
    from workbench.policies.local import LocalPolicy

    url, name = real
    served = Server(url, name, tokenizer, name, "transformers", in_flight=1, timeout=60)
    wants = [Want(p.blind(), Node(), 1, to_end=True) for p in sums[:4]]
    greedy = Sampling(0.0, 12, 40)
    mine = LocalPolicy(micro, tokenizer).extend(wants, 0, greedy)
    for [a], [b] in zip(mine, served.extend(wants, 0, greedy), strict=True):
        if a[-1].stop == "answer":
            assert [(s.text, s.final, s.ids) for s in a[-1].steps] == [(s.text, s.final, s.ids) for s in b[-1].steps]
            assert b[-1].stop == "answer" and not b[-1].steps[0].logprobs
    many = [Want(p.blind(), Node(), 3, to_end=True) for p in sums[:4]]
    first, second = (served.extend(many, 1, SAMPLING) for _ in range(2))
    assert first == second, "one request at a time: the seed is the chain"
    assert {chain[-1].stop for row in first for chain in row} & {"answer"}
