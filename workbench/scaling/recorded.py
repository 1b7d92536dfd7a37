"""Files of outcomes that others released, as records."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..grading import canonical
from ..types import Record


def game24(path: str | Path, method: str = "sampling") -> list[Record]:
    """A log of the Tree of Thoughts repository: puzzles × samples, marked by its own checker (Yao et al. 2023).

    The answer is what follows "Answer:"; the cost is not recorded for each sample and stays empty.
    """
    out = []
    for puzzle in json.loads(Path(path).read_text(encoding="utf-8")):
        marks = puzzle["accs"] if "accs" in puzzle else [info["r"] for info in puzzle["infos"]]
        for i, (text, right) in enumerate(zip(puzzle["ys"], marks, strict=True)):
            _, found, answer = text.partition("Answer:")
            knobs = {"method": method, "n": 1}
            out.append(
                Record(
                    Path(path).stem,
                    f"game24/{puzzle['idx']}",
                    i,
                    answer.strip() if found else None,
                    bool(right),
                    knobs=knobs,
                )
            )
    return out


def gsm8k(path: str | Path) -> list[Record]:
    """The solutions released with GSM8K (Cobbe et al. 2021): four methods, one solution a problem each.

    The methods are 6b_finetuning, 6b_verification, 175b_finetuning and 175b_verification. Right is the number after
    "A:" being that of the reference solution, by value.
    """
    out = []
    for i, row in enumerate(_rows(path)):
        gold = _number(row["ground_truth"])
        for method in [name for name, value in row.items() if isinstance(value, dict)]:
            said = _number(row[method]["solution"])
            right = said is not None and canonical(said) == canonical(gold)
            out.append(Record("gsm8k", f"gsm8k/test/{i}", 0, said, right, knobs={"method": method, "n": 1}))
    return out


def scored_math(path: str | Path) -> list[Record]:
    """MATH problems with several responses each, their marks and a reward model's score (Qwen2.5-Math's example file).

    knobs["score"] is the reward model's, of no known range. The marks are the file's own.
    """
    return [
        Record(
            "rm-scored", f"math/{row['idx']}", i, answer, right, knobs={"method": "sampling", "n": 1, "score": score}
        )
        for row in _rows(path)
        for i, (answer, right, (score,)) in enumerate(zip(row["pred"], row["score"], row["pred_score"], strict=True))
    ]


def _rows(path: str | Path) -> list[dict]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _number(solution: str) -> str | None:
    found = re.findall(r"^A: *(.*)$", solution, re.M)
    return found[-1].strip() if found else None
