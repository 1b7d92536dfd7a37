"""A run's learning curves while it is being written, by another cell, another process or another machine.

    watch_run("runs/nano/reinforce-outcome")                 # the last line of a cell, in JupyterLab or marimo
    watch_run("runs/prm", keys=["loss", "AUC held out"])     # any numbers of its rows
    figure(run.read("history"), run.read("checks"))          # the same picture, still

All is drawn from `history.jsonl` and `checks.jsonl`, of which a look reads what was appended since the one before.
"""

from __future__ import annotations

import html
import json
import math
import re
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs

from .. import plots
from ..types import WorkbenchError
from ..watch import change
from .labeller import duration

try:
    import anywidget
    import traitlets
except ImportError:  # the still figure needs neither
    anywidget = None

NAMES = {"true": "true reward", "proxy": "proxy reward", "tokens_per_chain": "tokens a chain"}
NAMES |= {"entropy": "entropy, nats a token", "clipped": "share of tokens clipped", "ratio_max": "largest |ratio − 1|"}
NAMES |= {"uniform_groups": "groups all alike", "ill_formed": "ill-formed", "kl": "KL to the reference"}
PANELS = [["true"], ["proxy"], ["tokens_per_chain"], ["entropy"], ["clipped"], ["ratio_max"], ["uniform_groups"]]
PANELS += [["unfinished", "ill_formed"], ["kl"]]  # of reinforcement learning; other runs show every number they have
INKS, HELD_OUT, ALARM = (plots.colour("majority"), plots.colour("beam")), plots.colour("label"), plots.colour("sum")
DRAWN = 1000  # points of a line
ROW, GAP = 160, 48  # pixels: three rows of panels fit into what marimo shows of an output


def tail(path: str | Path, offset: int = 0) -> tuple[list[dict], int]:
    """The rows of a .jsonl file behind `offset` bytes, and the offset behind its last whole line: for the next call.

    A half-written last line waits. ([], 0) says to begin anew: no file, or no line ends at `offset`, since the file
    shrank or is another. A whole line that is no JSON object is passed over with a warning. Errors: those of `open`.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "history.jsonl"
    >>> path.write_text('{"step": 1}\\n{"st')
    16
    >>> tail(path), tail(path, 12), tail(path, 99)
    (([{'step': 1}], 12), ([], 12), ([], 0))
    """
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        return [], 0
    with file:
        file.seek(max(0, offset - 1))
        raw = file.read()
    if offset:
        if raw[:1] != b"\n":
            return [], 0
        raw = raw[1:]
    *lines, half = raw.split(b"\n")
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            warnings.warn(f"{path}: {line[:60]!r} is no JSON object and is passed over", stacklevel=2)
    return rows, offset + len(raw) - len(half)


def figure(
    history: Iterable[Mapping],
    checks: Iterable[Mapping] = (),
    keys: Sequence[str] | None = None,
    total: int | None = None,
    seconds: float | None = None,
    title: str | None = None,
) -> go.Figure:
    """The curves of a run as a plain figure: a small panel a number, or one for each of `keys`.

    `history`: rows with a step and numbers. A missing or unknown number is a gap; a row without a step is passed over;
    a step that comes again, after a resume, takes the place of all from there on. `checks`: rows {"step", "<key>": [a
    number a problem]}, drawn as dots with 95 % normal intervals, none where all problems are alike; the dots of other
    steps are the means that the history has as <key>_held_out. The first `alarm` is told and marked. `total`: steps of
    the whole run; `seconds`: of a step. Beyond 1,000 rows a point is the mean of the known numbers of equally many
    rows. Errors: an unknown key.

    >>> rows = [{"step": 0, "true_held_out": 0.4}, {"step": 1, "true": 0.5, "kl": None}, {"step": 2, "true": 0.7}]
    >>> fig = figure(rows, [{"step": 0, "true": [0.0, 1.0, 1.0]}], total=20, seconds=9)
    >>> fig.layout.title.text, [trace.name for trace in fig.data]
    ('step 2 of 20 · 9.0 s a step · about 3 min left', ['true reward', 'true reward, held out'])
    """
    return go.Figure(
        _picture([_numbers(row) for row in history], [_summed(row) for row in checks], keys, total, seconds, title)
    )


def _picture(history, checks, keys=None, total=None, seconds=None, title=None, done=False) -> dict[str, Any]:
    """`figure` as plain data, which a look sends without plotly's checks: they take longer than all the rest."""
    rows: list[Mapping] = []
    for row in history:
        if row.get("step") is not None:
            while rows and rows[-1]["step"] >= row["step"]:
                rows.pop()
            rows.append(row)
    panels, alarm = _panels(rows, keys), next((row for row in rows if row.get("alarm")), None)
    head = plots.wrap(html.escape(title or _headline(rows, total, seconds, done)), 78)
    if alarm:
        told = plots.wrap(html.escape(str(alarm["alarm"])), 92)
        head += f'<br><span style="color:{ALARM};font-size:14px"><b>{told}</b></span>'
    more, area = head.count("<br>"), max(1, ROW * -(-len(panels) // 3) - GAP)
    top = 62 + 23 * more
    height = top + (area + 66 if panels else 0)
    layout = dict(template=pio.templates["workbench"].to_plotly_json(), height=height, uirevision="keeps a zoom")
    layout |= dict(title=dict(text=head, y=1 - (16 + 6 * more) / height), margin=dict(l=56, r=16, t=top, b=66))
    layout |= dict(xaxis=dict(visible=False), yaxis=dict(visible=False), annotations=[])
    every, data, problems = -(-len(rows) // DRAWN), [], 0
    steps = _means([row["step"] for row in rows], every)
    for i, panel in enumerate(panels):
        at, names, upper, left = f"{i + 1}" if i else "", [], 1 - i // 3 * ROW / area, i % 3 * 0.36
        for key, ink in zip(panel, INKS, strict=False):
            name, axes = html.escape(NAMES.get(key, key)), dict(type="scatter", xaxis=f"x{at}", yaxis=f"y{at}")
            names.append(f'<span style="color:{ink}">{name}</span>' if len(panel) > 1 else name)
            values = _means([row.get(key) for row in rows], every)
            data.append(axes | dict(name=name, x=steps, y=values) | _line(values, ink))
            told = f"{key}_held_out"
            dots = {row["step"]: (row[told], None, 0) for row in rows if row.get(told) is not None}
            dots |= {row["step"]: row[key] for row in checks if key in row and row["step"] is not None}
            if dots:
                means, sides, counts = zip(*(dots[step] for step in sorted(dots)), strict=True)
                problems = max(problems, *counts)
                data.append(axes | dict(name=f"{name}, held out", x=sorted(dots)) | _dots(means, sides))
        last, small = i + 3 >= len(panels), dict(nticks=5, tickfont=dict(size=11))
        mode = "tozero" if {*panel} & {*NAMES} - {"proxy", "tokens_per_chain"} else "normal"
        low = max(0, upper - (ROW - GAP) / area)
        layout[f"xaxis{at}"] = dict(domain=[left, left + 0.28], anchor=f"y{at}", showticklabels=last, **small)
        layout[f"xaxis{at}"] |= dict(title=dict(text="step")) if last else {}
        layout[f"xaxis{at}"] |= dict(matches="x") if i else {}
        layout[f"yaxis{at}"] = dict(domain=[low, upper], anchor=f"x{at}", rangemode=mode, **small)
        layout["annotations"].append(_note(", ".join(names), 13, x=left, y=upper, yanchor="bottom", yshift=3))
        if alarm:
            where = dict(xref=f"x{at}", yref=f"y{at} domain", x0=alarm["step"], x1=alarm["step"], y0=0, y1=1)
            layout.setdefault("shapes", []).append(
                dict(type="line", line=dict(color=ALARM, dash="dot", width=1.5), **where)
            )
    told = [f"Lines: means of {every} rows."] if every > 1 else []
    heat = "Lines: what was learnt from, at its own temperature. Dots: checks on"
    told += [f"{heat} {problems} held-out problems at temperature 1, 95 % intervals."] if problems else []
    if told:
        layout["annotations"].append(_note(" ".join(told), 12, x=0, y=0, yanchor="top", yshift=-44))
    return dict(data=data, layout=layout)


def _panels(rows: Sequence[Mapping], keys: Sequence[str] | None) -> list[list[str]]:
    known = [key for key in dict.fromkeys(chain.from_iterable(rows)) if key not in ("step", "round", "alarm")]
    if keys is not None:
        if rows and (strange := [key for key in keys if key not in known]):
            raise WorkbenchError(f"no row has a number named {strange[0]!r}: there are {', '.join(known) or 'none'}")
        return [[key] for key in keys if rows]
    there = {key.removesuffix("_held_out") for key in known if any(row.get(key) is not None for row in rows)}
    groups = {key.removesuffix(" held out"): [] for key in known}
    for key in known:
        groups[key.removesuffix(" held out")].append(key)
    return [mine for panel in PANELS if (mine := [key for key in panel if key in there])] or list(groups.values())


def _headline(rows: Sequence[Mapping], total: int | None, seconds: float | None, done: bool) -> str:
    if not rows:
        return "no row yet"
    step, unit = rows[-1]["step"], "round" if "round" in rows[-1] else "step"
    told = [f"{unit} {step:,}" + (f" of {total:,}" if total else "")]
    told += [f"{seconds:,.1f} s a {unit}" if seconds >= 1 else f"{seconds:.2g} s a {unit}"] if seconds else []
    told += [f"{duration(seconds * (total - step))} left"] if seconds and total and step < total and not done else []
    return " · ".join([*told, "finished"] if done else told)


def _line(values: list, ink: str) -> dict[str, Any]:
    known = [False, *(value is not None for value in values), False]
    lone = (False, True, False) in zip(known, known[1:], known[2:], strict=False)  # a number between gaps is no line
    mode = "lines+markers" if lone or sum(known) <= 60 else "lines"
    mark, hover = dict(size=4), "%{x:,.6~g}: %{y:.4~g}"
    return dict(mode=mode, line=dict(color=ink, width=1.6), marker=mark, hovertemplate=hover)


def _dots(means: Sequence, sides: Sequence) -> dict[str, Any]:
    bars = dict(type="data", array=list(sides), color=HELD_OUT, thickness=1, width=0)
    mark = dict(color=HELD_OUT, size=6 if len(means) <= 40 else 3)
    return dict(y=list(means), error_y=bars, mode="markers", marker=mark, hovertemplate="%{x}: %{y:.4~g}")


def _numbers(row: Mapping) -> dict[str, Any]:
    """What of a row of history.jsonl can be drawn: numbers, None for unknown ones, and the alarm. A round is a step."""
    kept = {key: value for key, value in row.items() if value is None or isinstance(value, int | float)}
    kept = {key: value if value is not None and math.isfinite(value) else None for key, value in kept.items()}
    kept |= {"step": kept["round"]} if "round" in kept else {}
    return kept | ({"alarm": row["alarm"]} if row.get("alarm") else {})


def _summed(check: Mapping) -> dict[str, Any]:
    """A row of checks.jsonl with (mean, half its 95 % interval, problems) for its lists, as the alarm reckons them."""
    step = check.get("step")
    row = {"step": step if isinstance(step, int | float) else None}
    for key, values in check.items():
        if key != "step" and isinstance(values, list) and (known := [v for v in values if isinstance(v, int | float)]):
            mean, low, _ = change([0.0] * len(known), known)
            row[key] = (mean, (mean - low) or None, len(known))
    return row


def _means(values: list, every: int) -> list:
    if every <= 1:
        return values
    parts = ([v for v in values[i : i + every] if v is not None] for i in range(0, len(values), every))
    return [sum(part) / len(part) if part else None for part in parts]


def _note(text: str, size: int, **where) -> dict[str, Any]:
    return dict(text=text, font=dict(size=size), xref="paper", yref="paper", xanchor="left", showarrow=False, **where)


def watch_run(path: str | Path, keys: Sequence[str] | None = None, every: float = 1.0) -> Curves:
    """A widget that shows a run's curves and follows its files, `every` so many seconds, until DONE or `close()`.

    `path`: the run's folder, which may be yet to come, or a `Run`. `keys`: numbers of its rows, a panel each; None for
    those that say how reinforcement learning goes, or for all of another run. A thread of its own looks, at most a
    twentieth of the time, so no cell waits; in marimo it also ends when its cell runs again. N is the one number that
    run.json has as `steps`. Errors: an unknown key, told in the picture if rows come later; a path that is a file.
    Left out: ending with the output of a JupyterLab cell that runs again.

    >>> import tempfile
    >>> watch_run(Path(tempfile.mkdtemp()) / "later", every=0.1).close()
    """
    run = Path(getattr(path, "path", path))
    if anywidget is None:
        raise WorkbenchError("live curves need anywidget: pip install 'workbench[widgets]'")
    if run.is_file():
        raise WorkbenchError(f"{run} is a file: give the folder of a run")
    if not every > 0:
        raise WorkbenchError(f"every={every}: give seconds above 0")
    return Curves(run, [keys] if isinstance(keys, str) else keys, every)


if anywidget is not None:

    class Curves(anywidget.AnyWidget):
        """What `watch_run` returns: `picture` is the figure as JSON, `watching` says whether more is awaited."""

        _esm = get_plotlyjs() + Path(__file__).with_suffix(".js").read_text(encoding="utf-8")
        picture = traitlets.Dict().tag(sync=True)

        def __init__(self, run: Path, keys: Sequence[str] | None, every: float):
            self._over, self._run, self._asked, self._every = threading.Event(), run, keys, every
            self._rows: dict[str, list[dict]] = {"history": [], "checks": []}
            self._offsets, self._arrived = dict.fromkeys(self._rows, 0), deque(maxlen=20)
            self._current, self._thread = False, None
            done = self.look()
            super().__init__()
            if not done:
                marimo = sys.modules.get("marimo")  # whose pages hear no other threads than its own
                kind = marimo.Thread if marimo and marimo.running_in_notebook() else threading.Thread
                self._thread = kind(target=self._follow, daemon=True)
                self._thread.start()

        @property
        def watching(self) -> bool:
            return self._thread is not None and self._thread.is_alive()

        def look(self) -> bool:
            """Read what was appended and, if anything was, draw. True when the run is done."""
            done = (self._run / "DONE").exists()  # asked first: all rows were there before it
            if any([self._grown(name) for name in self._rows]) or done or not self._current:
                title = None if self._rows["history"] else f"waiting for {self._run}: no row yet"
                try:
                    self.picture = _picture(*self._rows.values(), self._asked, *self._pace(), title, done)
                except WorkbenchError as error:
                    if self._thread is None:
                        raise
                    self.picture = _picture([], [], title=str(error))  # nobody sees what a thread raises
                self._current = True
            return done

        def _grown(self, name: str) -> bool:
            path, offset, rows = self._run / f"{name}.jsonl", self._offsets[name], self._rows[name]
            found, self._offsets[name] = tail(path, offset)
            if self._offsets[name] < offset:
                rows.clear()
                found, self._offsets[name] = tail(path)
            rows += map(_numbers if name == "history" else _summed, found)
            if found and name == "history":
                self._arrived.append((path.stat().st_mtime, rows[-1].get("step") or 0))
            return self._offsets[name] != offset

        def _pace(self) -> tuple[int | None, float | None]:
            """Steps of the whole run, if run.json and the head of the history name one number, and seconds a step."""
            about, (head, *_) = self._run / "run.json", self._rows["history"] or [{}]
            text = about.read_text(encoding="utf-8") if about.exists() else ""
            name = "rounds" if "round" in head else "steps"
            found = re.findall(rf'"{name}": ?([1-9]\d*)', text + json.dumps(head))
            totals = {int(n) for n in (found[-1:] if name == "rounds" else found)}  # a variant's own stand last
            (began, first), (now, last) = (self._arrived[0], self._arrived[-1]) if self._arrived else ((0, 0), (0, 0))
            seconds = (now - began) / (last - first) if last > first and now > began else None
            return totals.pop() if len(totals) == 1 else None, seconds

        def _follow(self) -> None:
            pause = self._every
            while not self._over.wait(pause) and not getattr(threading.current_thread(), "should_exit", False):
                began = time.perf_counter()
                try:
                    if self.look():
                        break
                except OSError as error:  # a file system may be away for a while
                    told = f"{self._run} cannot be read ({error.strerror}): trying again"
                    self.picture, self._current = _picture([], [], title=told), False
                pause = max(self._every, 20 * (time.perf_counter() - began))

        def close(self) -> None:
            self._over.set()
            super().close()

        def _repr_mimebundle_(self, **kwargs):
            bundle = super()._repr_mimebundle_(**kwargs)
            if bundle is not None:  # where no script runs, and in the gallery: the picture so far
                bundle[0]["application/vnd.plotly.v1+json"] = self.picture
            return bundle
