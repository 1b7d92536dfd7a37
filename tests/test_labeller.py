"""The step labeller: its state without a browser, then the widget in JupyterLab and marimo, pressed for real."""

from __future__ import annotations

import copy
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import doctor, plots
from workbench.stepdata import Rows
from workbench.types import Labelled, Problem, Step, Trace, WorkbenchError
from workbench.widgets import Session, kappa, labeller

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "workbench" / "widgets"


def chain(text, *steps, answer=None):
    done = tuple(Step(step) for step in steps) + ((Step(answer, final=True),) if answer else ())
    return Problem(f"p/{text}", "arithmetic", text, "5"), Trace(done, "answer" if answer else "cut")


ITEMS = [
    chain("2+3", "2+3=5", "so 5", answer="5"),
    chain("2+3*4", "2+3=5", "5*4=20", answer="20"),
    chain("9-4", "9-4=5", answer="5"),
]


def session(items=ITEMS, journal=None, labeller="anna", **more):
    return Session(items, journal, labeller, **more)


def press(state, keys):
    for key in keys.split():
        state.press({"space": " ", "down": "ArrowDown", "up": "ArrowUp"}.get(key, key))
    return state


class Clock:
    """Ten seconds between two looks at it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 10
        return self.now


# --- asking ---


def test_keys_rate_and_an_error_ends_the_chain():
    """Bugs: steps after the first error asked and labelled; neutral taken for wrong; a skipped step given 0."""
    state = press(session(), "1 0 space 1 -")
    assert (state.chain, state.step) == (2, 0), "the answer of the second chain is not asked"
    assert [state.ratings_of(i) for i in range(3)] == [(1, 0, None), (1, -1, None), (None, None)]
    assert [c.labels for c in state.labelled()] == [(1.0, 1.0, None), (1.0, 0.0, None), (None, None)]
    press(state, "+ /")
    assert state.ratings_of(2) == (1, 0) and state.done == 3 and state.step is None
    assert state.progress == "all labelled: 3 chains"


def test_the_stop_can_be_switched_and_hides_without_losing():
    state = press(session(stop_at_error=False), "- 1 1")
    assert state.ratings_of(0) == (-1, 1, 1) and state.chain == 1
    state.stop(True)
    assert state.ratings_of(0) == (-1, None, None)
    assert state.labelled()[0].labels == (0.0, None, None)
    state.stop(False)
    assert state.ratings_of(0) == (-1, 1, 1)


def test_undo_takes_back_one_rating_after_another():
    """Bugs: undo that only knows the last action; that stays in the next chain; that forgets an overwritten rating."""
    state = press(session(), "1 - u")
    assert (state.chain, state.step) == (0, 1) and state.ratings_of(0) == (1, None, None)
    press(state, "u u u")
    assert (state.chain, state.step) == (0, 0) and state.note == "nothing to undo"
    press(state, "1 1 1 p up - u")
    assert (state.chain, state.step) == (0, 2) and state.ratings_of(0) == (1, 1, 1), "the overwritten 1 is back"


def test_moving_about():
    state = press(session(), "n n n")
    assert (state.chain, state.step) == (2, 0) and state.note == "this is the last chain"
    press(state, "1 1")
    assert (state.chain, state.step) == (0, 0), "what was passed over is asked in the end"
    press(state, "p down down down")
    assert (state.chain, state.step) == (0, 2)
    press(state, "up up 1")
    assert (state.chain, state.step) == (0, 1)


def test_a_finished_chain_takes_no_rating_by_accident():
    """Bug: one key too many at the end turns the last rating over."""
    state = press(session(ITEMS[2:]), "1 1 -")
    assert state.ratings_of(0) == (1, 1) and "choose a step" in state.note
    press(state, "up -")
    assert state.ratings_of(0) == (1, -1)


def test_keys_typed_ahead_stay_in_their_chain():
    """Bug: after an error the next chain, which nobody has seen yet, gets the keys that were on their way."""
    state = session()
    for key in "1-11":
        state.hear({"key": key, "chain": 0})
    assert (state.chain, state.step) == (1, 0) and state.ratings_of(1) == (None, None, None)
    state.hear({"key": "u", "chain": 0})
    assert (state.chain, state.step) == (0, 1), "but undo is meant wherever one has got to"


@pytest.mark.parametrize(
    "message",
    [{}, {"key": "x"}, {"key": 1}, {"key": "1", "chain": 7}, {"step": True, "chain": 0}, {"step": 99, "chain": 0}]
    + [{"step": -1, "chain": 0}, {"step": 1, "chain": "0"}, {"stop": 1}, {"rating": 5}],
)
def test_a_message_that_means_nothing_does_nothing(message):
    state = session()
    before = state.view()
    state.hear(message)
    assert state.view() == before


def test_a_shared_beginning_is_asked_once():
    """Bug: one step of two chains with two labels."""
    items = [chain("q", "a", "b"), chain("q", "a", "c"), chain("other", "a", "c")]
    state = press(session(items), "1 1")
    assert (state.chain, state.step) == (1, 1) and state.ratings_of(1) == (1, None)
    press(state, "p up up -")
    assert state.ratings_of(0) == (-1, None) and state.ratings_of(1) == (-1, None)
    assert state.chain == 2 and state.ratings_of(2) == (None, None), "the same words about another problem are not it"


# --- time ---


def test_time_of_a_step():
    """Bugs: the time of a corrected step lost; time before the labeller looked counted."""
    clock = Clock()
    state = session(clock=clock)  # 10
    clock.now = 1000
    state.look()  # 1010
    press(state, "1 - u 1")  # 1020, 1030; 1040 in the next chain; 1050
    assert state.seconds_of(0) == (10, 20, 0) and state.seconds_of(1) == (10, 0, 0)
    state.look()
    press(state, "1")
    assert state.seconds_of(0)[2] == 10, "a second view of a running session changes no time"


def test_time_left():
    """Bugs: a lunch break taken for the pace; steps that a stop will spare counted in full."""
    items = [chain(str(i), "a", "b", "c", "d") for i in range(40)]
    clock = Clock()
    state = session(items, clock=clock)
    assert state.progress == "chain 1 of 40"
    press(state, "1 - 1 -")
    assert state.left == pytest.approx(10 * 38 * 4 / 2)
    assert state.progress == "chain 3 of 40, about 13 min left"
    clock.now += 3600
    press(state, "1")
    assert state.left == pytest.approx((4 * 10 + 50) / 5 * (38 * 4 - 1) / 2)


# --- the journal ---

ACTIONS = st.lists(
    st.sampled_from(["1", "0", "-", " ", "u", "n", "p", "ArrowDown", "ArrowUp", "stop", "go"]), max_size=25
)


def everything(state):
    outside = ("_clock", "_since", "_acted", "path", "_size", "note")
    return copy.deepcopy({name: value for name, value in vars(state).items() if name not in outside})


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS, cut=st.integers(0, 60))
def test_reopening_goes_on_exactly(tmp_path_factory, actions, cut):
    """After any actions, stopped anywhere, also in the middle of a line: the state is that of the whole lines."""
    path = tmp_path_factory.mktemp("journal") / "anna.jsonl"
    live, states = session(journal=path, clock=Clock()), {}
    states[path.stat().st_size] = everything(live)
    for action in actions:
        if action == "stop":
            live.stop(not live.stop_at_error)
        elif action == "go":
            live.hear({"step": 1, "chain": live.chain})
        else:
            live.press(action)
        states[path.stat().st_size] = everything(live)
    raw = path.read_bytes()[: max(min(states), path.stat().st_size - cut)]
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = session(journal=path)
    whole = raw[: raw.rindex(b"\n") + 1]
    assert everything(again) == states[len(whole)] and path.read_bytes() == whole


def test_every_action_is_on_the_disk_at_once(tmp_path):
    path = tmp_path / "new" / "anna.jsonl"
    state = session(journal=path)
    for number, key in enumerate(["1", "-", "u", "n"], 2):
        state.press(key)
        assert len(path.read_bytes().split(b"\n")) == number + 1
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[0] == {"journal": 1, "items": state.hash, "labeller": "anna"}
    assert [(row["do"], row.get("rating")) for row in rows[1:]] == [
        ("rate", 1),
        ("rate", -1),
        ("undo", None),
        ("go", None),
    ]
    assert all(row["seconds"] >= 0 and row["at"].endswith("Z") for row in rows[1:])


def test_a_rating_behind_an_error_can_be_taken_back():
    """Bug: with `stop at the first error` on again there is no step to stand on, and the note asked for one."""
    state = session()
    state.stop(False)
    state.press("-")
    state.press("1")
    state.stop(True)
    state.press("u")
    assert state.note == "taken back: chain 1, step 2" and state.step is None


def test_a_folder_is_no_journal(tmp_path):
    with pytest.raises(WorkbenchError, match="is a folder: name a .jsonl file"):
        session(journal=tmp_path)


def test_a_half_written_last_line_is_cut_off_and_named(tmp_path):
    path = tmp_path / "anna.jsonl"
    press(session(journal=path), "1 1")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"do": "rate", "cha')
    with pytest.warns(UserWarning, match=r'anna.jsonl: the last line was half-written and is cut off: {"do": "rate"'):
        state = session(journal=path)
    assert state.ratings_of(0) == (1, 1, None) and path.read_bytes() == whole and "half-written" in state.note
    path.write_bytes(whole[:20])
    with pytest.warns(UserWarning, match="half-written"):
        assert session(journal=path).ratings_of(0) == (None,) * 3


def test_a_journal_of_other_things_is_refused(tmp_path):
    path = tmp_path / "anna.jsonl"
    session(journal=path)
    with pytest.raises(WorkbenchError, match="anna.jsonl is a journal of other items"):
        session(ITEMS[::-1], journal=path)
    with pytest.raises(WorkbenchError, match="the journal of 'anna', not of 'ben'"):
        session(journal=path, labeller="ben")
    blind = [Labelled(problem, trace, (1.0,) * len(trace.steps)) for problem, trace in ITEMS]
    assert session(blind, journal=path).hash == session().hash, "labels are no part of what is judged"


@pytest.mark.parametrize("text", ["hello", "hello\n", "[]\n", '{"a": 1}\n', '{"journal": 1, "items": "hell'])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path, text):
    """Bug: taken for a half-written journal, and emptied."""
    path = tmp_path / "thesis.txt"
    path.write_text(text)
    with pytest.raises(WorkbenchError, match="no labeller's journal"):
        session(journal=path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "7", '{"do": "undo"}', '{"do": "dance", "seconds": 1}', '{"do": "undo", "seconds": 1}']
    + [json.dumps({"do": "rate", "chain": 0, "step": step, "rating": 1, "seconds": 1}) for step in (9, -1, "0")]
    + [json.dumps({"do": "rate", "chain": 0, "step": 0, "rating": x, "seconds": 1}) for x in (2, True, "1", [])]
    + [json.dumps({"do": "go", "chain": chain, "step": None, "seconds": 1}) for chain in (3, -1)],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "anna.jsonl"
    session(journal=path)
    path.write_bytes(path.read_bytes() + line.encode() + b"\n")
    before = path.read_bytes()
    with pytest.raises(WorkbenchError, match="anna.jsonl, line 2, is not what a labeller writes"):
        session(journal=path)
    assert path.read_bytes() == before


def test_two_sessions_on_one_journal_do_not_mix(tmp_path):
    """Bug: the cell is run again, and the old view goes on writing between the new one's lines."""
    path = tmp_path / "anna.jsonl"
    old, new = session(journal=path), session(journal=path)
    press(new, "1")
    with pytest.raises(WorkbenchError, match="was written to from elsewhere: run this cell again"):
        old.press("-")
    assert old.ratings_of(0) == (None,) * 3 and session(journal=path).ratings_of(0) == (1, None, None)


def test_a_disk_that_refuses_costs_no_more_than_the_action(tmp_path, monkeypatch):
    path = tmp_path / "anna.jsonl"
    state = press(session(journal=path), "1")
    before, real = path.read_bytes(), open

    def full(name, mode="r", *more, **named):
        if mode == "ab":
            with real(name, "ab") as file:
                file.write(b'{"do": "ra')
            raise OSError(28, "No space left on device")
        return real(name, mode, *more, **named)

    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(WorkbenchError, match="No space left on device"):
        state.press("-")
    monkeypatch.undo()
    assert path.read_bytes() == before and state.ratings_of(0) == (1, None, None)
    press(state, "-")
    assert session(journal=path).ratings_of(0) == (1, -1, None)


def test_stop_is_remembered_and_can_be_overruled(tmp_path):
    path = tmp_path / "anna.jsonl"
    session(journal=path, stop_at_error=False)
    assert session(journal=path).stop_at_error is False
    assert session(journal=path, stop_at_error=True).stop_at_error is True
    assert session(journal=path).stop_at_error is True


@pytest.mark.parametrize("items", [[], [ITEMS[0], "text"], [(1, 2)], [7], [(ITEMS[0][0], Trace(()))]])
def test_items_that_cannot_be_labelled(items):
    with pytest.raises(WorkbenchError, match="nothing to label|item [01] "):
        session(items)


def test_a_labeller_has_a_name():
    with pytest.raises(WorkbenchError, match="say who labels"):
        session(labeller=" ")


# --- PRM800K lines ---


def test_rows_are_prm800k_and_read_back_to_the_same_labels(tmp_path):
    """Bugs: the closing answer not marked; an unasked step written as neutral; an unrated chain written."""
    path, clock = tmp_path / "rows.jsonl", Clock()
    items = [*ITEMS, chain("1+1", "1+1=2"), chain("2+3", "2+3=5", "never seen")]
    state = press(session(items, clock=clock), "1 0 1 1 - 1 space")
    assert state.write(path) == 4
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == {
        "labeler": "anna",
        "question": {"problem": "2+3*4", "ground_truth_answer": "5"},
        "label": {
            "steps": [
                {"completions": [c], "human_completion": None, "chosen_completion": 0}
                for c in [
                    {"text": "2+3=5", "rating": 1, "flagged": False},
                    {"text": "5*4=20", "rating": -1, "flagged": False},
                    {"text": "# Answer\n\n20", "rating": None, "flagged": False},
                ]
            ],
            "total_time": 20_000,
            "finish_reason": "found_error",
        },
    }
    assert [row["label"]["finish_reason"] for row in rows] == ["solution", "found_error", "solution", "give_up"]
    assert rows[3]["label"]["total_time"] == 0, "the shared step's time counts once"
    read = list(Rows(path))
    mine = [c for c in state.labelled() if any(label is not None for label in c.labels)]
    assert [c.labels for c in read] == [c.labels for c in mine] and len(read) == 4
    assert [c.trace for c in read] == [c.trace for c in mine]
    assert [(c.problem.prompt, c.problem.answer) for c in read] == [(c.problem.prompt, "5") for c in mine]


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4), min_size=1, max_size=4),
    keys=st.lists(st.sampled_from("10- "), max_size=12),
    answer=st.booleans(),
)
def test_any_text_comes_back_or_is_named(tmp_path_factory, steps, keys, answer):
    """Whatever a step holds: the chain is read back with its labels, or left out with a warning."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    state = session([chain(f"q{i}", *texts, answer="5" if answer else None) for i, texts in enumerate(steps)])
    for key in keys:
        state.press(key)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        written = state.write(path)
    lost = {int(number) - 1 for number in re.findall(r"chain (\d+) \(", str(said[0].message))} if said else set()
    want = [c for i, c in enumerate(state.labelled()) if i not in lost and set(c.labels) != {None}]
    assert written == len(want)
    if want:
        rows = Rows(path)
        assert [c.labels for c in rows] == [c.labels for c in want] and not rows.rejected


def test_what_would_not_be_read_back_is_left_out_aloud(tmp_path):
    items = [chain("a", "x # Answer 5"), chain("b", "</reasoning>"), chain("c", " "), chain("d", "fine")]
    state = press(session(items), "1 1 1 1")
    with pytest.warns(UserWarning, match=r"chain 1 \('# Answer' in a step\), chain 2 \(a tag .*chain 3 \(empty step"):
        assert state.write(tmp_path / "rows.jsonl") == 1
    assert [c.problem.prompt for c in Rows(tmp_path / "rows.jsonl")] == ["d"]


def test_where_rows_may_go(tmp_path):
    state = session(journal=tmp_path / "anna.jsonl")
    with pytest.raises(WorkbenchError, match="is the journal"):
        state.write(tmp_path / "anna.jsonl")
    with pytest.raises(WorkbenchError, match="end in .jsonl or .json"):
        state.write(tmp_path / "rows.txt")


def test_published_rows_can_be_labelled_again(tmp_path):
    """PRM800K in, PRM800K out: a labeller who says what was said before gives the same labels."""
    source = ROOT.parent / "shared" / "data" / "prm800k" / "raw_schema_samples.jsonl"
    if not source.exists():
        pytest.skip("no ../shared/data beside the project")
    given = list(Rows(source))
    state = session(given, stop_at_error=False)
    while state.step is not None:
        state.rate({None: None, 0.0: -1, 1.0: 1}[given[state.chain].labels[state.step]])
    assert state.write(tmp_path / "rows.jsonl") == len(given)
    assert [(c.trace, c.labels) for c in Rows(tmp_path / "rows.jsonl")] == [(c.trace, c.labels) for c in given]


# --- agreement ---


@settings(max_examples=100, deadline=None)
@given(pairs=st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.sampled_from([-1, 0, 1])), min_size=1, max_size=30))
@pytest.mark.filterwarnings("ignore")
def test_kappa_is_sklearns_where_that_is_a_number(pairs):
    from sklearn.metrics import cohen_kappa_score

    a, b = zip(*pairs, strict=True)
    ours, theirs = kappa(a, b).kappa, cohen_kappa_score(a, b)
    if len({*a, *b}) == 1:
        assert ours is None and np.isnan(theirs)
    else:
        assert ours == pytest.approx(theirs, abs=1e-12)


def test_kappa_where_little_can_be_said():
    """Bugs: NaN; a certain-looking ±0 after full agreement on few steps."""
    assert kappa([1, 1], [1, 1])[:5] == (None, None, None, None, 1.0)
    assert kappa([1, -1, 1], [1, -1, 1])[:5] == (1.0, None, None, None, 1.0)
    assert kappa([1], [-1])[:2] == (0.0, None)
    assert str(kappa([1, 1], [1, 1])) == "kappa undefined, 100% agreed; 2 steps, 2 problems"
    with pytest.raises(WorkbenchError, match="no step was rated by both"):
        kappa([1, None], [None, 1])
    with pytest.raises(WorkbenchError, match="not about the same chains: 1 steps"):
        kappa([1, 1], [1])


def test_standard_error_is_the_asymptotic_one_where_steps_are_independent():
    """Against Fleiss, Cohen and Everitt (1969), written from the paper."""
    rng = np.random.default_rng(3)
    a = rng.choice([-1, 0, 1], 600, p=[0.3, 0.2, 0.5])
    b = np.where(rng.random(600) < 0.7, a, rng.choice([-1, 0, 1], 600))
    p = np.array([[np.mean((a == i) & (b == j)) for j in (-1, 0, 1)] for i in (-1, 0, 1)])
    row, column = p.sum(1), p.sum(0)
    seen, chance = np.trace(p), row @ column
    value = (seen - chance) / (1 - chance)
    first = sum(p[i, i] * (1 - (row[i] + column[i]) * (1 - value)) ** 2 for i in range(3))
    second = (1 - value) ** 2 * sum(p[i, j] * (column[i] + row[j]) ** 2 for i in range(3) for j in range(3) if i != j)
    variance = (first + second - (value - chance * (1 - value)) ** 2) / (600 * (1 - chance) ** 2)
    found = kappa(a.tolist(), b.tolist())
    assert found.kappa == pytest.approx(value) and found.se == pytest.approx(variance**0.5, rel=0.08)
    assert found.low == pytest.approx(value - 1.96 * found.se, abs=0.02)


def test_steps_of_one_problem_are_not_independent():
    """Bug: ten copies of the same step taken for ten times the evidence."""
    rng = np.random.default_rng(0)
    a = rng.choice([-1, 1], 60).tolist()
    b = [x if rng.random() < 0.7 else -x for x in a]
    problems = [chain(str(i), *[f"{j}" for j in range(10)]) for i in range(60)]
    left, right = ([Labelled(*item, (float(x > 0),) * 10) for item, x in zip(problems, s, strict=True)] for s in (a, b))
    many, few = kappa(left, right), kappa(a, b)
    assert (many.n, many.problems) == (600, 60) and many.kappa == pytest.approx(few.kappa)
    assert many.se == pytest.approx(few.se, rel=0.1)


def test_two_labellers(tmp_path):
    """Bug: steps behind an error that only one of them found are counted as disagreement."""
    anna = press(session(journal=tmp_path / "anna.jsonl"), "1 1 1 1 - 1 1")
    ben = press(session(journal=tmp_path / "ben.jsonl", labeller="ben"), "1 - 1 1 1 1 0")
    found = kappa(anna, ben)
    assert (found.n, found.problems) == (6, 3) and found.agreed == pytest.approx(3 / 6)
    with pytest.raises(WorkbenchError, match="not about the same chains"):
        kappa(anna, session(ITEMS[:2]))


def test_a_labeller_against_labels():
    """Bug: a neutral rating, 0, was the wrong of a label, 0.0, and a wrong one, -1, agreed with nothing."""
    gold = [Labelled(*item, (1.0,) * (len(item[1].steps) - 1) + (0.0,)) for item in ITEMS]
    rated = session(stop_at_error=False)
    for row in gold:
        press(rated, "1 " * (len(row.labels) - 1) + "-")
    assert (kappa(rated, gold).kappa, kappa(gold, rated).kappa, kappa(rated.labelled(), gold).kappa) == (1, 1, 1)
    neutral = press(session(stop_at_error=False), "0 " * sum(len(row.labels) for row in gold))
    assert kappa(neutral, gold).kappa == 0 and kappa(neutral, rated).kappa == 0
    soft = [row._replace(labels=tuple(max(x, 0.4) for x in row.labels)) for row in gold]
    for sides in ((soft, soft), (rated, soft)):
        with pytest.raises(WorkbenchError, match="a label of 0.4 is none of right or wrong: say from where on"):
            kappa(*sides)


# --- the widget, without a browser ---

HOSTILE = '<script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'


def test_widget_state_follows_messages():
    pytest.importorskip("anywidget")
    widget = labeller.Labeller(ITEMS, labeller="anna")
    widget._handle_custom_msg({"key": "1", "chain": 0}, [])
    assert widget.state["step"] == 1 and widget.state["steps"][0]["said"] == "right" and widget.state["error"] == ""
    json.dumps(widget.state)


def test_widget_tells_an_error_on_the_page(tmp_path):
    pytest.importorskip("anywidget")
    path = tmp_path / "anna.jsonl"
    widget = labeller.Labeller(ITEMS, path, "anna")
    press(session(journal=path), "1")
    widget._handle_custom_msg({"key": "1", "chain": 0}, [])
    assert "written to from elsewhere" in widget.state["error"] and widget.state["step"] == 0


def test_without_a_script_there_is_a_table_of_escaped_text():
    pytest.importorskip("anywidget")
    widget = labeller.Labeller([chain(HOSTILE, HOSTILE)], labeller=HOSTILE)
    page = widget._repr_mimebundle_()[0]["text/html"]
    assert page.count("&lt;script&gt;") == 3 and "<script" not in page and "<img" not in page


def test_without_anywidget_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['anywidget'] = None\n"
        "from workbench.widgets import Labeller, kappa\n"
        "print(kappa([1, 0], [1, 1]).n); Labeller([], labeller='a')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "2\n" and "pip install 'workbench[widgets]'" in done.stderr.splitlines()[-1]


def test_the_page_needs_no_network_and_is_shipped():
    script, style = ((FOLDER / f"labeller.{end}").read_text() for end in ("js", "css"))
    assert not re.findall(r"https?:|@import|url\(|\bimport\b|innerHTML|insertAdjacentHTML|fetch\(", script + style)
    package = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    shipped = {path.name for pattern in package["workbench.widgets"] for path in FOLDER.glob(pattern)}
    assert {"labeller.js", "labeller.css"} <= shipped


def test_the_colours_are_those_of_the_figures():
    style = (FOLDER / "labeller.css").read_text()
    wrong, _, right = (ink for _, ink in plots.SCALE)
    for name, ink in {"ink": plots.INK, "right": right, "wrong": wrong, "now": plots.colour("majority")}.items():
        assert re.search(rf"--wl-{name}: {ink};", style, re.IGNORECASE), name


def test_letters_can_be_read_in_both_themes():
    """WCAG AA: a contrast of 4.5 between every text colour and every ground it may stand on."""

    def luminance(ink):
        parts = [int(ink[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    blocks = re.findall(r"\{[^}]*--wl-ink:[^}]*\}", (FOLDER / "labeller.css").read_text())
    assert len(blocks) == 2
    for block in blocks:
        inks = dict(re.findall(r"--wl-([\w-]+): (#\w{6})", block))
        pairs = [(ink, ground) for ink in ("ink", "faint") for ground in ("paper", "soft", "now-tint")]
        pairs += [(ink, ground) for ink in ("right", "neutral", "wrong") for ground in ("paper", f"{ink}-tint")]
        pairs += [(ink, f"{tint}-tint") for ink in ("ink", "faint") for tint in ("right", "neutral", "wrong")]
        for ink, ground in pairs:
            low, high = sorted(luminance(inks[name]) for name in (ink, ground))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, ground)


# --- the widget, in browsers ---

NOTEBOOK = rf"""
from workbench.types import Problem, Step, Trace
from workbench.widgets import Labeller

steps = [["2+3=5", {HOSTILE!r}, "so 5"], [r"x = \frac{{1}}{{2}}", "so 6", "so 7"], ["9-4=5", "so 5"]]
problems = [Problem(f"p/{{i}}", "toy", f"Problem {{i}} <b>", "5") for i in range(3)]
items = [(problem, Trace(tuple(map(Step, texts)))) for problem, texts in zip(problems, steps)]
labeller = Labeller(items, "anna.jsonl", "anna")
labeller
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    pytest.importorskip("anywidget")
    if doctor.browser() is None:
        pytest.skip("no Chromium here: see `python -m workbench doctor`")
    with sync_api.sync_playwright() as play:
        window = play.chromium.launch(executable_path=doctor.browser(), args=FLAGS, timeout=120_000)
        yield window
        window.close()


@pytest.fixture
def page(chromium):
    """A page that lets nothing out of this machine; `page.trouble` lists what went wrong in it."""
    page = chromium.new_page(viewport={"width": 1100, "height": 1000})
    page.set_default_timeout(120_000)  # the machine may be busy
    page.trouble = []
    page.on("pageerror", lambda error: page.trouble.append(str(error)))
    page.route(re.compile(r"^https?://(?!127\.0\.0\.1)"), lambda route: route.abort())
    yield page
    page.close()


@contextmanager
def serving(folder, *command, health):
    """A notebook server in `folder`, with no settings but its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = {name: str(folder / ".home" / name) for name in ("HOME", "XDG_CONFIG_HOME", "JUPYTER_CONFIG_DIR")}
    home |= {name: str(folder / ".home" / name) for name in ("JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    for path in home.values():
        Path(path).mkdir(parents=True)
    env = {**os.environ, **home, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [word.format(port=port) for word in command]
    with open(folder / "server.log", "w") as log:
        server = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(address + health, timeout=5).close()
                break
            except OSError:
                if server.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"the server did not start: {(folder / 'server.log').read_text()[-2000:]}")
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def said(page):
    return [row.get_attribute("data-said") for row in page.get_by_test_id(re.compile(r"^step-\d+$")).all()]


def drive(page, folder, name):
    """Label three chains by keys and by mouse; what the journal then holds is known beforehand."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)

    def shows(*marks):
        for i, mark in enumerate(marks):
            expect(page.get_by_test_id(f"step-{i}")).to_have_attribute("data-said", mark)

    root, keyboard = page.get_by_test_id("labeller"), page.keyboard
    expect(root).to_be_visible()
    expect(page.get_by_test_id("step-1")).to_contain_text("<script>")
    expect(page.get_by_test_id("problem")).to_have_text("Problem 0 <b>")
    page.get_by_test_id("steps").click(position={"x": 200, "y": 10})  # focus, and the step that is asked anyway
    keyboard.press("1")
    shows("right", "open", "open")
    keyboard.press("d")  # which deletes a cell of JupyterLab
    keyboard.press("d")
    keyboard.press("Space")
    shows("right", "skipped", "open")
    keyboard.press("u")
    shows("right", "open", "open")
    keyboard.press("/")
    shows("right", "neutral", "open")
    keyboard.press("?")
    expect(page.get_by_test_id("help")).to_be_visible()
    shot(page, root, f"{name}-help")
    keyboard.press("Escape")
    expect(page.get_by_test_id("help")).to_be_hidden()
    page.get_by_test_id("key-right").click()
    expect(page.get_by_test_id("progress")).to_contain_text("chain 2 of 3")
    expect(page.get_by_test_id("step-0")).to_contain_text(r"x = \frac{1}{2}")
    keyboard.press("+")  # the keys go on after a click
    shows("right", "open", "open")
    shot(page, root, name)
    keyboard.press("-")
    expect(page.get_by_test_id("progress")).to_contain_text("chain 3 of 3")
    expect(page.get_by_test_id("note")).to_have_text("chain 2, step 2: wrong")
    keyboard.press("p")
    shows("right", "wrong", "unasked")
    shot(page, root, f"{name}-error")
    keyboard.press("n")
    shows("open", "open")
    page.get_by_test_id("key-skip").click()
    shows("skipped", "open")
    keyboard.press("0")
    expect(page.get_by_test_id("progress")).to_contain_text("all labelled")
    shot(page, root, f"{name}-done")
    assert "owned" not in page.title()
    rows = [json.loads(line) for line in (folder / "anna.jsonl").read_text().splitlines()[1:]]
    assert [(row["do"], row.get("chain"), row.get("step"), row.get("rating")) for row in rows] == [
        ("go", 0, 0, None),
        ("rate", 0, 0, 1),
        ("rate", 0, 1, None),
        ("undo", None, None, None),
        ("rate", 0, 1, 0),
        ("rate", 0, 2, 1),
        ("rate", 1, 0, 1),
        ("rate", 1, 1, -1),
        ("go", 1, None, None),
        ("go", 2, 0, None),
        ("rate", 2, 0, None),
        ("rate", 2, 1, 0),
    ]
    assert 0 < sum(row["seconds"] for row in rows) < 300


def shot(page, root, name):
    if folder := os.environ.get("LABELLER_SHOTS"):
        root.screenshot(path=Path(folder) / f"{name}.png")


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("mode, shown", [("run", "labeller"), ("edit", "marimo.ui.anywidget(labeller)")])
def test_in_marimo(page, tmp_path, mode, shown):
    cell = re.sub("labeller$", f"import marimo\n{shown}", NOTEBOOK.strip()).replace("\n", "\n    ")
    (tmp_path / "app.py").write_text(
        f"import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    {cell}\n    return\n"
    )
    (tmp_path / "pyproject.toml").write_text("[tool.marimo.runtime]\nauto_instantiate = true\n")
    command = f"marimo -q {mode} app.py --headless --no-token --host 127.0.0.1 --port {{port}}".split()
    with serving(tmp_path, *command, health="/health") as address:
        page.goto(address)
        drive(page, tmp_path, f"marimo-{mode}")
    assert not page.trouble


@pytest.mark.browser
@pytest.mark.slow
def test_in_jupyterlab(page, tmp_path):
    import nbformat

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(NOTEBOOK.strip())])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "book.ipynb")
    command = "jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token="
    command += " --LabApp.expose_app_in_browser=True --LabApp.news_url=None"
    with serving(tmp_path, *command.split(), health="/api") as address:
        page.goto(f"{address}/lab/tree/book.ipynb")
        page.get_by_text("| Idle").wait_for()
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        drive(page, tmp_path, "jupyterlab")
        page.evaluate("void window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.locator(".workbench-labeller[data-theme=dark]").wait_for()
        shot(page, page.get_by_test_id("labeller"), "jupyterlab-dark")
    assert not page.trouble


def test_a_journal_that_may_not_be_written_is_told(tmp_path, monkeypatch):
    """Bug: the handler cut the file that could not be written, which raised again, so keys went dead without a word."""
    session = Session(ITEMS, tmp_path / "j.jsonl", "a")
    session.press("1")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("os.truncate", refused)
    with pytest.raises(
        WorkbenchError, match="cannot be written .Permission denied., so the last action does not count"
    ):
        session.press("1")


def test_rows_may_be_packed(tmp_path):
    """Bug: `x.jsonl.gz` was refused with a message that allows it."""
    session = Session(ITEMS, None, "a")
    session.press("1")
    session.write(tmp_path / "rows.jsonl")
    session.write(tmp_path / "rows.jsonl.gz")
    one, two = (list(Rows(tmp_path / name)) for name in ("rows.jsonl", "rows.jsonl.gz"))
    assert one == two and one
