r"""Is this answer equal to that one? Exact for numbers; math-verify behind guards and a hard time limit for the rest.

A grader is a reward, so in doubt it says no, and a gold answer that it cannot read is an error, never a reward.
The reading of LaTeX runs in one worker process that is kept between calls (some ms a call), killed when its time is
up and started again: this works in a notebook, off the main thread, and without signals.

What counts as equal, beyond equality of value:
  units after a number (`12\text{ cm}`, `90^\circ`, `\$5`, `50\%`) may be missing on one side, and may not differ; what
  counts (`5\text{ million}`) or denies is no unit;
  `x=5` answers 5; sets and bare lists have no order, tuples and intervals have, and brackets must be the same.
What does not: `0.333333` for 1/3, numbers of another base, words that are anagrams, `n` for `N`, a right number inside
a text.

Left out: whether the answer is simplified (`2+3` equals 5, so an echoed question passes: tasks that care check more),
ratios and times other than as text, and answers longer than 4,096 characters, which are refused unread.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Hashable
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

from .types import WorkbenchError

_log = logging.getLogger(__name__)
PATIENCE = 10 if hasattr(signal, "setitimer") else 1  # seconds by the clock for each second of processor time
LONGEST = 4096  # characters; more is not an answer
MEMORY = 1 << 30  # bytes of address space for the worker, where the system has such a limit
START = 120.0  # seconds that a worker may take to import math-verify on a busy machine

_INTEGER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
_NUMBER = re.compile(rf"([+-]?)(?:({_INTEGER})(\.[0-9]+)?|(\.[0-9]+))(?:\s*/\s*([+-]?{_INTEGER}))?")


def canonical(answer: str) -> Hashable:
    """What a vote groups by: the exact Fraction of a plain number, else the stripped text. Never an error.

    Plain: integers, decimals, fractions a/b of integers, a sign, thousands commas where they belong.

    >>> canonical("0.5") == canonical(" 2/4 "), canonical("1,234") == canonical("1234")
    (True, True)
    >>> canonical("(1,234)"), canonical("12,34"), canonical("1/0")
    ('(1,234)', '12,34', '1/0')
    """
    text = answer.strip()
    match = _NUMBER.fullmatch(text.replace("−", "-")) if len(text) <= LONGEST else None
    if not match:
        return text
    sign, whole, decimals, bare, below = (group and group.replace(",", "") for group in match.groups())
    if below and (decimals or bare or int(below) == 0):
        return text
    value = Fraction((whole or "0") + (decimals or bare or "")) / int(below or 1)
    return -value if sign == "-" else value


def equal(answer: str | None, gold: str, timeout: float = 2.0) -> bool:
    r"""Does `answer` say what `gold` says? At most `timeout` seconds of work (and a worker's start, once).

    The seconds are processor time of the worker, so that a busy machine does not turn right answers into wrong ones;
    by the clock it may take ten times as long (on Windows, the clock is all there is).
    An answer that is missing, too long, unreadable or not done in time is wrong. A gold answer that is empty or
    cannot be read within the limits raises WorkbenchError, and so does a worker that does not start.
    Source: math-verify for expressions; the guards around it follow from its known mistakes.

    >>> equal("0.50", "1/2"), equal(r"\frac{\sqrt{2}}{2}", r"\frac{1}{\sqrt{2}}"), equal("2^x+1", "2^{x+1}")
    (True, True, False)
    """
    if not isinstance(gold, str) or not gold.strip() or len(gold) > LONGEST:
        raise WorkbenchError(f"the gold answer {str(gold)[:40]!r} is empty or too long: mend the problem's answer")
    if not isinstance(answer, str) or not answer.strip() or len(answer) > LONGEST:
        return False
    ours, theirs = canonical(answer), canonical(gold)
    if isinstance(ours, Fraction) and isinstance(theirs, Fraction):
        return ours == theirs
    return _ask(answer.strip(), gold.strip(), timeout)


# --- this side of the pipe ---------------------------------------------------------------------------------------


class _Worker:
    """A process that reads one question a line and answers in two: is the gold answer readable, are they equal."""

    def __init__(self):
        home = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.grading"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # an interrupt in the terminal is for us, not for it
            text=True,
            encoding="ascii",
        )
        self.lines: queue.Queue = queue.Queue()
        self.ready = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            self.lines.put(json.loads(line))
        self.lines.put(None)  # it has ended

    def say(self, question: dict) -> None:
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float) -> dict | None:
        try:
            return self.lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except (OSError, ValueError):
                pass


_lock = threading.Lock()
_worker: _Worker | None = None
_known: dict[tuple[str, str], bool] = {}  # what was found in time; what was not is asked again


def _ask(answer: str, gold: str, timeout: float) -> bool:
    global _worker
    with _lock:
        if (answer, gold) in _known:
            return _known[answer, gold]
        if _worker is not None and _worker.ready and _worker.process.poll() is not None:
            _worker.kill()  # it died between two questions, of something else
            _worker = None
        worker, finished = _worker or _Worker(), False
        _worker = worker
        try:
            if not worker.ready:
                hello = worker.hear(START)
                if hello is None or "error" in hello:
                    why = (hello or {}).get("error", f"it did not answer within {START:.0f} s")
                    raise WorkbenchError(f"the grading worker does not start ({why}): pip install math-verify")
                worker.ready = True
            try:
                worker.say({"answer": answer, "gold": gold, "seconds": timeout})
            except OSError:
                raise WorkbenchError("the grading worker was killed from outside: call again") from None
            readable = worker.hear(timeout * PATIENCE)
            if readable is None or not readable["readable"]:
                finished = readable is not None
                why = readable["why"] if finished else "out of time or memory"
                raise WorkbenchError(f"the gold answer {gold[:80]!r} cannot be read ({why}): mend the problem's answer")
            result = worker.hear(timeout * PATIENCE)
            finished = result is not None
            if not finished or result["why"]:
                why = result["why"] if finished else "out of time or memory"
                _log.debug("the answer %r cannot be read (%s), so it is wrong", answer[:80], why)
        finally:
            if not finished:  # out of time or memory, or interrupted: nobody knows what it will say next
                worker.kill()
                _worker = _Worker() if worker.ready else None  # starts while we go on
        if finished:
            if len(_known) >= 10_000:
                _known.clear()
            _known[answer, gold] = result["equal"]
        return finished and result["equal"]


def _forget() -> None:
    """In a forked child: the pipes belong to the parent."""
    global _lock, _worker
    _lock, _worker = threading.Lock(), None


@atexit.register
def _stop() -> None:
    if _worker is not None and _worker.process.poll() is None:
        _worker.kill()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


# --- the worker's side -------------------------------------------------------------------------------------------

_WRAPPERS = (
    r"\$\$(.*)\$\$",
    r"\$(.*)\$",
    r"\\\((.*)\\\)",
    r"\\\[(.*)\\\]",
    r"\\(?:text|mathrm|textbf|mbox)\{([^{}]*)\}",
)
_SPACES = re.compile(r"(?<!\\)(?:\\left(?![a-z])|\\right(?![a-z])|\\[,;: ]|\\q?quad(?![a-z])|~)")
_UNIT = re.compile(r"(?<=[0-9}a-z)])\s*\\(?:text|mathrm|mbox|textbf)\{([^{}]*)\}(?:\^\{?[23]\}?)?$")
_NO_UNIT = re.compile(
    # they change the number, or what is said of it: 5 million is not 5, and `12 is wrong` is not 12
    r"^\W*(?:half|halves|thirds?|(?:four|fif|six|seven|eigh|nin|ten|twelf)ths?)\W*$"  # 4 fourth graders are 4
    r"|^\W*(?:dozens?|\w*(?:hundred|thousand|illion)\w*)\b"
    r"|\b(?:is|isn't|are|was|not?|nor|or|wrong|false|incorrect|mod|remainder|r)\b",
    re.I,
)
_CHOICE = re.compile(r"\\(?:text|mathrm|mbox|textbf)\{\s*\(?[A-Za-z]\)?\s*\}|\([A-Za-z]\)")  # of several answers
_WORD = re.compile(r"(?:\$|\\boxed\{|\s)*\\(?:text|mbox|textbf)\{[^{}]*[A-Za-z]{2}[^{}]*\}(?:\$|\}|\s)*")
_SHORT = set("am an as at be by do go he if in is it me my no of on or so to up us we".split())  # no products
_SIGNS = re.compile(r"\^\{?\\circ\}?$|°$|\\?%$")
_FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "log",
    "exp",
    "sqrt",
    "arcsin",
    "arccos",
    "arctan",
    "max",
    "min",
}
_TOKEN = r"(\\[A-Za-z]+|[0-9A-Za-z])"  # what stands for an argument without braces
_OPEN, _CLOSE = ("\\{", "(", "["), ("\\}", ")", "]")


def _tidy(text: str) -> tuple[str, str]:
    """(text without wrapping, spacing and unit; the unit)."""
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", "", text.replace("−", "-").replace("\\$", "")).strip()
    text = _SPACES.sub(" ", re.sub(r"(?<!\\)\\!\s*", "", text)).strip()
    for _ in range(4):
        for wrapper in _WRAPPERS:
            if (inner := re.fullmatch(wrapper, text, re.S)) and "$" not in inner[1]:
                text = inner[1].strip()
        if text.startswith("\\boxed{") and _closing(text, 6) == len(text) - 1:
            text = text[7:-1].strip()
    text = re.sub(r"\\[dtc]frac", r"\\frac", text).replace("{,}", ",")
    text = re.sub(rf"\\frac\s*{_TOKEN}\s*{_TOKEN}", r"\\frac{\1}{\2}", text)
    text = re.sub(rf"(?<=\{{){_INTEGER}(?=\}})", lambda match: match[0].replace(",", ""), text)
    text = re.sub(r"\s*,?\s*(?:\\text\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*", ", ", text)
    text = re.sub(r"(?<=[0-9A-Za-z)}\]])\.$", "", text)
    unit = match[0] if (match := _UNIT.search(text)) and not _NO_UNIT.search(match[1]) else ""
    text = text[: len(text) - len(unit)].strip() if unit else text
    sign = match[0] if (match := _SIGNS.search(text)) else ""
    if sign and re.fullmatch(r"[-+0-9.,/ ]+|-?\\frac\{[0-9]+\}\{[0-9]+\}", text[: -len(sign)]):
        text, unit = text[: -len(sign)].strip(), sign
    return text, _unit(unit)


def _unit(text: str) -> str:
    return re.sub(r"\\text|\\mathrm|\\mbox|[\\{}\s^]|(?<=[A-Za-z])s(?=\}|$)", "", text).lower()


def _less(text: str, unit: str) -> str:
    """A number without the unit that the other side has, where it stands as a bare word: `12 cm`."""
    bare = re.fullmatch(r"(.*[0-9})])\s*([A-Za-z][A-Za-z ]*)", text)
    return bare[1] if unit and bare and _unit(bare[2]) == unit else text


def _closing(text: str, at: int) -> int:
    """Where the bracket that opens at `at` closes; -1 if nowhere. `[0,1)` closes, `\\{` only by `\\}`."""
    depth, i = 0, at
    while i < len(text):
        token = text[i : i + 2] if text[i] == "\\" else text[i]
        if token in ("(", "[", "{", "\\{"):
            depth += 1
        elif token in (")", "]", "}", "\\}"):
            depth -= 1
            if depth == 0:
                return i + len(token) - 1
        i += len(token)
    return -1


def _split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    parts, depth, i, start = [], 0, 0, 0
    while i < len(text):
        token = text[i : i + 2] if text[i] == "\\" else text[i]
        depth += (token in ("(", "[", "{", "\\{")) - (token in (")", "]", "}", "\\}"))
        if token == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
        i += len(token)
    return [*parts, text[start:].strip()]


def _group(text: str) -> tuple[str, list[str]] | None:
    """A list, set, tuple or interval as (its brackets, its parts); None for one value. `1,234` is one value."""
    if isinstance(canonical(text), Fraction):
        return None
    opening = next((o for o in _OPEN if text.startswith(o)), "")
    if opening and _closing(text, 0) == len(text) - 1:
        closing = next((c for c in _CLOSE if text.endswith(c)), "")
        parts = _split(text[len(opening) : len(text) - len(closing)])
        return (opening + closing, parts) if len(parts) > 1 else None
    parts = _split(text)
    return ("\\{\\}", parts) if len(parts) > 1 else None  # a bare list is a set


def _wordy(text: str) -> bool:
    """To be compared as text: words (anagrams are equal as products), bases, times and ratios, loose digits."""
    bare = re.sub(r"\\(?:text|mathrm|mbox|textbf)(?![a-z])|\\(?:begin|end)\{[a-z]+\}", "", text)
    words = re.findall(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{3,}", re.sub(r"\\[A-Za-z]+", " ", bare))
    return (
        any(word.lower() not in _FUNCTIONS for word in words)
        or text.lower() in _SHORT
        or re.search(r"[0-9]\s*\}?\s*_|:|[0-9]\s+[0-9]|\\text|\\mbox|\\boxed|\\ldots|\\dots", text) is not None
    )


def _words(text: str) -> str:
    text = re.sub(r"\\(?:text|mathrm|mbox|textbf)(?![a-z])|[{}$]", "", text).lower()
    text = re.sub(r"\s+(?![0-9])|(?<![0-9])\s+", "", text)  # `1 80` is not `180`
    return re.sub(r"^\(([a-z])\)$", r"\1", text)


@lru_cache(4096)
def _parse(text: str):
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, normalize_latex
    from math_verify.parser import parse_latex_cached
    from sympy import Float, Rational

    config = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    value = parse_latex_cached(normalize_latex(text, config=config))
    if hasattr(value, "atoms"):
        value = value.xreplace({number: Rational(str(number)) for number in value.atoms(Float)})
    return value


def _readable(text: str) -> bool:
    text, _ = _tidy(text)
    if not text or text.count("{") != text.count("}"):
        return False
    if group := _group(text):
        return all(_readable(part) for part in group[1])
    return bool(_words(text)) if _wordy(text) else _parse(text) is not None


def _agree(answer: str, gold: str, depth: int = 0) -> bool:
    (a, a_unit), (g, g_unit) = _tidy(answer), _tidy(gold)
    if a_unit and g_unit and a_unit != g_unit or a.count("{") != a.count("}"):
        return False
    a, g = (a if a_unit else _less(a, g_unit)), (g if g_unit else _less(g, a_unit))
    if a == g:
        return True
    g = re.sub(r"^[A-Za-z]\s*\\in(?![a-z])", "", g).strip()
    if "=" not in g and (named := re.fullmatch(r"[A-Za-z](?:_\{?\w\}?|\([a-z]\))?\s*(?:=|\\in(?![a-z]))([^=]*)", a)):
        a = named[1].strip()
    ours, theirs = canonical(a), canonical(g)
    if isinstance(ours, Fraction) and isinstance(theirs, Fraction):
        return ours == theirs
    if a == g:
        return True
    mine, its = _group(a), _group(g)
    if mine and its:
        if mine[0] != its[0] or len(mine[1]) != len(its[1]) or depth > 3 or len(mine[1]) > 64:
            return False
        if mine[0] != "\\{\\}":
            return all(_agree(x, y, depth + 1) for x, y in zip(mine[1], its[1], strict=True))
        rest = list(its[1])
        for x in mine[1]:
            found = next((y for y in rest if _agree(x, y, depth + 1)), None)
            if found is None:
                return False
            rest.remove(found)
        return True
    if (mine or its) and not re.search(r"<|>|\\[lg]eq?(?![a-z])|\\cup|\\pm", a if its else g):
        return False
    if ("=" in a) != ("=" in g) and not re.fullmatch(r"[A-Za-z](?:\([a-z]\))?\s*=[^=]*", g):
        return False  # `3=5` does not answer 5
    if _wordy(a) or _wordy(g) or _WORD.fullmatch(answer) or _WORD.fullmatch(gold):
        return _words(a) == _words(g)
    if ("\\circ" in a) != ("\\circ" in g):
        return False
    letters, known = ({*re.sub(r"\\[A-Za-z]+", "", text)} for text in (a, g))
    if any(x not in known and x.swapcase() in known for x in letters):
        if not any(_CHOICE.fullmatch(text.strip(" $")) for text in (answer, gold)):
            return False  # math-verify reads n and N as one
    return _same(_parse(a), _parse(g))


def _same(ours, theirs) -> bool:
    from math_verify import verify
    from sympy import Eq, simplify

    if isinstance(ours, Eq) and isinstance(theirs, Eq):  # the same equation up to a factor; solving would equate all
        left, right = simplify(ours.lhs - ours.rhs), simplify(theirs.lhs - theirs.rhs)  # that have no real solution
        if not left.free_symbols or not right.free_symbols:
            return False
        return not simplify(left / right).free_symbols
    return bool(verify(theirs, ours, timeout_seconds=None))


def _limit(seconds: float) -> None:
    """The system ends this process after so much processor time from now (0: no limit), whatever it is doing."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _told(error: Exception) -> str:
    """The error's type and first line: parsers draw pictures below it."""
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first[:200]}".removesuffix(": ")


def _serve() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # a library that prints must not answer for us

    def say(**reply):
        out.write(json.dumps(reply) + "\n")
        out.flush()

    try:
        import math_verify  # noqa: F401

        logging.disable(logging.CRITICAL)
        _agree(r"2^{x+\sqrt{2}}", "2^x+1")  # loads the grammar and what simplifies, before any clock runs
    except Exception as error:  # whatever a broken installation raises is told to the parent, which raises it
        say(error=_told(error))
        return
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # a system without such a limit: the clock still ends whatever grows
    say(ready=True)
    for line in sys.stdin:
        question = json.loads(line)
        _limit(question["seconds"])
        try:
            readable, why = _readable(question["gold"]), "no expression that parses"
        except Exception as error:  # whatever a parser raises on bad text means: not readable
            readable, why = False, _told(error)
        say(readable=readable, why=why)
        if not readable:
            continue
        _limit(question["seconds"])
        try:
            result, why = _agree(question["answer"], question["gold"]), ""
        except Exception as error:  # an answer that cannot be read is wrong, whatever a parser raises on it
            result, why = False, _told(error)
        _limit(0)
        say(equal=result, why=why)


if __name__ == "__main__":
    _serve()
