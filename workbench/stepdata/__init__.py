"""Step labels from outside: one file = one format, found by its rows' fields.

A format is a module with

    FIELDS            the fields that a row of this format has, and no other format has together
    key(row)          -> optional: rows that follow one another with the same key are read together
    read(rows, note)  -> yields Labelled; raises Reject for rows that cannot be used. `note(reason, i)` says that a part
                         of row i is left out, or not taken as it is, and the rest goes on

`Rows` counts, validates and streams: it holds one group of rows at a time, and a bad row is listed, never fatal.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import itertools
import json
import pkgutil
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from ..format import TAGS
from ..runs import hash_file
from ..types import Labelled, Problem, Step, Trace, WorkbenchError, unknown

LONGEST = 20_000  # characters of a problem or a step; longer is no step
LONGEST_LINE = 1 << 24  # bytes of a line; longer is no row
MOST = 1000  # steps of a chain, or children of a node; more are no chain
TREE = 1_000_000  # steps of a problem's chains, prefix by prefix; more is no tree that people or rollouts rated
# what reading a row of another shape raises
MALFORMED = KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError
LISTED = 100  # rejected rows that are kept with their place; all are counted
PIECE = 1 << 20  # characters that are read of an array at a time
ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".json")
DATA = (*ENDINGS, ".gz", ".zst", ".txt", ".csv", ".tsv", ".zip")  # a name that ends so is a file's
LOOKED = 100  # rows at the beginning among which one of a known format is looked for


class Reject(Exception):
    """Why a row, or one of its completions, is left out. Short and the same for like cases: reasons are counted.

    `line`: how the row begins, where it is a line that could not be read.
    """

    def __init__(self, why: str, line: bytes = b""):
        super().__init__(why)
        self.line = line[:400].decode(errors="replace").strip()[:80]


def names() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__))


def get(name: str):
    if name not in names():
        raise unknown("step-label format", name, names())
    return importlib.import_module(f"{__name__}.{name}")


class Rows:
    """Labelled chains of a file, a folder of files, or a hub data set, as a stream that can be read again.

    `source`: a path (JSON lines, also gzipped, a .json that is an array of rows, or parquet), or a hub id `owner/name`,
    which needs `datasets`; `split` is the hub's. `format` is found from the fields of the first row, among the first
    100, that is of one, unless it is named. After a pass, `counts` holds rows, chains, steps, labels and
    `rejected: <reason>`, and `rejected` the first 100 as (place, reason). `hash` names the content (of a hub data set:
    its id, its split and the commit that is read, the newest when this is made). Errors: no such source, an empty one,
    no known format, no good row.

    >>> import tempfile, pathlib
    >>> line = '{"id": "1", "problem": "1+1", "steps": ["1+1=3"], "label": 0, "final_answer_correct": false}'
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "rows.jsonl"
    >>> _ = path.write_text(line + "\\n[]\\n")
    >>> rows = Rows(path)
    >>> [(chain.problem.prompt, chain.labels) for chain in rows], rows.rejected
    ([('1+1', (0.0,))], [('rows.jsonl:2', 'not an object')])
    """

    def __init__(self, source: str | Path, format: str | None = None, split: str = "train"):
        self.source, self.split, self.counts, self.rejected = str(source), split, Counter(), []
        self.files = _files(source)
        self.commit = "" if self.files else _commit(self.source)
        self.format = get(format) if format else _guess(self.source, (row for _, row in self._raw()))

    @property
    def hash(self) -> str:
        if self.files:
            parts = [(path.name, hash_file(path)) for path in self.files]
        else:
            parts = [(self.source, self.split, self.commit)]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def __iter__(self) -> Iterator[Labelled]:
        self.counts, self.rejected = Counter(), []
        alone = itertools.count()
        key: Callable[[dict], Any] = getattr(self.format, "key", lambda row: next(alone))

        def safe(pair):
            try:
                return key(pair[1])
            except (KeyError, TypeError, AttributeError):
                return next(alone)  # `read` will say what is wrong with it

        for _, group in itertools.groupby(self._raw(), safe):
            group = list(group)
            self.counts["rows"] += len(group)
            good = []
            for place, row in group:
                if isinstance(row, Reject):
                    self._reject(place, str(row))
                elif missing := [field for field in self.format.FIELDS if field not in row]:
                    self._reject(place, f"no field {missing[0]}")
                else:
                    good.append((place, row))
            if good:
                yield from self._read(good)
        if not self.counts["chains"]:
            reasons = ", ".join(f"{n} x {reason}" for reason, n in self.reasons()) or "it is empty"
            raise WorkbenchError(f"{self.source} holds no chain that can be used ({reasons})")

    def _read(self, group: list[tuple[str, dict]]) -> Iterator[Labelled]:
        def note(reason: str, i: int = 0) -> None:
            self._reject(group[i][0], reason)

        try:
            for chain in self.format.read([row for _, row in group], note):
                try:
                    check(chain)
                except Reject as why:
                    first, last = group[0][0], group[-1][0]
                    self._reject(first if first == last else f"{first} to {last}", str(why))
                    continue
                self.counts["chains"] += 1
                self.counts["steps"] += len(chain.labels)
                self.counts["labels"] += sum(x is not None for x in chain.labels)
                yield chain
        except (Reject, *MALFORMED) as why:  # it is about all of them
            for place, _ in group:
                self._reject(place, _why(why))

    def _reject(self, place: str, reason: str) -> None:
        self.counts[f"rejected: {reason}"] += 1
        if len(self.rejected) < LISTED:
            self.rejected.append((place, reason))

    def reasons(self) -> list[tuple[str, int]]:
        """(reason, how often), the most frequent first."""
        head = "rejected: "
        return [(k.removeprefix(head), n) for k, n in self.counts.most_common() if k.startswith(head)]

    def _raw(self) -> Iterator[tuple[str, dict | Reject]]:
        for path in self.files:
            yield from {".parquet": _parquet, ".json": _array}.get(path.suffix, _lines)(path)
        if not self.files:
            for i, row in enumerate(_hub(self.source, self.split, self.commit)):
                yield f"{self.source}:{i}", row


def check(chain: Labelled) -> None:
    """Raises Reject for what no verifier could learn from, whatever the format."""
    problem, trace, labels = chain
    if not problem.prompt.strip():
        raise Reject("empty problem")
    if not trace.steps:
        raise Reject("no steps")
    if len(labels) != len(trace.steps):
        raise Reject("labels and steps differ in number")
    for text in (problem.prompt, *(step.text for step in trace.steps)):
        if not text.strip():
            raise Reject("empty step")
        if len(text) > LONGEST:
            raise Reject(f"a text of more than {LONGEST} characters")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Reject("half of a surrogate pair in a text") from None
        if any(tag in text for tag in TAGS):
            raise Reject("a tag of the reasoning channel in a text")
    if all(x is None for x in labels):
        raise Reject("no rating")
    for x in labels:
        if x is not None and not 0 <= x <= 1:
            raise Reject("a label outside 0-1")


# --- what the formats share ---


def problem(prompt: Any, answer: Any, task: str) -> Problem:
    """A problem named by its text, so that every row about it has one id."""
    if not isinstance(prompt, str):
        raise Reject("the problem is no text")
    if answer is not None and not isinstance(answer, str):
        raise Reject("the answer is no text")
    if answer is not None and len(answer) > 4096:
        raise Reject("the answer is longer than an answer")
    text = one_line(prompt)
    name = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return Problem(f"{task}/{name}", task, text, answer, split="labelled")


def several(value: Any) -> list:
    """A list of steps as a row has it: a list, and not of endless length; None is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Reject("the steps are no list")
    if len(value) > MOST:
        raise Reject(f"more than {MOST} steps")
    return value


def one_line(text: str) -> str:
    """A step is one line: line breaks of the source become spaces, which LaTeX and prose read alike.

    >>> one_line(" So\\n\\n x = 1 ")
    'So x = 1'
    """
    return " ".join(text.split())


def rating(value: Any) -> float | None:
    """PRM800K's −1, 0, +1 -> 0, 1, 1: a neutral step is no error (Lightman et al. 2023). None stays None.

    >>> rating(-1), rating(0), rating(1), rating(None)
    (0.0, 1.0, 1.0, None)
    """
    if value is None or value != value:  # NaN, as a table has it
        return None
    if isinstance(value, bool) or value not in (-1, 0, 1):
        raise Reject("a rating outside -1, 0, +1")
    return 0.0 if value == -1 else 1.0


def closed(body: str, answer: str | None, label: float | None) -> list[tuple[Step, float | None]]:
    """The step that gives the answer, as a step and the closing answer. A bad mark is the answer's: which of the two
    is wrong nobody said, and `judging` counts an alarm on either as the error found.

    >>> [(step.text, label) for step, label in closed("So x is 3.", "3", 0.0)]
    [('So x is 3.', None), ('3', 0.0)]
    """
    steps = [(Step(one_line(body)), label if answer is None or label != 0 else None)] if body.strip() else []
    return steps if answer is None else [*steps, (Step(one_line(answer), final=True), label)]


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, Reject) else f"not as the format has it ({type(error).__name__})"


def merged(
    known: Problem,
    rows: list[dict],
    rated: Callable[[dict, Callable[[str], None]], Iterable[tuple[tuple[Step, ...], float | None]]],
    note: Callable[..., None],
) -> Iterator[Labelled]:
    """Rows about one problem, as the chains of one tree; a step that was rated more than once has the mean rating.

    `rated(row, say)` gives (path, label) for the steps of a row, None for those that are there as context; `say` is
    `note` for this row. A rating that differs from the first one of its step is noted. Only rows that follow one
    another come here, so that memory is bounded by one problem's: a step that is rated again further on is another
    group's, and nothing is averaged. A row that is bad costs no other row, and one without any rating is noted.

    >>> def rated(row, say): return [((Step("a"),), row["x"])]
    >>> [c.labels for c in merged(Problem("p", "t", "?", None), [{"x": 1.0}, {"x": 0.0}, {}], rated, print)]
    ratings of one step that differ: the mean was taken 1
    not as the format has it (KeyError) 2
    [(0.5,)]
    """
    marks: dict[tuple[Step, ...], list[float]] = {}
    for number, row in enumerate(rows):
        try:
            found = list(bounded(rated(row, partial(note, i=number))))
        except (Reject, *MALFORMED) as why:
            note(_why(why), number)
            continue
        if all(label is None for _, label in found):
            note("no rating", number)
        for path, label in found:
            before = marks.setdefault(path, [])
            if label is not None:
                if before and label != before[0]:
                    note("ratings of one step that differ: the mean was taken", number)
                before.append(label)
    nodes = {path: sum(given) / len(given) if given else None for path, given in marks.items()}
    for chain in chains(known, nodes):
        if any(label is not None for label in chain.labels):  # else context that leads nowhere
            yield chain


def chains(problem: Problem, nodes: dict[tuple[Step, ...], float | None]) -> Iterator[Labelled]:
    """A tree of rated steps, given as path -> label, as the chains from its root to its leaves.

    >>> a, b = Step("a"), Step("b")
    >>> [c.labels for c in chains(Problem("p", "t", "?", None), {(a,): 1.0, (a, b): 0.0, (b,): None})]
    [(1.0, 0.0), (None,)]
    """
    nodes = dict(bounded(nodes.items()))  # all of it, before the first chain is out
    inner = {path[:-1] for path in nodes}
    known: dict[tuple[Step, ...], tuple[float | None, ...]] = {(): ()}
    for path, label in nodes.items():
        above = known.get(path[:-1])
        if above is None:  # it comes later, or nobody rated it
            above = tuple(nodes.get(path[: i + 1]) for i in range(len(path) - 1))
        known[path] = labels = (*above, label)
        if path not in inner:
            yield Labelled(problem, Trace(path, "answer" if path[-1].final else "cut"), labels)


def bounded(nodes: Iterable[tuple[tuple[Step, ...], float | None]]) -> Iterator[tuple[tuple[Step, ...], float | None]]:
    """The same (path, label), as long as the paths hold no more than `TREE` steps in all: so long reading takes."""
    total = 0
    for path, label in nodes:
        total += len(path)
        if total > TREE:
            raise Reject(f"a tree of more than {TREE} steps, prefix by prefix")
        yield path, label


Sampled = tuple[Problem, Trace | None, str | None, bool]


def responses(source: str | Path) -> tuple[dict[str, list[Sampled]], Counter]:
    """Sampled responses for best-of-N: ({problem's id: [(problem, chain, answer, whether right)]}, what was found odd).

    JSON lines as the evaluation of Qwen2.5-Math writes them: `question`, and three lists with an entry a response in
    the order drawn, `code` (its text; a blank line ends a step), `pred` (its answer; empty: it gave none) and `score`
    (whether that is right). Rows of one question go together. A row that is bad is left out; a response without steps,
    or with an endless one, stays, for it was drawn, and has no chain. Errors: no such file, no good row.
    Left out: grading anew.
    """
    found: dict[str, list[Sampled]] = {}
    odd: Counter = Counter()
    files = [path for path in _files(source) if path.suffix != ".json"]
    if not files or any(path.suffix == ".parquet" for path in files):
        raise WorkbenchError(f"{source}: responses are read from a .jsonl file, or a folder of them")
    for path in files:
        for _, row in _lines(path):
            try:
                if isinstance(row, Reject):
                    raise row
                known = problem(row["question"], None, "responses")
                lists = [row[name] for name in ("code", "pred", "score")]
                if not all(isinstance(some, list) and some for some in lists):
                    raise Reject("no list of responses")
                entries = zip(*lists, strict=True)
                new = [_response(known, *entry) for entry in entries]
            except (Reject, *MALFORMED) as error:
                odd[f"a row left out: {_why(error)}"] += 1
                continue
            odd.update(f"a response kept without a score: {why}" for _, why in new if why)
            found.setdefault(known.id, []).extend(one for one, _ in new)
    if not found:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in odd.items()) or "it is empty"
        raise WorkbenchError(f"{source} holds no response that can be judged ({reasons})")
    return found, odd


def _response(known: Problem, text: str, answer: str | None, right: bool) -> tuple[Sampled, str]:
    """The response, and why it has no chain, if it has none."""
    if not isinstance(right, bool):
        raise Reject("a score that is not true or false")
    answer = one_line(answer or "") or None
    if right and answer is None:
        raise Reject("right without an answer")
    steps = [Step(one_line(part)) for part in text.split("\n\n") if part.strip()]
    steps += [] if answer is None else [Step(answer, final=True)]
    trace = Trace(tuple(steps), "cut" if answer is None else "answer")
    try:
        check(Labelled(known, trace, (float(right),) * len(steps)))
    except Reject as why:
        return (known, None, answer, right), str(why)
    return (known, trace, answer, right), ""


# --- where rows come from ---


def _files(source: str | Path) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.name.endswith(ENDINGS) and p.is_file())
        found = [p for p in found if p.suffix != ".json" or _holds_array(p)]  # others say something of the data
        found = [p for p in found if not any(part.startswith(".") for part in p.relative_to(path).parts)]  # copies
        if not found:
            raise WorkbenchError(f"{path} has no file that ends in {', '.join(ENDINGS)}")
        return found
    if path.is_file():
        if not path.name.endswith(ENDINGS):
            raise WorkbenchError(f"{path}: step labels come as {', '.join(ENDINGS)}")
        return [path]
    given = str(source)
    hub = given.count("/") == 1 and not given.startswith((".", "/", "~")) and not given.lower().endswith(DATA)
    if not hub or path.parent.is_dir():  # the hub is asked for what can only be its own: its answer takes a minute
        taken = f"a folder {path.parent} is here, so it is no hub id" if hub else "nor is that a hub id, owner/name"
        raise WorkbenchError(f"there is no file or folder {source} ({taken}): {_near(path)}")
    return []


def _near(path: Path) -> str:
    """Where a mistyped path leaves what is there, and what is called alike in that place."""
    while not path.parent.is_dir():
        path = path.parent
    alike = get_close_matches(path.name, sorted(other.name for other in path.parent.iterdir()), n=1)
    return f"did you mean {path.parent / alike[0]}?" if alike else f"the nearest folder is {path.parent.resolve()}"


def _commit(name: str) -> str:
    """What the hub has now: streamed rows say nothing of their content, so the commit stands for it."""
    try:
        from huggingface_hub import dataset_info
    except ImportError as error:
        raise WorkbenchError(f"{name} is no file here, and the hub needs: pip install datasets") from error
    try:
        return str(dataset_info(name).sha)
    except Exception as error:  # a hub fails in many ways; each means: not to be had
        raise _unreached(name, error) from error


def _unreached(name: str, error: Exception) -> WorkbenchError:
    why = f"{type(error).__name__}: {error}"
    return WorkbenchError(f"{name} could not be had from the hub ({why}): name a local file, or try again")


def _hub(name: str, split: str, commit: str):
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise WorkbenchError(f"{name} is no file here, and the hub needs: pip install datasets") from error
    try:
        return load_dataset(name, split=split, streaming=True, revision=commit)
    except Exception as error:
        raise _unreached(name, error) from error


def _lines(path: Path) -> Iterator[tuple[str, dict | Reject]]:
    opened = gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
    with opened as file:
        number = 0
        while line := _line(file, path):
            number += 1
            place = f"{path.name}:{number}"
            if len(line) > LONGEST_LINE:
                bad = Reject("a line of more than 16 MB", line)
                while line and not line.endswith(b"\n"):
                    line = _line(file, path)
                yield place, bad
                continue
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                yield place, Reject("no JSON", line)
                continue
            yield place, row if isinstance(row, dict) else Reject("not an object", line)


def _line(file, path: Path) -> bytes:
    try:
        return file.readline(LONGEST_LINE + 1)
    except (EOFError, OSError, zlib.error) as error:  # half a gzip file
        raise WorkbenchError(f"{path} cannot be read to its end ({error}): fetch it again") from error


def _array(path: Path) -> Iterator[tuple[str, dict | Reject]]:
    """The rows of a file that is one array of them, such as ProcessBench's; behind a broken one nothing can be told."""
    read, between = json.JSONDecoder().raw_decode, re.compile(r"\s*[\[,]?\s*")
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        text, number = file.read(PIECE), 1
        at = between.match(text).end()
        if not text.lstrip().startswith("["):
            why = "no array of rows, and JSON lines end in .jsonl"
            yield f"{path.name}:1", Reject(why, text.encode(errors="replace"))
            return
        while True:
            try:
                row, end = read(text, at)
            except (ValueError, RecursionError):
                piece = "" if len(text) - at > LONGEST_LINE else file.read(PIECE)
                if not piece:
                    break
                text, at = text[at:] + piece, 0
                at = between.match(text).end()
                continue
            yield f"{path.name}:{number}", row if isinstance(row, dict) else Reject("not an object")
            number, at = number + 1, between.match(text, end).end()
        if text[at:].strip() != "]":
            yield f"{path.name}:{number}", Reject("no JSON from here on", text[at:].encode(errors="replace"))


def _holds_array(path: Path) -> bool:
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        return file.read(1024).lstrip().startswith("[")


def _parquet(path: Path) -> Iterator[tuple[str, dict | Reject]]:
    try:
        from pyarrow import ArrowException, ArrowInvalid, parquet
    except ImportError as error:
        raise WorkbenchError(f"{path.name} is a parquet file: pip install pyarrow") from error
    try:
        batches = parquet.ParquetFile(path).iter_batches(1024)
        number = 0
        for batch in batches:
            try:
                rows = batch.to_pylist()
            except (ValueError, OverflowError, ArrowException):
                rows = map(partial(_cells, batch), range(len(batch)))
            for row in rows:
                number += 1
                yield f"{path.name}:{number}", row
    except (ArrowInvalid, OSError) as error:
        raise WorkbenchError(f"{path} is no parquet file: {error}") from error


def _cells(batch, number: int) -> dict | Reject:
    """A row of a batch that cannot be read at once; a bad cell that no format asks for is left out."""
    asked, row = {"answer", *(field for name in names() for field in get(name).FIELDS)}, {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[number].as_py()
        except (ValueError, OverflowError):  # no UTF-8, a time that Python does not know
            if name in asked:
                return Reject("a cell that cannot be read")
    return row


def _guess(source: str, rows: Iterable):
    known = [get(name) for name in names()]
    first = None
    for row in itertools.islice(rows, LOOKED):
        for form in known:
            if isinstance(row, dict) and all(field in row for field in form.FIELDS):
                return form
        first = row if first is None else first
    if first is None:
        raise WorkbenchError(f"{source} is empty: there is no row in it")
    if isinstance(first, Reject):
        looks = f"is {first}: {first.line!r}"
    else:
        looks = f"has the fields {', '.join(map(str, first))[:80] or 'none'}"
    raise WorkbenchError(
        f"{source}: no row of the first {LOOKED} is of a known format ({', '.join(names())}); the first {looks}"
    )
