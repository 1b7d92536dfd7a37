"""The server policy against a server that behaves, one that does not, and the one that transformers ships."""

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from email.utils import formatdate

import httpx
import pytest
import torch

from workbench.format import tokenised
from workbench.policies import Sampling, Want
from workbench.policies.local import log_probabilities
from workbench.policies.server import Server
from workbench.search import drive
from workbench.types import Node, ProblemError, Step, WorkbenchError

SAMPLING = Sampling(1.0, step_tokens=12, chain_tokens=40)


@pytest.fixture
def policy(double, tokenizer):
    double.faults.clear()
    double.log.clear()
    double.most, double.raw, double.rewrite = 0, False, lambda answer: answer
    yield Server(double.url, "micro", tokenizer, double.model.config, "vllm", in_flight=3, timeout=1.0, retries=3)
    double.faults.clear()
    double.raw, double.rewrite = False, lambda answer: answer


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Back-off is noted down instead of waited for."""
    waits = []
    monkeypatch.setattr(Server, "_wait", staticmethod(lambda halt, s: waits.append(s) or halt.wait(0.01)))
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


def drip(handler):
    """A byte now and then: no single read is slow."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    try:
        for _ in range(12):
            handler.wfile.write(b" ")
            time.sleep(0.2)
    except OSError:
        pass  # the client has gone, as it should
    return drop(handler)


def latin(handler):
    return handler.answer(200, b'{"choices": "\xe9\xff"}') or True


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
    double.faults += [lambda handler: time.sleep(0.1)] * 8  # long enough for a busy machine to send the next
    drawn(policy, sums, n=4)
    assert 1 < double.most <= 3 and len(double.log) > 30


@pytest.mark.parametrize("fault", [drop, stall, drip, status(429), status(500), status(503), garbage, latin])
def test_a_fault_that_passes_changes_nothing(policy, double, sums, fault):
    """Bugs: a dropped request is a lost chain, or an empty one; a retry with another seed."""
    want = drawn(policy, sums[:3])
    double.faults += [fault, None, fault]
    assert drawn(policy, sums[:3]) == want


def test_an_answer_that_trickles_is_slow(policy, double, sums):
    """Bug: a time-out for each read, so a byte now and then keeps a request open for ever."""
    policy.retries = 0
    double.faults += [drip]
    with pytest.raises(WorkbenchError, match="ReadTimeout: still sending after 1.0 s"):
        policy.extend([Want(sums[0].blind(), Node())], 3, SAMPLING)


def test_back_off_grows_and_heeds_the_server(policy, double, sums, no_waiting):
    """Bugs: retries at once, which keep a busy server busy; a Retry-After of 0, or a date, that is not read."""
    soon = formatdate(time.time() + 0.9, usegmt=True)
    double.faults += [status(429), status(500), status(429, Retry_After=0.25)]
    policy.extend([Want(sums[0].blind(), Node())], 3, SAMPLING)
    assert no_waiting == [0.5, 1.0, 0.25]
    double.faults += [status(503, Retry_After=0), status(429, Retry_After=soon), status(500, Retry_After="soon")]
    policy.extend([Want(sums[0].blind(), Node())], 3, SAMPLING)
    assert no_waiting[3] == 0 and 0 <= no_waiting[4] <= 1 and no_waiting[5] == 1.0


def test_a_wait_that_is_too_long_is_said(policy, double, sums, no_waiting):
    """Bugs: a run that sleeps for an hour without a word; a wait that is cut short, so the server stays busy."""
    double.faults += [status(429, Retry_After=3600)]
    with pytest.raises(WorkbenchError, match="1 requests in .*asks to wait 3600 s, longer than timeout"):
        policy.extend([Want(sums[0].blind(), Node())], 3, SAMPLING)
    assert not no_waiting


def test_one_failure_ends_the_retries_of_the_others(policy, double, sums, monkeypatch):
    """Bug: an error that is known is told only when every other request has tried for minutes."""
    monkeypatch.setattr(Server, "_wait", staticmethod(lambda halt, s: halt.wait(20)))
    double.faults += [status(503), status(503), status(404, "no such model")] + [status(503)] * 20
    begin = time.monotonic()
    with pytest.raises(WorkbenchError, match="status 404.*no such model"):
        drawn(policy, sums)
    assert time.monotonic() - begin < 10 and len(double.log) <= 6


def late(handler):
    time.sleep(4)


@pytest.mark.parametrize("trouble", [WorkbenchError, KeyboardInterrupt])
def test_trouble_is_told_at_once(policy, double, sums, trouble):
    """Bug: an error, or Ctrl-C, was told only when every open chain had come to its end."""
    policy.client.timeout = 20
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    interrupt = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    if trouble is KeyboardInterrupt:
        double.faults += [late] * 3
        interrupt.start()
    else:
        double.faults += [late, status(401, "bad key"), late]
    begin = time.monotonic()
    try:
        with pytest.raises(trouble, match="status 401.*bad key" if trouble is WorkbenchError else None):
            drawn(policy, sums)
        assert time.monotonic() - begin < 3
    finally:
        interrupt.cancel()
        signal.signal(signal.SIGINT, before)
    while double.open and time.monotonic() - begin < 10:
        time.sleep(0.1)
    time.sleep(0.3)
    assert len(double.log) <= 5, "the open chains ask no further"


@pytest.mark.parametrize("fault", [drop, status(503, "overloaded"), garbage])
def test_a_server_that_stays_away_is_named(policy, double, sums, fault):
    """Bug: an endless wait, or an exception that becomes an empty answer."""
    double.faults += [fault] * 40
    with pytest.raises(WorkbenchError, match=f"{double.url}.*gave no answer to 4 requests"):
        drawn(policy, sums[:1], n=1)


def test_a_server_that_is_not_there_is_named(tokenizer, sums):
    with pytest.raises(WorkbenchError, match="127.0.0.1:9/v1.*ConnectError.*is the server running"):
        Server("http://127.0.0.1:9/v1", "micro", tokenizer, retries=1).extend([Want(sums[0], Node())])


def edited(**fields):
    return lambda answer: answer["choices"][0].update(fields) or answer


@pytest.mark.parametrize(
    "rewrite, message",
    [
        (lambda a: {"choices": []}, "gave no completion"),
        (lambda a: [1, 2], "gave no completion"),
        (lambda a: "fine", "gave no completion"),
        (lambda a: {"choices": [7]}, "gave no completion"),
        (lambda a: {"choices": [{"text": None}]}, "it has no text"),
        (lambda a: a | {"usage": [1]}, "gave no completion"),
        (edited(finish_reason=None), "ended for another reason"),
        (edited(token_ids="12"), "tokens where 1 to 12 were asked for"),
        (edited(token_ids=[]), "0 tokens where"),
        (edited(token_ids=[5] * 13), "13 tokens where"),
        (edited(token_ids=[-1]), "1 tokens where"),
        (edited(token_ids=[5.5]), "1 tokens where"),
        (edited(token_ids=[198, 5, 198]), "wrote on behind the end of a step"),
        (lambda a: a["choices"][0].pop("logprobs") and a, "gives no log-probs"),
        (edited(logprobs=[0.5]), "gave no completion"),
        (edited(logprobs={"content": [{}]}), "gave no completion.*KeyError"),
        (edited(logprobs={"token_logprobs": [None]}), "gave no completion"),
        (edited(logprobs={"token_logprobs": [float("nan")]}), "log-probs that are none"),
        (edited(logprobs={"token_logprobs": [0.7]}), "log-probs that are none"),
    ],
)
def test_garbage_is_named(policy, double, sums, rewrite, message):
    """Bugs: whatever has the status 200 is a completion; a stray AttributeError that names no server."""
    double.rewrite = rewrite
    with pytest.raises(WorkbenchError, match=message):
        drawn(policy, sums[:1], n=1)


@pytest.mark.parametrize("name", ["completion_tokens", "prompt_tokens"])
@pytest.mark.parametrize("lie", [1, "many"])
def test_a_server_that_lies_about_its_tokens(policy, double, sums, name, lie):
    """Bugs: tokens are what `usage` says, so a server decides what a method costs; another tokenizer goes unseen."""
    want = drawn(policy, sums[:2])
    double.rewrite = lambda answer: answer["usage"].update({name: lie}) or answer
    with pytest.warns(UserWarning, match=f"says {lie} {name} where .* came: what came is counted") as caught:
        assert drawn(policy, sums[:2]) == want
    assert len(caught) == 1, "once, not at every request"


@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is 8 tokens. However, you requested 9 tokens",
        "The decoder prompt (length 70) is longer than the maximum model length of 64",
        "the request exceeds the available context size, try increasing it",
    ],
)
def test_a_prompt_too_long_fails_its_problem_alone(policy, double, sums, words):
    """Bug: one long prompt ends the run of all."""
    alone = drive([sums[0]], "sampling", policy, seed=3, sampling=SAMPLING)
    policy.in_flight = 1
    double.faults += [status(400, words)]
    with pytest.raises(ProblemError, match=sums[1].id):
        policy.extend([Want(sums[1].blind(), Node())], 3, SAMPLING)
    double.faults += [status(400, words)]
    with pytest.warns(UserWarning, match="1 of 2 problems"):
        failed, kept = drive([sums[1], sums[0]], "sampling", policy, seed=3, sampling=SAMPLING)
    assert failed.stop == "error" and "too long" in failed.error and kept.answer == alone[0].answer


def test_what_cannot_fit_is_not_asked_for(policy, double, sums):
    """Bugs: positions past what the model was trained on, where a server does not check; tokens drawn and lost."""
    wants = [Want(sums[0].blind(), Node()), Want(sums[1].blind(), Node((0,), (Step("x" * 505),)), close=True)]
    with pytest.raises(ProblemError, match=f"{sums[1].id}.*in a context of 512") as caught:
        policy.extend(wants, 3, Sampling(1.0, 12, 9999))
    assert list(caught.value.problems) == [sums[1].id] and not double.log


def test_another_refusal_is_not_a_problem(policy, double, sums):
    """Bug: a wrong model name is tried again for ever, or read as a long prompt."""
    double.faults += [status(404, "no such model")]
    with pytest.raises(WorkbenchError, match="status 404.*no such model.*dialect right"):
        drawn(policy, sums[:1], n=1)
    assert len(double.log) <= 3
    double.faults += [status(400, "temperature: 9 exceeds the maximum value of 2")]
    with pytest.raises(WorkbenchError, match="status 400") as caught:
        drawn(policy, sums[:1], n=1)
    assert not isinstance(caught.value, ProblemError), "else every problem fails, one by one, with a warning each"


def test_what_a_server_lacks_is_said(double, tokenizer, sums):
    plain = Server(double.url, "micro", tokenizer)
    with pytest.raises(WorkbenchError, match="top-k is not in the OpenAI schema"):
        plain.extend([Want(sums[0], Node())], 0, Sampling(top_k=5))
    with pytest.raises(WorkbenchError, match=r"Server\(config="):
        plain.flops(0, 5)
    with pytest.raises(WorkbenchError, match="unknown dialect 'gpt'"):
        Server(double.url, "micro", tokenizer, dialect="gpt")
    with pytest.raises(WorkbenchError, match="no address.*http://"):
        Server("127.0.0.1:8000/v1", "micro", tokenizer)


# --- what is asked for, and under which distribution ---


def test_defaults_of_a_server_are_switched_off(policy, double, sums, tokenizer):
    """Bug: a checkpoint's generation config, or llama.cpp's min-p and top-k of 40, filter what was to be plain."""
    policy.extend([Want(sums[0].blind(), Node())], 3, SAMPLING)
    assert {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}.items() <= double.log[-1].items()
    Server(double.url, "micro", tokenizer, dialect="llama.cpp").extend([Want(sums[0].blind(), Node())], 3, SAMPLING)
    assert double.log[-1]["samplers"] == ["temperature", "top_k", "top_p"] and double.log[-1]["top_k"] == 0


def assert_logprobs(model, encoder, problem, chain, sampling):
    """Those of a chain are those of a forward pass over it, filtered."""
    ids, start = encoder.encode(problem.prompt, chain[-1].steps).ids, len(encoder.prompt(problem.prompt))
    with torch.no_grad():
        logprobs = log_probabilities(model(torch.tensor([ids])).logits[0, start - 1 : -1], sampling)
    got = torch.tensor([v for step in chain[-1].steps for v in step.logprobs])
    assert torch.allclose(got, logprobs[torch.arange(len(ids) - start), torch.tensor(ids[start:])], atol=1e-3)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7}, {"top_p": 0.8, "top_k": 4}, {"temperature": 0.0}])
def test_logprobs_are_those_that_sampled(policy, micro, sums, how):
    """Bug: ids and log-probs that are shifted, or of another distribution."""
    sampling = Sampling(**{"step_tokens": 12, "chain_tokens": 40, **how})
    for [chain], problem in zip(
        policy.extend([Want(p.blind(), Node(), 1, True) for p in sums], 3, sampling), sums, strict=True
    ):
        assert_logprobs(micro, policy.encoder, problem, chain, sampling)


def test_logprobs_of_another_distribution_are_refused(policy, double, sums, tokenizer):
    """Bug: T = 1 in the log-probs and 0.7 in the sampler, silently, since that is what vLLM gives by default."""
    double.raw = True
    assert drawn(policy, sums[:1]), "a plain draw has but one distribution"
    wants = [Want(p.blind(), Node()) for p in sums[:2]]
    for sampling in (Sampling(0.7), Sampling(top_p=0.9), Sampling(top_k=5)):
        with pytest.raises(WorkbenchError, match="not of the distribution that samples.*processed_logprobs"):
            policy.extend(wants, 3, sampling)
    without = Server(double.url, "micro", tokenizer, dialect="vllm", logprobs=False)
    [[first], _] = without.extend(wants, 3, Sampling(0.7))
    assert first[0].steps[0].ids and not first[0].steps[0].logprobs and "logprobs" not in double.log[-1]


def test_a_closing_answer_keeps_the_limits(policy, sums):
    """Bugs: the tags are not among a step's tokens, so closing costs less than it does; log-probs one short."""
    [chains] = policy.extend([Want(sums[0].blind(), Node(), 4, close=True)], 3, Sampling(1.0, 5, 40))
    tags = policy.encoder.closing()
    for [node] in chains:
        step = node.steps[0]
        assert list(step.ids[:2]) == tags and step.logprobs[:2] == (0.0, 0.0) and len(step.ids) <= 5
        assert len(step.logprobs) == len(step.ids) and node.stop in ("answer", "length", "cut")


def token(policy, id, value, post):
    entry = {"id": id, "token": policy.encoder.tokenizer.decode([id])}
    return {**entry, "prob": math.exp(value)} if post else {**entry, "logprob": value}


def test_llama_cpp_leaves_out_the_break(policy, double, tokenizer, sums):
    """Bugs: a stop string that was cut off makes a step an answer; one log-prob stands for another token's.

    Its server drops the tokens of the stop string from text and log-probs, and gives probabilities on demand.
    """
    ends, want = policy.encoder.ends_step(), drawn(policy, sums)

    def rewrite(answer):
        choice = answer["choices"][0]
        ids, values = choice.pop("token_ids"), choice["logprobs"]["token_logprobs"]
        if ends[ids[-1]] and ids[-1] != policy.encoder.end_id:
            ids, values, choice["text"] = ids[:-1], values[:-1], choice["text"][:-1]
        choice["logprobs"] = {"content": [token(policy, *pair, True) for pair in zip(ids, values, strict=True)]}
        return answer

    double.rewrite = rewrite
    llama = Server(double.url, "micro", tokenizer, dialect="llama.cpp", in_flight=3)
    with pytest.warns(UserWarning, match="log-probs for .* tokens: such steps have none"):
        got = drawn(llama, sums)
    assert double.log[-1]["post_sampling_probs"] is True
    assert [[(path, [s.ids for s in steps], stop) for path, steps, stop in c] for c in got] == [
        [(path, [s.ids for s in steps], stop) for path, steps, stop in c] for c in want
    ]
    for steps in (chain[-1][1] for chain in got):
        for step in steps:
            assert len(step.logprobs) in (0, len(step.ids))
    answers = [(a[-1][1][-1], b[-1][1][-1]) for a, b in zip(got, want, strict=True) if a[-1][2] == "answer"]
    assert answers and all(a.logprobs == pytest.approx(b.logprobs) for a, b in answers)


@pytest.mark.parametrize("spelt", ["strings", "ids", "unknown"])
def test_text_servers_come_to_the_same_chains(policy, double, tokenizer, sums, spelt):
    """Bugs: a stop string that was cut off makes every step an answer, or every answer a step; other ids than drawn."""
    want = drawn(policy, sums)

    def rewrite(answer):
        choice = answer["choices"][0]
        ids = choice.pop("token_ids")
        choice["text"] = choice["text"].split("\n")[0]
        names = {"strings": [tokenizer.decode([i]) for i in ids], "ids": ids, "unknown": []}
        choice["logprobs"]["tokens"] = names[spelt]
        return answer

    class Text(Server):
        def _prompt(self, problem, node, close):
            text = super()._prompt(problem, node, close)
            assert isinstance(text, str)
            ids = policy._prompt(problem, node, close)
            said = tokenised(tokenizer, text)  # as others do at the same time: it is several threads that ask
            assert said == ids or "\ufffd" in text, "text and ids say the same, but for half a character"
            return ids

    double.rewrite = rewrite
    text = Text(double.url, "micro", tokenizer, dialect="openai", in_flight=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # half a character comes back as three tokens, and is warned about
        pairs = list(zip(want, drawn(text, sums), strict=True))
    plain = [(a, b) for a, b in pairs if "\ufffd" not in "".join(step.text for step in a[-1][1])]
    closed = [(a, b) for a, b in plain if a[-1][2] in ("answer", "length")]
    assert len(closed) > 5 and all(a == b for a, b in closed)
    if spelt == "ids":
        assert all(a == b for a, b in pairs), "ids hide nothing"


def hide(tokenizer):
    def rewrite(answer):
        """As `transformers serve`: special tokens are no text, the stop string is."""
        choice = answer["choices"][0]
        choice["text"] = tokenizer.decode(choice.pop("token_ids"), skip_special_tokens=True)
        choice.pop("logprobs")
        return answer

    return rewrite


def test_an_openai_server_that_hides_tags(policy, double, tokenizer, sums):
    """Bug: an answer whose tags are no text is read as one more line of reasoning, and the chain never ends."""
    want = drawn(policy, sums)

    def rewrite(answer):
        choice = answer["choices"][0]
        ids = choice.pop("token_ids")
        choice["logprobs"]["tokens"] = [tokenizer.decode([i], skip_special_tokens=True) for i in ids]
        choice["text"] = tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0]
        return answer

    double.rewrite = rewrite
    plain = Server(double.url, "micro", tokenizer)
    plain._prompt = policy._prompt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = list(zip(want, drawn(plain, sums), strict=True))
    closed = [(a, b) for a, b in pairs if a[-1][2] == "answer" and not any("\ufffd" in s.text for s in a[-1][1])]
    assert len(closed) > 5 and all(a == b for a, b in closed)


@pytest.mark.parametrize(
    "ids, full, stop, count",
    [
        ("</reasoning><assistant>5</assistant>", False, "answer", 4),
        ("5</assistant>", False, "cut", 2),
        ("5", True, "length", 1),
        ("</reasoning><assistant>5</assistant>", True, "answer", 4),
        ("2+3=5\n", False, None, 6),
        ("\n", False, None, 1),
    ],
)
def test_hidden_tags_are_told_by_their_number(policy, double, tokenizer, sums, ids, full, stop, count):
    """Bugs: a model that ends without the tags of an answer has answered; an answer that just fits has not."""
    ids = tokenizer(ids, add_special_tokens=False)["input_ids"]
    usage = {"completion_tokens": len(ids)}
    choice = {"finish_reason": "length" if full else "stop", "token_ids": ids, "logprobs": {}}
    double.rewrite = lambda answer: hide(tokenizer)({"choices": [dict(choice)], "usage": usage})

    served = Server(double.url, "micro", tokenizer, dialect="transformers")
    served._prompt = policy._prompt
    [[[node]]] = served.extend([Want(sums[0].blind(), Node())], 3, Sampling(1.0, 12, 40))
    assert (node.stop, len(node.steps[0].ids)) == (stop, count) and node.steps[0].logprobs == ()


# --- the server that transformers ships ---


@contextlib.contextmanager
def serving(words, folder, tries, **environment):
    """The address of a server on loopback, started by `words` and ended whatever happens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **environment}
    with open(folder / "log", "w") as log:
        words = [*words, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True)
        try:
            for _ in range(tries):
                try:
                    if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                        break
                except httpx.TransportError:
                    assert process.poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
            else:
                raise AssertionError((folder / "log").read_text()[-2000:])
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def real(micro, tokenizer, tmp_path_factory):
    for package in ("fastapi", "openai", "uvicorn"):
        pytest.importorskip(package, reason="`transformers serve` needs fastapi, openai and uvicorn: the extra `test`")
    folder = tmp_path_factory.mktemp("served")
    micro.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", str(folder)]
    with serving([*words, "--device", "cpu"], folder, 300) as url:
        yield url, str(folder)


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hidden tag amid a line is one token more than came
        first, second = (served.extend(many, 1, SAMPLING) for _ in range(2))
    assert first == second, "one request at a time: the seed is the chain"
    assert {chain[-1].stop for row in first for chain in row} & {"answer"}


@pytest.mark.slow
def test_vllm(tokenizer, sums, tmp_path):
    """The real server: ids, log-probs under every filter, seeds and greedy chains are those of the model itself."""
    if "VLLM_PYTHON" not in os.environ:
        pytest.skip("VLLM_PYTHON names no Python that has vLLM")
    from workbench.models import new_model
    from workbench.policies.local import LocalPolicy

    model = new_model("nano", tokenizer).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    words = [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", "--model", str(tmp_path)]
    words += [
        "--dtype",
        "float32",
        "--enforce-eager",
        "--max-model-len",
        "256",
        "--logprobs-mode",
        "processed_logprobs",
    ]
    wants = [Want(p.blind(), Node(), 2, to_end=True) for p in sums[:4]]
    with serving(words, tmp_path, 900, VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1") as url:
        served = Server(url, str(tmp_path), tokenizer, str(tmp_path), "vllm", timeout=60)
        for how in ({}, {"temperature": 0.7}, {"top_p": 0.8, "top_k": 20}, {"temperature": 0.0}):
            sampling = Sampling(**{"step_tokens": 12, "chain_tokens": 40, **how})
            chains = served.extend(wants, 3, sampling)
            assert served.extend(wants, 3, sampling) == chains
            for want, [chain, _] in zip(wants, chains, strict=True):
                assert_logprobs(model, served.encoder, want.problem, chain, sampling)
        mine = LocalPolicy(model, tokenizer).extend(wants, 0, sampling)
        assert [[n.steps[-1].ids for n in c] for cs in mine for c in cs] == [
            [n.steps[-1].ids for n in c] for cs in chains for c in cs
        ]
        served.limit = None
        with pytest.raises(ProblemError, match=sums[0].id):
            served.extend([Want(sums[0].blind(), Node((0,), (Step("1" * 300),)))], 3, SAMPLING)
