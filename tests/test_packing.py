"""Packed rows say exactly what chains that stand alone say: each test names the mistake that it keeps out."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from workbench.fit import Ordered
from workbench.models import new_model
from workbench.packing import UNKNOWN, Forest, Store, collate, judged, pack
from workbench.types import Labelled, Problem, Step, Trace, WorkbenchError
from workbench.verifiers import prm


def chain(problem, *steps, labels=None):
    """`!` at the end of a step marks it wrong, `?` unknown."""
    marks = labels or [{"!": 0.0, "?": None}.get(text[-1], 1.0) for text in steps]
    return Labelled(
        Problem(f"p/{problem}", "arithmetic", problem, "1"), Trace(tuple(map(Step, steps)), "cut"), tuple(marks)
    )


def answered(problem, *steps):
    """The same, with the last step as its closing answer."""
    it = chain(problem, *steps)
    return it._replace(trace=Trace((*it.trace.steps[:-1], replace(it.trace.steps[-1], final=True))))


CHAINS = [
    chain("2+3", "a", "b", "c!"),
    chain("2+3", "a", "b", "d"),
    chain("2+3", "a", "e!", "never"),
    chain("2+3", "a", "f?", "g"),
    chain("7*8", "aa", "bb!"),
    chain("7*8", "cc", "dd"),
]


@pytest.fixture(scope="module")
def head(tokenizer):
    model = prm.from_policy(new_model("micro", tokenizer))
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight)
    return model.eval()


def labelled(rows, encoder):
    """Every label with the tokens from its prompt to its end, read off the rows."""
    found = []
    for row in rows:
        begins = [sum(row.lengths[:i]) for i in range(len(row.lengths))]
        for i, label in enumerate(row.labels):
            if label != UNKNOWN:
                path, at = [], i
                while at >= 0:
                    path = row.ids[begins[at] : begins[at] + row.lengths[at]] + path
                    at = row.parents[at]
                found.append((encoder.tokenizer.decode(path), label))
    return sorted(found)


def expected(chains, encoder):
    """The same by hand: one entry for every different labelled prefix up to the first error."""
    out = {}
    for problem, trace, labels in chains:
        for i, label in enumerate(labels):
            if label is not None:
                ids = encoder.encode(problem.prompt, trace.steps[: i + 1]).ids
                out[encoder.tokenizer.decode(ids)] = label
            if label == 0:
                break
    return sorted(out.items())


@pytest.mark.parametrize("capacity", [30, 34, 50, 64, 200, 1000])
def test_every_label_stands_once_behind_its_own_prefix(encoder, capacity):
    """Bugs: a cut tree goes on behind the wrong prefix; a label twice, or lost; a step after an error learnt from."""
    counts = {}
    rows = list(pack(CHAINS, encoder, capacity, counts=counts))
    assert all(len(row.ids) <= capacity for row in rows)
    assert labelled(rows, encoder) == expected(CHAINS, encoder)
    assert counts["labels"] == len(expected(CHAINS, encoder)) and counts["too long"] == 0
    assert counts["tokens"] == sum(len(row.ids) for row in rows)


def test_a_step_that_does_not_fit_is_counted(encoder):
    counts = {}
    rows = list(pack([chain("2+3", "a", "b" * 100, "c")], encoder, 40, counts=counts))
    assert counts["too long"] == 2 and counts["labels"] == 1 == len(labelled(rows, encoder))


def test_a_packed_step_is_read_as_in_its_own_chain(head, encoder, tokenizer):
    """Bugs: siblings seen; positions counted along the row; another tree's prompt seen; padding seen."""
    rows = list(pack(CHAINS, encoder, 34))
    assert any(not row.alone for row in rows) and len(rows) > 1
    batch = collate(rows, tokenizer.pad_token_id)
    with torch.inference_mode():
        logits = prm.step_logits(head, batch)
        known = batch["labels"] != UNKNOWN
        packed = sorted(zip(batch["labels"][known].tolist(), logits[known].tolist(), strict=True))
        alone = {}
        for problem, trace, labels in CHAINS:
            row = prm.judged(problem, trace, labels, encoder)
            one = collate([row], tokenizer.pad_token_id)
            for end, label, x in zip(row.ends, row.labels, prm.step_logits(head, one)[0].tolist(), strict=True):
                if label != UNKNOWN:
                    alone[tuple(row.ids[: end + 1])] = (label, x)
    assert len(packed) == len(alone)
    for (mark, x), (label, y) in zip(packed, sorted(alone.values()), strict=True):
        assert mark == label and x == pytest.approx(y, abs=1e-5)


def test_the_gradient_is_that_of_chains_alone(head, encoder, tokenizer):
    """Bug: the loss agrees and what it teaches does not."""
    import copy

    chains = [CHAINS[0], CHAINS[4]]  # nothing shared, so that the mean is over the same steps
    model, twin = copy.deepcopy(head), copy.deepcopy(head)
    [row] = pack(chains, encoder, 200)
    prm.bce(model, collate([row], tokenizer.pad_token_id)).backward()
    prm.bce(twin, collate([prm.judged(*c, encoder) for c in chains], tokenizer.pad_token_id)).backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if q.grad is not None:
            assert torch.allclose(p.grad, q.grad, atol=1e-6), name


def test_a_chain_alone_is_a_plain_causal_row(encoder, tokenizer):
    """Bug: training goes through another kernel than scoring, so that scores differ in the last bit."""
    [row] = pack([CHAINS[0]], encoder, 200)
    plain = collate([prm.judged(*CHAINS[0], encoder)], tokenizer.pad_token_id)
    packed = collate([row], tokenizer.pad_token_id)
    assert row.alone and plain.keys() == packed.keys() and all(torch.equal(plain[k], packed[k]) for k in plain)


def many(n, steps=6):
    for i in range(n):
        for j in range(4):
            yield chain(f"{i}+{i * 7 % 1000}", *(f"step {k} of {j if k > 2 else 0} is {i * k}" for k in range(steps)))


def test_rows_are_full(encoder):
    """Bugs: one tree a row however small it is; batches of rows of every length. Under 5 % is padding."""
    counts = {}
    mixed = itertools.chain.from_iterable(many(60, steps) for steps in (3, 4, 5, 6, 8))
    rows = list(pack(mixed, encoder, 512, counts=counts))
    order = list(Ordered([len(row.ids) for row in rows], 4, 0))
    batches = [[rows[i] for i in order[at : at + 4]] for at in range(0, len(order), 4)]
    width = sum(max(len(row.ids) for row in batch) * len(batch) for batch in batches)
    assert 1 - counts["tokens"] / width < 0.05 and counts["tokens"] / len(rows) > 400
    assert counts["straight"] > 1.5 * counts["tokens"]


def test_the_mark_of_a_last_step_is_no_outcome(encoder):
    """Bug: an outcome model learnt that chains which people stopped to rate, without an answer, came out right (or
    wrong) by the mark of their last step. What a policy wrote and never closed stays wrong, whatever its last step."""
    right, wrong, unrated = (answered("2+3", "a", text) for text in ("b", "b!", "b?"))
    stopped = chain("2+3", "a", "c")
    written = (Step("a"), Step("c", ids=tuple(encoder.text("c\n"))))
    ran_out, malformed = (stopped._replace(trace=Trace(written, stop)) for stop in ("length", "cut"))
    every = [right, wrong, ran_out, malformed, stopped, unrated]
    marks = [judged(*one, encoder, outcome=True).labels[0] for one in every]
    assert marks == [1.0, 0.0, 0.0, 0.0, UNKNOWN, UNKNOWN]
    counts = {}
    list(pack(every, encoder, 300, outcome=True, counts=counts))
    assert (counts["chains"], counts["no outcome"], counts["labels"]) == (6, 2, 8)
    with pytest.raises(WorkbenchError, match="none of 2 chains has an outcome"):
        list(pack([stopped, unrated], encoder, 300, outcome=True))
    assert list(pack([stopped, unrated], encoder, 300)), "their steps are labelled all the same"


def test_an_outcome_is_a_chains_own(encoder):
    """Bug: two chains share a step, and the outcome of the first is given to the second."""
    rows = list(pack([answered("2+3", "a", "b!"), answered("2+3", "a", "c")], encoder, 300, outcome=True))
    assert sorted(label for _, label in labelled(rows, encoder)) == [0.0, 0.0, 1.0, 1.0]


def test_soft_labels_and_ties(encoder):
    rows = list(pack([chain("2+3", "a", "b", labels=[0.25, 0.75])], encoder, 100))
    assert [label for _, label in labelled(rows, encoder)] == [0.25, 0.75]


def test_the_store_gives_back_what_it_got(tmp_path, encoder):
    rows = list(pack(many(40), encoder, 256))
    store = Store.write(tmp_path, iter(rows))
    assert list(store) == rows and store.lengths == [len(row.ids) for row in rows]
    mixed = Store(tmp_path, seed=3)
    assert list(mixed) != rows and sorted(map(repr, mixed)) == sorted(map(repr, rows))
    assert list(Store(tmp_path, seed=3)) == list(mixed)
    assert store.labels == sum(label != UNKNOWN for row in rows for label in row.labels)


LONG = """
import resource, sys
from workbench.format import Encoder
from workbench.models import character_tokenizer
from workbench.packing import Store, pack
from workbench.stepdata import Rows
store = Store.write(sys.argv[2], pack(Rows(sys.argv[1]), Encoder(character_tokenizer()), 512))
print(store.labels, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_from_a_file_to_packed_rows_in_bounded_memory(tmp_path):
    """Bug: all rows are held before the first is written."""
    peaks = {}
    for n in (2_000, 32_000):
        path = tmp_path / f"{n}.jsonl"
        with path.open("w") as file:
            for i in range(n):
                row = {
                    "problem": f"problem {i}",
                    "steps": [f"one {i}", "two"],
                    "label": -1,
                    "final_answer_correct": True,
                }
                file.write(json.dumps(row) + "\n")
        command = [sys.executable, "-c", LONG, str(path), str(tmp_path / str(n))]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        labels, peaks[n] = map(int, out.stdout.split()[-2:])
        assert labels == 2 * n
    assert peaks[32_000] < peaks[2_000] * 1.1, peaks


def test_a_forest_knows_whether_it_branches():
    assert Forest([1, 2, 3], [1, 1, 1], [-1, 0, 1], [UNKNOWN, 1, 0]).alone
    assert not Forest([1, 2, 3], [1, 1, 1], [-1, 0, 0], [UNKNOWN, 1, 0]).alone
    assert not Forest([1, 2], [1, 1], [-1, -1], [UNKNOWN, UNKNOWN]).alone
