"""A person rates the steps of chains, one key a step: the state, its journal, agreement, PRM800K lines, the widget.

    labeller = Labeller(items, "labels/anna.jsonl", "anna")     # the last line of a cell; then press 1, 0 or -
    labeller.labelled()                                         # chains with labels, for a verifier
    labeller.write("labels/anna-prm800k.jsonl")                 # read back by `stepdata.Rows`
    kappa(labeller, Labeller(items, "labels/ben.jsonl", "ben"))

All state is `Session`'s, in Python; the script in the page shows it and sends keys. Left out: typeset mathematics (a
step is shown as the plain text it is, LaTeX included) and several completions a step, as PRM800K's labellers had.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import stepdata
from ..stepdata.prm800k import ANSWER
from ..types import Labelled, Problem, Trace, WorkbenchError

try:
    import anywidget
    import traitlets
except ImportError:  # state, agreement and files need neither
    anywidget = None

RATINGS = {1: "right", 0: "neutral", -1: "wrong", None: "skipped"}  # PRM800K's; a neutral step is no error
KEYS = {
    "1": "right",
    "+": "right",
    "0": "neutral",
    "/": "neutral",
    "-": "wrong",
    " ": "skip",
    "u": "undo",
    "n": "next chain",
    "p": "previous chain",
    "ArrowDown": "next step",
    "ArrowUp": "previous step",
}
_DONE = "nothing is left to ask here: choose a step with ↑ ↓ to change it"
_RATED = {"right": 1, "neutral": 0, "wrong": -1, "skip": None}
_MOVES = {"next chain": (1, 0), "previous chain": (-1, 0), "next step": (0, 1), "previous step": (0, -1)}
DRAWS = 2000


class Session:
    """One labeller over fixed items: which step is asked, what was said, how long it took. No browser, no widget.

    `items`: (problem, trace) pairs, or `Labelled`, whose labels are not shown. A step that chains of one problem share
    from their beginning is asked once. `journal`: a JSON-lines file, made where absent; every action is appended to it
    before it counts, and reopening it goes on exactly where it stopped. None keeps nothing. `stop_at_error`: after a
    wrong step the rest of its chain is not asked and has no label; None is as the journal has it, at first True.
    `chain` and `step` are what is asked now, from 0; `step` is None in a chain with nothing left to ask. `clock`
    returns seconds. Errors: no items, no name, a journal of other items or another labeller, a damaged line (a
    half-written last line is cut off with a warning), a journal that something else has written to since.

    >>> from workbench.types import Step
    >>> chain = Trace((Step("2+3=6"), Step("6", final=True)))
    >>> session = Session([(Problem("p/1", "arithmetic", "2+3", "5"), chain)], labeller="anna")
    >>> session.press("-")
    >>> session.labelled()[0].labels, session.progress
    ((0.0, None), 'all labelled: 1 chain')
    """

    def __init__(
        self,
        items: Iterable[Labelled | tuple[Problem, Trace]],
        journal: str | Path | None = None,
        labeller: str = "",
        stop_at_error: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.items = [_item(i, item) for i, item in enumerate(items)]
        if not self.items:
            raise WorkbenchError("there is nothing to label: give at least one (problem, trace)")
        if not isinstance(labeller, str) or not labeller.strip():
            raise WorkbenchError("say who labels: labeller='your name', which the journal and the rows then carry")
        self.labeller, self.stop_at_error = labeller, True
        self.hash = hashlib.blake2b(
            json.dumps([[p.prompt, [[s.text, s.final] for s in t.steps]] for p, t in self.items]).encode(),
            digest_size=16,
        ).hexdigest()
        ids: dict[tuple, int] = {}
        self._nodes = [[ids.setdefault(key, len(ids)) for key in _keys(*item)] for item in self.items]
        self._steps = list(ids)
        self._said: dict[int, int | None] = {}  # node -> rating; absent: not asked yet
        self._spent = [0.0] * len(ids)  # seconds
        self._undo: list[tuple[int, int, bool, int | None]] = []
        self._clock, self._since, self._acted, self.note = clock, clock(), False, ""
        self.chain, self.step = 0, None
        self._advance(-1, -1)
        self.path = None if journal is None else Path(journal)
        if self.path:
            self._open()
        if stop_at_error is not None and stop_at_error != self.stop_at_error:
            self._act({"do": "stop", "on": bool(stop_at_error)})
        self._acted = False

    # --- what a labeller does ---

    def press(self, key: str, chain: int | None = None) -> None:
        """Do what a key of `KEYS` stands for; any other key does nothing.

        `chain` is the one that the labeller had in view: a key typed ahead of a chain's end is no rating of the next.
        """
        name = KEYS.get(key)
        if name is None or (chain is not None and chain != self.chain and name != "undo"):
            return
        if name in _RATED:
            self.rate(_RATED[name])
        elif name == "undo":
            self.undo()
        else:
            chains, steps = _MOVES[name]
            here = self.step if self.step is not None else self._asked(self.chain) if steps < 0 else -1
            self.go(self.chain + chains, here + steps if steps else None)

    def rate(self, rating: int | None) -> None:
        """Say 1, 0 or −1 of the step that is asked (None skips it), and go on to the next open one."""
        if rating not in RATINGS:
            raise WorkbenchError(f"a rating is 1, 0, -1 or None, not {rating!r}")
        if self.step is None:
            self.note = _DONE
            return
        where = f"chain {self.chain + 1}, step {self.step + 1}"
        self._act({"do": "rate", "chain": self.chain, "step": self.step, "rating": rating})
        self.note = f"{where}: {RATINGS[rating]}"

    def undo(self) -> None:
        """Take the last rating back, however long ago it was, and ask its step again."""
        if not self._undo:
            self.note = "nothing to undo"
            return
        chain, step, *_ = self._undo[-1]  # behind an error nothing is asked, and there is no step to stand on
        self._act({"do": "undo"})
        self.note = f"taken back: chain {chain + 1}, step {step + 1}"

    def go(self, chain: int, step: int | None = None) -> None:
        """Look at a chain, at one of its asked steps, or (None) at its first open one. Out of range stays put."""
        if not 0 <= chain < len(self.items):
            self.note = "this is the first chain" if chain < 0 else "this is the last chain"
        elif step is None or 0 <= step < self._asked(chain):
            self._act({"do": "go", "chain": chain, "step": self._open_step(chain) if step is None else step})
            self.note = "" if self.step is not None else _DONE

    def stop(self, on: bool) -> None:
        """Switch `stop_at_error`: what was said of steps behind an error is hidden, not lost."""
        self._act({"do": "stop", "on": bool(on)})
        self.note = "after an error: next chain" if on else "after an error: every step is asked"

    def look(self) -> None:
        """The labeller has the first step in view: its time begins now, and not when the cell ran."""
        if not self._acted:
            self._since = self._clock()

    def hear(self, message: Mapping[str, Any]) -> None:
        """A message of the page: {key, chain}, {step, chain}, {stop} or {look}. An unknown one does nothing."""
        chain = message.get("chain")
        if isinstance(message.get("key"), str):
            self.press(message["key"], chain)
        elif type(message.get("step")) is int and chain == self.chain:
            self.go(chain, message["step"])
        elif type(message.get("stop")) is bool:
            self.stop(message["stop"])
        elif message.get("look"):
            self.look()

    # --- what came of it ---

    def ratings_of(self, chain: int) -> tuple[int | None, ...]:
        """1, 0, −1 for each step of a chain; None where skipped, not asked yet, or behind the error that stops it."""
        said = [self._said.get(node) for node in self._nodes[chain]]
        asked = self._asked(chain)
        return (*said[:asked], *[None] * (len(said) - asked))

    @property
    def ratings(self) -> dict[tuple, int | None]:
        """The same for every distinct step: (problem, its steps up to this one) -> rating. What `kappa` compares."""
        found = {}
        for chain, nodes in enumerate(self._nodes):
            found.update(zip((self._steps[node] for node in nodes), self.ratings_of(chain), strict=True))
        return found

    def seconds_of(self, chain: int) -> tuple[float, ...]:
        """Seconds that each step of a chain was in question, corrections included, pauses too."""
        return tuple(round(self._spent[node], 2) for node in self._nodes[chain])

    def labelled(self) -> list[Labelled]:
        """Every item with its labels: wrong 0, right and neutral 1 (Lightman et al. 2023), None where nobody said."""
        labels = ([stepdata.rating(x) for x in self.ratings_of(chain)] for chain in range(len(self.items)))
        return [Labelled(*item, tuple(row)) for item, row in zip(self.items, labels, strict=True)]

    def rows(self) -> Iterator[dict]:
        """PRM800K's own rows, one for each chain with a rating; `total_time` is in milliseconds, a shared step's once.

        A step that was skipped or not asked has rating None and stays, so that nothing is lost on the way back.
        """
        counted: set[int] = set()
        for chain, (problem, trace) in enumerate(self.items):
            ratings, nodes = self.ratings_of(chain), self._nodes[chain]
            if all(rating is None for rating in ratings):
                continue
            steps = []
            for step, mark in zip(trace.steps, ratings, strict=True):
                text = f"{ANSWER}\n\n{step.text}" if step.final else step.text
                completions = [{"text": text, "rating": mark, "flagged": False}]
                steps.append({"completions": completions, "human_completion": None, "chosen_completion": 0})
            spent = sum(self._spent[node] for node in nodes if node not in counted)
            counted.update(nodes)
            ended = "found_error" if -1 in ratings else "solution" if self._open_step(chain) is None else "give_up"
            yield {
                "labeler": self.labeller,
                "question": {"problem": problem.prompt, "ground_truth_answer": problem.answer},
                "label": {"steps": steps, "total_time": round(1000 * spent), "finish_reason": ended},
            }

    def write(self, path: str | Path) -> int:
        """Write `rows` as JSON lines, over what was there; returns how many.

        `stepdata.Rows` reads them back to the labels of `labelled` (a chain that is no more than the beginning of the
        next comes back as that one). A chain that it would not read (a step that is empty, or holds a channel tag or
        PRM800K's answer mark) is left out with a warning that says which and why.
        """
        path = Path(path)
        if self.path and path.resolve() == self.path.resolve():
            raise WorkbenchError(f"{path} is the journal: give the rows another name")
        if not path.name.endswith(stepdata.ENDINGS[:2]):
            raise WorkbenchError(f"{path}: rows of step labels end in {' or '.join(stepdata.ENDINGS[:2])}")
        chains = self.labelled()
        rated = [n for n, chain in enumerate(chains, 1) if any(label is not None for label in chain.labels)]
        lines, lost = [], []
        for number, row in zip(rated, self.rows(), strict=True):
            if why := _unreadable(chains[number - 1]):
                lost.append(f"chain {number} ({why})")
            else:
                lines.append(json.dumps(row) + "\n")
        if lost:
            warnings.warn(f"{path}: left out {', '.join(lost)}", stacklevel=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(lines).encode()
        path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
        return len(lines)

    # --- how far it is ---

    @property
    def done(self) -> int:
        """How many chains have nothing left to ask."""
        return sum(self._open_step(chain) is None for chain in range(len(self.items)))

    @property
    def left(self) -> float | None:
        """Seconds of work left, None before three ratings: mean time of a step (a pause counts as five medians at
        most) × open steps × the share of steps that finished chains were asked."""
        times = [self._spent[node] for node in self._said if self._spent[node] > 0]
        if len(times) < 3:
            return None
        most = 5 * statistics.median(times)
        a_step = statistics.fmean(min(seconds, most) for seconds in times)
        todo: set[int] = set()
        asked = steps = 0
        for chain, nodes in enumerate(self._nodes):
            if self._open_step(chain) is None:
                asked, steps = asked + self._asked(chain), steps + len(nodes)
            else:
                todo.update(node for node in nodes[: self._asked(chain)] if node not in self._said)
        return a_step * len(todo) * (asked / steps if steps else 1)

    @property
    def progress(self) -> str:
        """Where the labeller is, and about how long it still takes."""
        count = len(self.items)
        if self.done == count:
            return f"all labelled: {count} chain{'s' * (count > 1)}"
        left = self.left
        return f"chain {self.chain + 1} of {count}" + ("" if left is None else f", {duration(left)} left")

    def view(self) -> dict[str, Any]:
        """All that the page shows, as JSON: the chain in view and where the labeller is in it."""
        problem, trace = self.items[self.chain]
        ratings, asked = self.ratings_of(self.chain), self._asked(self.chain)
        steps = []
        for i, (step, node) in enumerate(zip(trace.steps, self._nodes[self.chain], strict=True)):
            said = "unasked" if i >= asked else RATINGS[ratings[i]] if node in self._said else "open"
            steps.append({"text": step.text, "final": step.final, "said": said})
        return {
            "problem": problem.prompt,
            "steps": steps,
            "chain": self.chain,
            "step": self.step,
            "chains": len(self.items),
            "done": self.done,
            "progress": self.progress,
            "note": self.note,
            "labeller": self.labeller,
            "journal": self.path and self.path.name,
            "stop": self.stop_at_error,
            "error": "",
        }

    # --- inside ---

    def _asked(self, chain: int) -> int:
        """How many steps of a chain are asked: all, or those up to its first error."""
        nodes = self._nodes[chain]
        wrong = (i + 1 for i, node in enumerate(nodes) if self._said.get(node) == -1)
        return next(wrong, len(nodes)) if self.stop_at_error else len(nodes)

    def _open_step(self, chain: int, after: int = -1) -> int | None:
        """The first open step behind `after`, else the first of all, else None."""
        nodes = self._nodes[chain][: self._asked(chain)]
        todo = [i for i, node in enumerate(nodes) if node not in self._said]
        return next((i for i in todo if i > after), todo[0] if todo else None)

    def _advance(self, chain: int, step: int) -> None:
        """To the next open step: of this chain, of those behind it, of those before it; else nothing is asked here."""
        order = [*range(max(chain, 0), len(self.items)), *range(max(chain, 0))]
        for other in order:
            found = self._open_step(other, step if other == chain else -1)
            if found is not None:
                self.chain, self.step = other, found
                return
        self.step = None

    def _act(self, action: dict[str, Any]) -> None:
        now = self._clock()
        action["seconds"] = round(max(now - self._since, 0.0), 2)
        action["at"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._append(action)
        self._apply(action)
        self._since, self._acted = now, True

    def _apply(self, action: Mapping[str, Any]) -> None:
        """The one way in which state changes, live and on reopening."""
        if self.step is not None:
            self._spent[self._nodes[self.chain][self.step]] += float(action["seconds"])
        match action["do"]:
            case "rate":
                chain, step, mark = action["chain"], action["step"], action["rating"]
                if mark not in RATINGS or type(mark) not in (int, type(None)):
                    raise ValueError(mark)
                node = self._node(chain, step)
                self._undo.append((chain, step, node in self._said, self._said.get(node)))
                self._said[node] = mark
                self._advance(chain, step)
            case "undo":
                self.chain, self.step, there, mark = self._undo.pop()
                node = self._node(self.chain, self.step)
                if there:
                    self._said[node] = mark
                else:
                    del self._said[node]
                if self.step >= self._asked(self.chain):  # behind an error, since `stop_at_error` was switched on
                    self.step = self._open_step(self.chain)
            case "go":
                chain, step = action["chain"], action["step"]
                self._node(chain, step or 0)
                self.chain, self.step = chain, step
            case "stop":
                self.stop_at_error = action["on"] is True
                self.step = self._open_step(self.chain)
            case other:
                raise ValueError(other)

    def _node(self, chain: int, step: int) -> int:
        if chain < 0 or step < 0:
            raise IndexError(chain, step)
        return self._nodes[chain][step]

    def _open(self) -> None:
        path = self.path
        if path.is_dir():
            raise WorkbenchError(f"{path} is a folder: name a .jsonl file for the journal")
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes() if path.exists() else b""
        begin = _line({"journal": 1, "items": self.hash, "labeller": self.labeller})
        lines = raw.split(b"\n")
        half = lines.pop()  # what stands behind the last line end: nothing, or half a line
        if not lines and not begin.startswith(half):
            raise WorkbenchError(f"{path} is no labeller's journal: give another name")
        if lines:
            self._belongs(lines[0])
        if half:
            shown = half[:60].decode("utf-8", "replace")
            self.note = f"{path.name}: its last line was half-written and is cut off: {shown}"
            warnings.warn(f"{path}: the last line was half-written and is cut off: {shown}", stacklevel=4)
            os.truncate(path, len(raw) - len(half))
        self._size = len(raw) - len(half)
        if not lines:
            self._append(json.loads(begin))
        for number, line in enumerate(lines[1:], 2):
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise WorkbenchError(
                    f"{path}, line {number}, is not what a labeller writes: mend it, or begin another journal"
                ) from error

    def _belongs(self, line: bytes) -> None:
        """Refuse a journal that is not of these items and this labeller."""
        try:
            head = json.loads(line)
            theirs, name = head["items"], head["labeller"]
        except (ValueError, KeyError, TypeError) as error:
            raise WorkbenchError(f"{self.path} is no labeller's journal: give another name") from error
        if theirs != self.hash:
            raise WorkbenchError(
                f"{self.path} is a journal of other items (content {str(theirs)[:8]}, these are {self.hash[:8]}): "
                "give the items that it was begun with, in their order, or another journal"
            )
        if name != self.labeller:
            raise WorkbenchError(
                f"{self.path} is the journal of {name!r}, not of {self.labeller!r}: a labeller has a journal each"
            )

    def _append(self, row: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        line = _line(row)
        try:
            size = self.path.stat().st_size if self._size else 0
            if size != self._size:
                raise WorkbenchError(f"{self.path} was written to from elsewhere: run this cell again to go on from it")
            with open(self.path, "ab") as file:  # closing flushes; a crash of the machine may cost the last action
                file.write(line)
        except OSError as error:
            with suppress(OSError):  # what may not be written may not be cut either, nor was it written to
                os.truncate(self.path, self._size)
            raise WorkbenchError(
                f"{self.path} cannot be written ({error.strerror}), so the last action does not count: mend that, "
                "then go on"
            ) from error
        self._size += len(line)


class Agreement(NamedTuple):
    """Cohen's kappa of two labellers: 1 full agreement, 0 that of chance, None where chance alone agrees fully.

    `se`, `low` and `high` (95 %) come from resampling problems; None where that says nothing. `agreed` is the share of
    the `n` steps, rated by both, on which they said the same.
    """

    kappa: float | None
    se: float | None
    low: float | None
    high: float | None
    agreed: float
    n: int
    problems: int

    def __str__(self) -> str:
        value = "undefined" if self.kappa is None else f"{self.kappa:.2f}"
        interval = "" if self.se is None else f" ± {self.se:.2f} [{self.low:.2f} to {self.high:.2f}]"
        return f"kappa {value}{interval}, {self.agreed:.0%} agreed; {self.n} steps, {self.problems} problems"


def kappa(a: Any, b: Any, seed: int = 0) -> Agreement:
    """Cohen's kappa (1960) between two labellers over the same chains, unweighted: all disagreements count alike.

    `a`, `b`: a `Labeller` or `Session` each; or lists of `Labelled`; or two aligned sequences of ratings, None where
    unknown. Against labels a labeller's ratings are read as labels, so that neutral agrees with right. Steps that only
    one of them rated are left out, which after stopping at different errors is common.
    The error resamples problems, since the steps of one are not independent. Both always saying the same one thing
    leaves nothing to compare with chance: kappa is None (0/0). Errors: different chains, no step that both rated, a
    soft label.

    >>> print(kappa([1, 1, 0, -1, 1, 0], [1, 1, 0, -1, 0, None]))
    kappa 0.69 ± 0.31 [0.00 to 1.00], 80% agreed; 5 steps, 5 problems
    """
    a, b = (getattr(side, "session", side) for side in (a, b))
    if isinstance(a, Session) != isinstance(b, Session):  # 0 is neutral of the one, and wrong of the other
        a, b = (side.labelled() if isinstance(side, Session) else side for side in (a, b))
    a, b = _rated(a), _rated(b)
    if a.keys() != b.keys():
        raise WorkbenchError(
            f"the two sides are not about the same chains: {len(a.keys() ^ b.keys())} steps stand on one side only"
        )
    both = [step for step in a if a[step] is not None and b[step] is not None]
    if not both:
        raise WorkbenchError("no step was rated by both: let the second labeller rate chains that the first has rated")
    kinds = {kind: i for i, kind in enumerate(dict.fromkeys(side[step] for step in both for side in (a, b)))}
    problems = {name: i for i, name in enumerate(dict.fromkeys(step[0] for step in both))}
    tables = np.zeros((len(problems), len(kinds), len(kinds)))
    for step in both:
        tables[problems[step[0]], kinds[a[step]], kinds[b[step]]] += 1
    whole = tables.sum(0)
    value, agreed = _kappas(whole[None])[0], float(np.trace(whole) / whole.sum())
    se = low = high = None
    if len(problems) > 1 and agreed < 1:
        weights = np.random.default_rng(seed).multinomial(len(problems), [1 / len(problems)] * len(problems), DRAWS)
        drawn = _kappas(np.tensordot(weights, tables, 1))
        drawn = drawn[np.isfinite(drawn)]  # a draw in which all is one kind has none either
        if len(drawn) > DRAWS / 2:
            se, (low, high) = float(drawn.std()), map(float, np.quantile(drawn, [0.025, 0.975]))
    return Agreement(float(value) if np.isfinite(value) else None, se, low, high, agreed, len(both), len(problems))


def _kappas(tables: np.ndarray) -> np.ndarray:
    """Contingency tables [draws, k, k] -> kappa [draws]; NaN where chance agreement is 1."""
    share = tables / tables.sum((1, 2), keepdims=True)
    observed = np.trace(share, axis1=1, axis2=2)
    chance = (share.sum(1) * share.sum(2)).sum(1)
    with np.errstate(invalid="ignore"):
        return np.where(chance < 1, (observed - chance) / (1 - chance), np.nan)


def _unreadable(chain: Labelled) -> str | None:
    """Why `stepdata.Rows` would not read a chain back as it is; None where it would."""
    if any(ANSWER in step.text for step in chain.trace.steps):
        return f"{ANSWER!r} in a step"
    try:
        stepdata.check(chain)
    except stepdata.Reject as why:
        return str(why)
    return None


def _rated(side: Any) -> dict[tuple, Any]:
    """(problem, …) of a step -> rating."""
    if isinstance(side, Session):
        return side.ratings
    rows = list(side)
    if rows and all(isinstance(row, Labelled) for row in rows):
        if soft := [(row.problem.id, label) for row in rows for label in row.labels if label not in (0, 1, None)]:
            raise WorkbenchError(
                "{}: a label of {} is none of right or wrong: say from where on a step is right, such as "
                "chain._replace(labels=[None if x is None else float(x >= 0.5) for x in chain.labels])".format(*soft[0])
            )
        return {
            step: label
            for problem, trace, labels in rows
            for step, label in zip(_keys(problem, trace), labels, strict=True)
        }
    return {(i,): value for i, value in enumerate(rows)}


def _keys(problem: Problem, trace: Trace) -> list[tuple]:
    """A name for every step: its problem and all that was written up to it."""
    texts = tuple((step.text, step.final) for step in trace.steps)
    return [(problem.prompt, texts[: i + 1]) for i in range(len(texts))]


def _item(number: int, item: Any) -> tuple[Problem, Trace]:
    try:
        problem, trace = item[:2]
    except (TypeError, ValueError):
        problem = trace = None
    if not isinstance(problem, Problem) or not isinstance(trace, Trace):
        raise WorkbenchError(f"item {number} is a {type(item).__name__}: give (Problem, Trace) pairs, or Labelled")
    if not trace.steps:
        raise WorkbenchError(f"item {number} ({problem.id}) has no steps: leave it out, there is nothing to label")
    return problem, trace


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def duration(seconds: float) -> str:
    """
    >>> duration(20), duration(240), duration(5400)
    ('less than a minute', 'about 4 min', 'about 1 h 30 min')
    """
    minutes = round(seconds / 60)
    if seconds < 60:
        return "less than a minute"
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"


# --- the widget ---

if anywidget is None:

    def Labeller(*_, **__):
        raise WorkbenchError("the labeller needs anywidget: pip install 'workbench[widgets]'")

else:

    class Labeller(anywidget.AnyWidget):
        """`Session` as a widget, in JupyterLab and (also inside `mo.ui.anywidget`) in marimo; arguments as there.

        Keys: 1 or + right, 0 or / neutral, - wrong, space skips, u undoes, n and p change the chain, arrows choose a
        step, ? helps; every key has a button. Text is shown as text, never as markup, and mathematics as it is
        written. Nothing is fetched from a network. Where no script runs, the chain in view stands as a table.

        >>> from workbench.types import Step
        >>> chain = Trace((Step("2+3=6"), Step("6", final=True)))
        >>> Labeller([(Problem("p/1", "arithmetic", "2+3", "5"), chain)], labeller="anna").session.progress
        'chain 1 of 1'
        """

        _esm = Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
        _css = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
        state = traitlets.Dict().tag(sync=True)
        # a list, since a script's objects keep no order
        keymap = traitlets.List([list(pair) for pair in KEYS.items()]).tag(sync=True)

        def __init__(self, items, journal=None, labeller="", stop_at_error=None):
            self.session = Session(items, journal, labeller, stop_at_error)
            super().__init__(state=self.session.view())
            self.on_msg(self._hear)

        def labelled(self) -> list[Labelled]:
            return self.session.labelled()

        def write(self, path: str | Path) -> int:
            return self.session.write(path)

        def _hear(self, _, message: Mapping[str, Any], buffers: list) -> None:
            error = ""
            try:
                self.session.hear(message)
            except WorkbenchError as problem:  # said on the page: a callback's traceback is seen by nobody
                error = str(problem)
            self.state = self.session.view() | {"error": error}

        def _repr_mimebundle_(self, **kwargs):
            bundle = super()._repr_mimebundle_(**kwargs)
            if bundle is not None:
                bundle[0]["text/html"] = _table(self.session.view())
            return bundle


def _table(view: Mapping[str, Any]) -> str:
    """The chain in view without a script: for executed notebooks and viewers that run none."""
    cell = '<td style="text-align:left;padding:2px 10px;white-space:pre-wrap">'
    rows = [
        f"<tr>{cell}{'answer' if step['final'] else i}</td>{cell}{html.escape(step['text'])}</td>"
        f"{cell}{'' if step['said'] == 'open' else step['said'].replace('unasked', 'not asked')}</td></tr>"
        for i, step in enumerate(view["steps"], 1)
    ]
    head = f"<p>{html.escape(view['labeller'])}: {view['progress']}</p><p>{html.escape(view['problem'])}</p>"
    return f"{head}<table>{''.join(rows)}</table>"
