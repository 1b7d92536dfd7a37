"""Files of outcomes that others released, as records."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from ..grading import canonical
from ..types import Record, WorkbenchError


def game24(path: str | Path, method: str = "sampling") -> list[Record]:
    """A log of the Tree of Thoughts repository: puzzles × samples, marked by its own checker (Yao et al. 2023).

    The answer is what follows "Answer:"; the cost is not recorded for each sample and stays empty. Errors: no such
    file, a puzzle that is none (named).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.json"
    >>> _ = path.write_text(json.dumps([{"idx": 900, "ys": ["Answer: 4 * 6 = 24", "lost"], "accs": [1, 0]}]))
    >>> [(r.problem, r.seed, r.answer, r.correct) for r in game24(path)]
    [('game24/900', 0, '4 * 6 = 24', True), ('game24/900', 1, None, False)]
    """

    def puzzle(_, row: dict) -> list[Record]:
        marks = row["accs"] if "accs" in row else [info["r"] for info in row["infos"]]
        said = [text.partition("Answer:") for text in row["ys"]]
        id, knobs = f"game24/{row['idx']}", {"method": method, "n": 1}
        return [
            Record(Path(path).stem, id, i, answer.strip() if found else None, bool(right), knobs=knobs)
            for i, ((_, found, answer), right) in enumerate(zip(said, marks, strict=True))
        ]

    return _records(path, puzzle, lines=False)


def gsm8k(path: str | Path) -> list[Record]:
    """The solutions released with GSM8K (Cobbe et al. 2021): four methods, one solution a problem each.

    The methods are 6b_finetuning, 6b_verification, 175b_finetuning and 175b_verification. Right is the number after
    "A:" being that of the reference solution, by value. Errors: no such file, a line that is no problem (named).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "solutions.jsonl"
    >>> row = {"ground_truth": "2+3=5\\nA: 5", "6b_finetuning": {"solution": "2+3=6\\nA: 6"}}
    >>> _ = path.write_text(json.dumps(row))
    >>> [(r.problem, r.answer, r.correct, r.knobs["method"]) for r in gsm8k(path)]
    [('gsm8k/test/0', '6', False, '6b_finetuning')]
    """

    def problem(i: int, row: dict) -> list[Record]:
        gold, out = _number(row["ground_truth"]), []
        for method in [name for name, value in row.items() if isinstance(value, dict)]:
            said = _number(row[method]["solution"])
            right = said is not None and canonical(said) == canonical(gold)
            out.append(Record("gsm8k", f"gsm8k/test/{i}", 0, said, right, knobs={"method": method, "n": 1}))
        return out

    return _records(path, problem)


def scored_math(path: str | Path) -> list[Record]:
    """MATH problems with several responses each, their marks and a reward model's score (Qwen2.5-Math's example file).

    knobs["score"] is the reward model's, of no known range. The marks are the file's own. Errors: no such file, a line
    that is no problem (named).

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "scored.jsonl"
    >>> _ = path.write_text(json.dumps({"idx": 3, "pred": ["5"], "score": [True], "pred_score": [[0.25]]}))
    >>> [(r.problem, r.answer, r.correct, r.knobs["score"]) for r in scored_math(path)]
    [('math/3', '5', True, 0.25)]
    """

    def problem(_, row: dict) -> list[Record]:
        id, given = f"math/{row['idx']}", zip(row["pred"], row["score"], row["pred_score"], strict=True)
        knobs = {"method": "sampling", "n": 1}
        return [
            Record("rm-scored", id, i, answer, right, knobs=knobs | {"score": score})
            for i, (answer, right, (score,)) in enumerate(given)
        ]

    return _records(path, problem)


def _records(path: str | Path, read: Callable, lines: bool = True) -> list[Record]:
    """What `read(place, row)` makes of each row: a line each, or the items of one list. A broken one is named."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise WorkbenchError(f"cannot read {path} ({error.strerror}): data/README.md says where it is from") from error
    out, place = [], 0
    try:
        for part in filter(str.strip, text.split("\n") if lines else [text]):
            for row in [json.loads(part)] if lines else json.loads(part):
                out += read(place, row)
                place += 1
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {error}"
        raise WorkbenchError(f"{path}: row {place} is not of this format ({why}): fetch the file anew") from error
    return out


def _number(solution: str) -> str | None:
    found = re.findall(r"^A: *(.*)$", solution, re.M)
    return found[-1].strip() if found else None
