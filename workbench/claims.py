"""What the notebooks found, as rows: a number with its interval, a goal, and a verdict that only code can give."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from .pipeline import runs_folder
from .runs import write
from .scaling import Estimate, Ratio, over_trainings
from .types import WorkbenchError, aligned

Verdict = Literal["holds", "fails", "undecided", "not measured"]

_NUMBER = r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)"
GOAL = re.compile(rf"(>=|<=|>|<)\s*{_NUMBER}|in\s+{_NUMBER}\s*\.\.\s*{_NUMBER}", re.IGNORECASE)


def decide(estimate: Estimate | Ratio | None, goal: str) -> Verdict:
    """Does the whole 95 % interval meet `goal` (holds), does all of it miss it (fails), or neither (undecided)?

    Goals: "> 0", ">= .1", "< 0", "<= 1e-2", "in .3..7" (ends included). An estimate without an interval is undecided,
    whatever its value; an open end of a Ratio is as far as a ratio goes; None is not measured. Errors: a goal that does
    not read like these, an empty range, an interval that is not a number.

    >>> [decide(Estimate(0.2, low, 0.3, n=50), "> 0") for low in (0.1, -0.1)], decide(Estimate(-1, -2, 0, 9), "> 0")
    (['holds', 'undecided'], 'fails')
    """
    match = GOAL.fullmatch(goal.strip())
    if not match:
        raise WorkbenchError(f"cannot read the goal {goal!r}: write it like '> 0', '<= 0.1' or 'in 0.3..0.7'")
    sign, bound, start, end = match.groups()
    if start and float(start) > float(end):
        raise WorkbenchError(f"the goal {goal!r} is an empty range: put the smaller number first")
    if estimate is None:
        return "not measured"
    low, high = estimate.low, estimate.high
    if isinstance(estimate, Ratio):
        low, high = low or 0.0, sys.float_info.max if high is None else high
    if low is None or high is None:
        return "undecided"
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise WorkbenchError(f"{low} to {high} is not an interval")
    if start:
        start, end = float(start), float(end)
        return "holds" if start <= low and high <= end else "fails" if high < start or low > end else "undecided"
    meets = {">": lambda v: v > x, ">=": lambda v: v >= x, "<": lambda v: v < x, "<=": lambda v: v <= x}[sign]
    x = float(bound)
    # meeting a one-sided goal is monotone, so the two ends speak for the whole interval
    return {2: "holds", 1: "undecided", 0: "fails"}[meets(low) + meets(high)]


def measured(question: Callable, *args, **more):
    """What a function measures; or None, and the reason aloud: a policy that solves nothing follows no law.

    >>> measured(decide, Estimate(1, 0, 2, 9), "about 1")
    not measured: cannot read the goal 'about 1': write it like '> 0', '<= 0.1' or 'in 0.3..0.7'
    """
    try:
        return question(*args, **more)
    except WorkbenchError as error:
        print(f"not measured: {error}")


def told(
    estimate: Estimate | Ratio | None, goal: str, yes: str, no: str, open: str = "cannot be told from these problems"
) -> str:
    """The words that the interval allows: `yes` where the goal holds, `no` where it fails, else `open`.

    >>> told(Estimate(0.2, 0.1, 0.3, n=50), "> 0", "it helps", "it does not help")
    'it helps'
    """
    return {"holds": yes, "fails": no}.get(decide(estimate, goal), open)


@dataclass(frozen=True)
class Claim:
    """One finding. `text` says what would hold, `source` who said so (paper, or the o1 report), `goal` when it does;
    `said` is the source's own number, "" where it gives none. An `estimate` of None says that it was not measured:
    because it could not be, or, where `tried` is False, because what it takes was not built. An interval is over
    problems, or over `trainings` where they are several: see `summed`.

    The verdict is a property: it follows from the estimate and cannot be typed in, nor read from a file.

    >>> Claim("a.b", "o1 report", "search beats the vote", "> 0", Estimate(0.1, 0.02, 0.2, n=50)).verdict
    'holds'
    """

    id: str
    source: str
    text: str
    goal: str
    estimate: Estimate | Ratio | None
    said: str = ""
    trainings: int = 1
    tried: bool = True

    @property
    def verdict(self) -> Verdict:
        return decide(self.estimate, self.goal)

    def row(self) -> dict:
        """The claim as one flat JSON object."""
        rest = {"id": self.id, "source": self.source, "text": self.text, "goal": self.goal, "verdict": self.verdict}
        rest |= {"said": self.said, "trainings": self.trainings, "tried": self.tried}
        return rest | (asdict(self.estimate) if self.estimate else {})

    @property
    def interval(self) -> str:
        """The interval as text: a missing one is a dash, an open end a word."""
        e = self.estimate
        if isinstance(e, Ratio):
            return " to ".join("open" if end is None else f"{end:.3g}" for end in (e.low, e.high))
        return "–" if e is None or e.low is None else f"{e.low:.3g} to {e.high:.3g}"

    @property
    def value(self) -> str:
        return f"{getattr(self.estimate, 'bound', '')} {self.estimate.value:.3g}".strip() if self.estimate else "–"


def record(runs: str | Path, profile: str, notebook: str, claims: Iterable[Claim]) -> Path:
    """Write a notebook's claims to `runs/<profile>/claims/<notebook>.jsonl`, all or none; running it again replaces.

    Errors: the same id twice, a goal or interval that cannot be decided, a value outside its interval; the old file
    then stays.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as runs:
    ...     path = record(runs, "nano", "04_prm", [Claim("a.b", "me", "it works", "> 0", Estimate(1.0, 0.5, 1.5, 9))])
    ...     load(runs, "nano")[0].verdict
    'holds'
    """
    claims = list(claims)
    rows = [claim.row() for claim in claims]
    if strange := [claim for claim in claims if claim.estimate and not _inside(claim.estimate)]:
        raise WorkbenchError(f"{strange[0].id}: {strange[0].value} is not inside {strange[0].interval}")
    if len({row["id"] for row in rows}) < len(rows):
        raise WorkbenchError(f"{notebook} records a claim twice: {', '.join(row['id'] for row in rows)}")
    path = runs_folder(runs) / profile / "claims" / f"{notebook}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
    return path


def load(runs: str | Path, profile: str) -> list[Claim]:
    """All claims of a profile, by id; verdicts are decided again from the intervals. None recorded: an empty list.

    Errors: a row that cannot be read, or whose numbers cannot be, such as a value outside its interval (file and line
    named), an id that two notebooks record.
    """
    found: dict[str, tuple[Claim, Path]] = {}
    for path in sorted((runs_folder(runs) / profile / "claims").glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
                kind, last = (Ratio, "bound") if "bound" in row else (Estimate, "seeds")
                numbers = ("value", "low", "high", "n", last) if "value" in row else ()
                estimate = kind(*(row[name] for name in numbers)) if numbers else None
                told = (row[name] for name in ("id", "source", "text", "goal"))
                claim = Claim(*told, estimate, row.get("said", ""), *map(row.get, ("trainings", "tried"), (1, True)))
                claim.verdict  # noqa: B018  a goal that cannot be read is found here, not at the first print
                if estimate and not _inside(estimate):
                    raise ValueError(f"{estimate.value} is not inside {claim.interval}")
            except (ValueError, KeyError, TypeError, WorkbenchError) as error:
                raise WorkbenchError(
                    f"{path} line {number} is not a claim ({error}): delete it, run its notebook"
                ) from error
            if claim.id in found:
                raise WorkbenchError(f"{claim.id} is recorded by {found[claim.id][1].name} and by {path.name}")
            found[claim.id] = claim, path
    return [found[id][0] for id in sorted(found)]


def _inside(e: Estimate | Ratio) -> bool:
    """Is the value a number that lies in its interval?"""
    return math.isfinite(e.value) and (e.low is None or e.low <= e.value) and (e.high is None or e.value <= e.high)


def to_json(claims: Iterable[Claim] | Mapping[int, Iterable[Claim]]) -> str:
    """The claims of one training, or of several (`summed`), as a JSON list of objects, for machines; `each`: seed ->
    what that training says, where there are several.

    >>> json.loads(to_json([Claim("a.b", "me", "it works", "> 0", Estimate(1.0, None, None, 1))]))[0]["verdict"]
    'undecided'
    """
    told = []
    for claim, each in summed(claims):
        rows = {seed: other.row() for seed, other in each.items() if other}
        told.append(claim.row() | ({"each": rows} if rows else {}))
    return json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False)


HEADS = (  # of the columns of every table of claims
    "claim",
    "verdict",
    "value",
    "95 % interval",
    "over",
    "goal",
    "n",
    "samples",
    "each training",
    "the source says",
    "what would hold",
    "source",
)


def trainings(runs: str | Path, profile: str) -> dict[int, list[Claim]]:
    """{seed: claims}: what `load` finds, as seed 0, and what other seeds left in `runs/seed-<n>`."""
    runs = runs_folder(runs)
    again = {int(path.name[5:]): path for path in runs.glob("seed-*") if path.name[5:].isdigit()}
    found = {seed: load(path, profile) for seed, path in sorted({**again, 0: runs}.items())}
    return {seed: claims for seed, claims in found.items() if claims or not seed}


def summed(found: Iterable[Claim] | Mapping[int, Iterable[Claim]]) -> list[tuple[Claim, dict[int, Claim | None]]]:
    """(claim, {seed: what that training says}) of every claim of `trainings`; of one training, (claim, {}).

    Where three trainings or more tried the claim, its number is the mean of those that measured it and its interval is
    over them (`over_trainings`); if another could not, there is none. Where fewer did, the number is that of the first
    that measured it and its interval is over problems. One with another goal, which older code may
    have left, is told and not averaged; another kind of number, or a ratio that has no logarithm, counts as none.
    """
    found = found if isinstance(found, Mapping) else {0: found}
    by_id = {seed: {claim.id: claim for claim in claims} for seed, claims in found.items()}
    by_id = {seed: claims for seed, claims in by_id.items() if claims}
    out = []
    for id in dict.fromkeys(id for claims in by_id.values() for id in claims):
        each = {seed: claims.get(id) for seed, claims in by_id.items()}
        claim = next((c for c in each.values() if c and c.estimate), next(c for c in each.values() if c))
        asked = _asked(claim, each)
        numbers = [c.estimate for c in asked if type(c.estimate) is type(claim.estimate) and _fits(c.estimate)]
        if len(asked) > 2 and numbers:
            mean = over_trainings(numbers)
            mean = mean if len(numbers) == len(asked) else replace(mean, low=None, high=None)
            claim = replace(claim, estimate=mean, trainings=len(numbers))
        out.append((claim, each if len(by_id) > 1 else {}))
    return out


def _asked(claim: Claim, each: Mapping[int, Claim | None]) -> list[Claim]:
    """What those trainings say that tried this very claim."""
    return [c for c in each.values() if c and c.tried and c.goal == claim.goal]


def over(claim: Claim, each: Mapping[int, Claim | None] = {}) -> str:
    """What the interval of a claim from `summed` is over, or would be: problems, or so many trainings.

    >>> none, one = (Claim("a", "me", "it works", "> 0", e) for e in (None, Estimate(0.3, 0.2, 0.4, 50)))
    >>> [over(*pair) for pair in summed({0: [one], 1: [none], 2: [none]})], over(one)
    (['1 of 3 trainings'], 'problems')
    """
    tried = len(_asked(claim, each))
    if claim.estimate and tried > max(2, claim.trainings):
        return f"{claim.trainings} of {tried} trainings"
    return f"{claim.trainings} trainings" if claim.trainings > 1 else "problems"


def _fits(estimate: Estimate | Ratio | None) -> bool:
    """Can it be averaged?"""
    ratio = isinstance(estimate, Ratio)
    return estimate is not None and math.isfinite(estimate.value) and (not ratio or estimate.value > 0)


def cells(claim: Claim, each: Mapping[int, Claim | None] = {}) -> tuple[str, ...]:
    """What a table says of a claim under `HEADS`; `each`: seed -> the same claim of that training."""
    on = (str(getattr(claim.estimate, name, "–")) for name in ("n", "seeds"))
    told = (f"{seed}: " + (f"{c.value} {c.verdict}" if c and c.estimate else "–") for seed, c in each.items())
    numbers = (
        claim.value,
        claim.interval,
        over(claim, each),
        claim.goal,
        *on,
        "; ".join(told) or "–",
        claim.said or "–",
    )
    row = (claim.id, claim.verdict, *numbers, claim.text, claim.source)
    return tuple(" ".join(cell.split()) for cell in row)  # a line break in a text would break the table


def rows(found: Iterable[Claim] | Mapping[int, Iterable[Claim]]) -> list[tuple[str, ...]]:
    """`cells` of every claim of one training, or of several."""
    return [cells(claim, each) for claim, each in summed(found)]


def table(claims: Iterable[Claim] | Mapping[int, Iterable[Claim]]) -> str:
    """The claims of one training, or of several (`trainings`), as aligned plain text; a missing interval is a dash.

    >>> claim = Claim("a.b", "me", "it works", "> 0", Estimate(0.25, 0.125, 0.375, 50, 2), "about .3")
    >>> " ".join(table([claim]).splitlines()[1].split())
    'a.b holds 0.25 0.125 to 0.375 problems > 0 50 2 – about .3 it works me'
    """
    return aligned([HEADS, *rows(claims)])


def page(found: Mapping[int, list[Claim]], profile: str, date: str) -> str:
    """The claims of `trainings` as a Markdown page that says when and on what kind of machine they were measured.

    >>> claim = Claim("a.b", "me", "it works", "> 0", Estimate(0.25, 0.125, 0.375, 50, 2))
    >>> print(page({0: [claim], 1: [claim]}, "nano", "2026-11-01").splitlines()[-1])
    | a.b | holds | 0.25 | 0.125 to 0.375 | problems | > 0 | 50 | 2 | 0: 0.25 holds; 1: 0.25 holds | – | it works | me |
    """
    where = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    told = summed(found)
    count = {verdict: sum(claim.verdict == verdict for claim, _ in told) for verdict in get_args(Verdict)}
    lines = [
        "# What was found",
        "",
        f"Written by `make reproduce` on {date}; profile `{profile}`; {where}. A verdict follows from the interval: "
        "the whole of it meets the goal (holds), all of it misses it (fails), or neither (undecided).",
        "",
        _over(told),
        "",
        f"{len(told)} claims: " + ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n) + ". Nothing pays "
        f"for there being so many: were none true, about {len(told) / 40:.1f} would hold by luck.",
        "",
        "| " + " | ".join(HEADS) + " |",
        "|---" * len(HEADS) + "|",
    ]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells(*pair)) + " |" for pair in told]
    return "\n".join(lines) + "\n"


def _over(told: list[tuple[Claim, dict[int, Claim | None]]]) -> str:
    """What the intervals are over, and what became of the first training's verdicts."""
    seeds = list(told[0][1]) if told else []
    named = ", ".join(map(str, seeds))
    trained = (
        f"The series was trained with seeds {named}: other problems and other test problems each."
        if seeds
        else "Every model behind them was trained once."
    )
    one = "Where `over` says problems, the interval is over n problems (samples: chains of each) of one training."
    if len(seeds) < 3 or all(claim.trainings < 2 for claim, _ in told):
        again = f"`make reproduce SEED={max(seeds, default=0) + 1}` trains the series again; from three trainings on, "
        return f"{trained} {one} {again}intervals are over them."
    both = [(c.verdict, first.verdict) for c, each in told if c.trainings > 1 and (first := each[seeds[0]])]
    same, held = sum(over == first for over, first in both), [over for over, first in both if first == "holds"]
    return (
        f"{trained} Where `over` names trainings, the value is their mean and the interval Student's t over them (none "
        f"where another training could not measure it); n and samples are the fewest of any. {one} Of {len(both)} "
        f"claims over trainings {same} have the verdict that seed {seeds[0]} alone gives; of {len(held)} that hold "
        f"there {held.count('holds')} hold over trainings. Undecided often means too few trainings."
    )
