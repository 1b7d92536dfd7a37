"""Math-Shepherd (Wang et al. 2023): the solution as text, a tag after every step, and the text again with + or −."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from ..types import Labelled, Trace
from . import Reject, closed, problem, several

FIELDS = ("input", "label", "task")
TAG = "ки"
_STEP = re.compile(r"^Step \d+:")
_ANSWER = re.compile(r"The answer is:?(.+)$", re.S)


def read(rows: list[dict], note: Callable[..., None]) -> Iterator[Labelled]:
    """One row -> one chain. A label is what Monte-Carlo rollouts said: + means that some completion was right."""
    for row in rows:
        begin = row["input"].partition(TAG)[0].rfind("Step 1:")  # the last: a question may have steps of its own
        if begin < 0:
            raise Reject("no step")
        known = problem(row["input"][:begin], None, str(row["task"]).lower())
        texts = several(row["input"][begin:].split(TAG))
        if texts.pop().strip():
            raise Reject("a last step without its tag")
        marks, rest = [], row["label"][begin:]
        for text in texts:
            if not rest.startswith(text) or rest[len(text) : len(text) + 1] not in ("+", "-"):
                raise Reject("labels and steps differ in number")
            marks.append(1.0 if rest[len(text)] == "+" else 0.0)
            rest = rest[len(text) + 1 :]
        if rest.strip():
            raise Reject("labels and steps differ in number")
        steps = []
        for i, (text, mark) in enumerate(zip(texts, marks, strict=True)):
            body, answer = _STEP.sub("", text.strip()), None
            if i == len(texts) - 1 and (found := _ANSWER.search(body)):
                body, answer = body[: found.start()], found[1]
            steps += closed(body, answer, mark)
        stop = "answer" if steps and steps[-1][0].final else "cut"
        yield Labelled(known, Trace(tuple(step for step, _ in steps), stop), tuple(label for _, label in steps))
