"""Live learning curves: files that grow, shrink and break off, the picture made of them, then a page that follows."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import plotly.graph_objects as go
import pytest
from test_labeller import chromium, page, serving  # noqa: F401  (fixtures of a browser that sees this machine only)

from workbench import watch
from workbench.runs import Run
from workbench.types import WorkbenchError
from workbench.widgets import curves
from workbench.widgets.curves import figure, tail, watch_run

ROOT = Path(__file__).resolve().parents[1]


# a page that follows a file for half a minute, in two programs: asked for, and not part of every run
slowly = pytest.mark.skipif(not os.environ.get("WORKBENCH_SLOW"), reason="WORKBENCH_SLOW=1 asks for it")


def row(step, **more):
    """As `rl.train` writes it."""
    numbers = dict(proxy=0.5, true=0.25, steps_per_chain=3.0, tokens_per_chain=25.0 + step, unfinished=0.0)
    numbers |= dict(ill_formed=0.01, entropy=0.07, uniform_groups=0.25, levels={"1": [1, 4]}, loss=0.0, norm=0.4)
    numbers |= dict(ratio_max=1.5, clipped=0.01, kl=None, cost={"sampled": 9, "policy_seconds": 3.0})
    numbers["cost"]["training_seconds"] = 7.0
    return {"step": step, **numbers, **more}


def check(step, share, n=40):
    return {"step": step, "true": [float(i < share * n) for i in range(n)], "proxy": [i / n for i in range(n)]}


def write(path, *rows, mode="w"):
    with open(path, mode) as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def trace(fig, name):
    (found,) = (trace for trace in fig.data if trace.name == name)
    return found


def titles(fig):
    return [re.sub("<[^>]*>", "", note.text) for note in fig.layout.annotations if note.y or note.yshift > 0]


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


# --- the tail of a file ---


def test_only_what_was_appended_is_read(tmp_path):
    path = tmp_path / "history.jsonl"
    write(path, {"step": 1}, {"step": 2})
    rows, offset = tail(path)
    assert [r["step"] for r in rows] == [1, 2] and offset == path.stat().st_size
    assert tail(path, offset) == ([], offset)
    raw = bytearray(path.read_bytes())
    raw[:5] = b"?????"  # what was read once is not read again
    path.write_bytes(raw)
    write(path, {"step": 3, "text": "š\u2028"}, mode="a")
    assert tail(path, offset) == ([{"step": 3, "text": "š\u2028"}], path.stat().st_size)


def test_a_half_written_line_waits(tmp_path):
    """Bugs: half a row taken for a broken one; the other half lost; a letter cut in two."""
    path, line = tmp_path / "history.jsonl", '{"step": 1, "text": "š"}\n'.encode()
    for cut in range(len(line)):
        path.write_bytes(line + line[:cut])
        assert tail(path, len(line)) == ([], len(line))
        assert tail(path) == ([{"step": 1, "text": "š"}], len(line))
    path.write_bytes(line * 2)
    assert tail(path, len(line)) == ([{"step": 1, "text": "š"}], 2 * len(line))


def test_a_file_that_is_another_one_is_begun_anew(tmp_path):
    """Bugs: after a resume the old offset is read from, in the middle of a line, or nothing ever again."""
    path = tmp_path / "history.jsonl"
    assert tail(path) == tail(path, 80) == ([], 0)
    write(path, {"step": 1}, {"step": 2})
    _, offset = tail(path)
    write(path, {"step": 1})
    assert tail(path, offset) == ([], 0)
    write(path, {"step": 1, "loss": 0.25}, {"step": 2, "loss": 0.125})  # grown past the offset between two looks
    assert tail(path, offset) == ([], 0)
    path.write_bytes(b"")
    assert tail(path, offset) == ([], 0)


def test_a_broken_line_costs_no_other(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_bytes(b'{"step": 1}\n{"ste\n[2]\n\xff\n{"step": 3}\n')
    with pytest.warns() as told:
        rows, offset = tail(path)
    assert [str(one.message).partition("jsonl: ")[2].split()[0] for one in told] == ["b'{\"ste'", "b'[2]'", "b'\\xff'"]
    assert [r["step"] for r in rows] == [1, 3] and offset == path.stat().st_size


# --- the figure ---


def test_panels_of_reinforcement_learning():
    fig = figure([row(1), row(2)], total=45)
    assert titles(fig) == [
        "true reward",
        "proxy reward",
        "tokens a chain",
        "entropy, nats a token",
        "share of tokens clipped",
        "largest |ratio − 1|",
        "groups all alike",
        "unfinished, ill-formed",
    ]
    assert titles(figure([row(1), row(2, kl=0.1)]))[-1] == "KL to the reference", "where there is one"
    assert fig.layout.title.text == "step 2 of 45"
    assert figure([row(2)], total=45, seconds=10).layout.title.text == "step 2 of 45 · 10.0 s a step · about 7 min left"
    assert trace(fig, "tokens a chain").y == (26, 27) and trace(fig, "tokens a chain").x == (1, 2)


def test_what_is_missing_is_a_gap():
    """Bugs: drawn as 0, or bridged; rows of one step moved to another; a number between two gaps unseen."""
    rows = [row(1), row(2, entropy=None), row(3), row(4), row(5)]
    del rows[3]["entropy"]
    rows[4]["entropy"] = float("nan")
    line = trace(figure(rows), "entropy, nats a token")
    assert line.x == (1, 2, 3, 4, 5) and line.y == (0.07, None, 0.07, None, None)
    assert not line.connectgaps and line.mode == "lines+markers"
    many = [row(step, entropy=None if step % 2 else 0.5) for step in range(200)]
    assert trace(figure(many), "entropy, nats a token").mode == "lines+markers"
    assert trace(figure(many), "true reward").mode == "lines"


def test_checks_are_dots_with_the_interval_of_the_alarm():
    """Bugs: an interval over steps instead of problems; one of no width where all problems are alike."""
    rows = [{"step": 0, "true_held_out": 0.1}, row(1), row(2, true_held_out=0.5), row(3, true_held_out=1.0)]
    dots = trace(figure(rows, [check(2, 0.5), check(3, 1.0)]), "true reward, held out")
    mean, low, _ = watch.change([0.0] * 40, check(2, 0.5)["true"])
    assert dots.x == (0, 2, 3) and dots.y == (0.1, mean, 1.0)
    assert dots.error_y.array == (None, mean - low, None) and mean - low > 0.1
    assert dots.mode == "markers"
    holes = check(2, 0.5) | {"true": [None, 1.0, 0.0, None]}
    odd = [holes, {"true": [1.0]}, {"step": 3, "true": []}, {"step": 4, "true": ["?"]}]
    odd += [{"step": "four", "true": [1.0]}, {"step": [5], "true": [1.0]}]  # Bug: they ended the thread that watches
    assert trace(figure([row(2)], odd), "true reward, held out").y == (0.5,), "unknown is not 0"


def test_the_alarm_is_told_in_its_colour_and_marked():
    said = "reward hacking: <b>the proxy</b> moved"
    fig = figure([row(1), row(2, alarm=said), row(3)])
    assert "reward hacking: &lt;b&gt;the proxy" in fig.layout.title.text and curves.ALARM in fig.layout.title.text
    assert {(shape.x0, shape.x1, shape.line.color) for shape in fig.layout.shapes} == {(2, 2, curves.ALARM)}
    assert curves.ALARM not in figure([row(1)]).layout.title.text


def test_a_step_that_comes_again_takes_the_place_of_what_came_after():
    """Bug: after a resume the line runs back and forth."""
    rows = [row(1), row(2, entropy=1.0), row(3, entropy=1.0), row(2, entropy=0.5)]
    line = trace(figure(rows), "entropy, nats a token")
    assert line.x == (1, 2) and line.y == (0.07, 0.5)


def test_numbers_of_other_runs():
    rows = [{"rows": 753, "steps": 376}] + [
        {"step": s, "loss": 1 / s, "loss held out": 2 / s, "AUC held out": None} for s in (50, 100)
    ]
    fig = figure(rows)
    assert titles(fig) == ["loss, loss held out", "AUC held out"] and fig.layout.title.text == "step 100"
    assert trace(fig, "loss held out").y == (2 / 50, 2 / 100)


def test_rounds_of_the_flywheel(tmp_path):
    """Bug: rows without a step were passed over, so a flywheel's picture stayed empty; "of 60", a round's steps."""
    rows = [
        {"round": i, "yield": 0.3 + i / 10, "held_out": 0.4, "kept": 9 * i, "dropped": {"wrong": 3}} for i in (0, 1)
    ]
    fig = figure(rows, keys=["yield", "held_out"], total=2)
    assert fig.layout.title.text == "round 1 of 2" and [t.name for t in fig.data] == ["yield", "held_out"]
    assert list(fig.data[0].x) == [0, 1] and list(fig.data[0].y) == [0.3, 0.4]
    assert "round" not in {t.name for t in figure(rows).data}


def test_any_number_can_be_asked_for_and_no_other():
    fig = figure([row(1), row(2, true_held_out=0.5)], keys=["norm", "kl", "true_held_out"])
    assert titles(fig) == ["norm", "KL to the reference", "true_held_out"]
    assert trace(fig, "KL to the reference").y == (None, None)
    for strange in ("nrom", "levels", "step"):
        with pytest.raises(
            WorkbenchError, match=f"no row has a number named '{strange}': there are proxy, true, .*clipped"
        ):
            figure([row(1)], keys=["norm", strange])
    assert figure([], keys=["nrom"]).layout.title.text == "no row yet"


def test_many_rows_are_means_and_say_so():
    rows = [row(step, true=float(step % 2), entropy=None if step < 20 else 0.5) for step in range(10_000)]
    fig = figure(rows)
    line = trace(fig, "entropy, nats a token")
    assert len(line.y) == 1000 and line.y[:3] == (None, None, 0.5) and line.x[0] == 4.5
    assert set(trace(fig, "true reward").y) == {0.5}
    assert "means of 10 rows" in fig.layout.annotations[-1].text


def test_a_thousand_rows_draw_quickly():
    rows, checks = [row(step) for step in range(1000)], [check(step, 0.5) for step in range(0, 1000, 10)]
    began = time.process_time()
    figure(rows, checks)
    assert time.process_time() - began < 2


# --- the widget, without a browser ---


@pytest.fixture
def watched(tmp_path):
    """`watched(name, …)`: a widget on a run of that name that looks often, closed in the end."""
    pytest.importorskip("anywidget")
    there = []

    def start(name="run", keys=None, every=0.01):
        there.append(watch_run(tmp_path / name, keys, every))
        return there[-1]

    yield start
    for widget in there:
        widget.close()
        until(lambda gone=widget: not gone.watching)


def title(widget):
    return html.unescape(widget.picture["layout"]["title"]["text"].replace("<br>", " "))


def test_it_waits_follows_and_stops_when_the_run_is_done(watched, tmp_path):
    """The whole life of a run, written as `rl.train` writes it."""
    widget = watched()
    assert title(widget) == f"waiting for {tmp_path / 'run'}: no row yet" and widget.watching
    run = Run.open(tmp_path / "run", {"seed": 0, "rl": {"steps": 3, "lr": 0.1}})
    run.append("checks", [check(0, 0.5)])
    run.append("history", [{"step": 0, "true_held_out": 0.5}])
    until(lambda: title(widget).startswith("step 0 of 3"))
    run.append("history", [row(1)])
    until(lambda: title(widget).startswith("step 1 of 3"))
    run.append("history", [row(2), row(3)])
    until(lambda: title(widget).startswith("step 3 of 3"))
    assert "left" not in title(widget) and "finished" not in title(widget) and widget.watching
    run.finish()
    until(lambda: not widget.watching)
    assert title(widget).endswith("finished")
    still = figure(run.read("history"), run.read("checks"), title=title(widget))
    assert go.Figure(widget.picture) == still, "the same picture as the still one"
    assert json.loads(json.dumps(widget.picture)) == json.loads(still.to_json()), "in words that plotly.js knows"
    assert not watched().watching, "a finished run is drawn once"


def test_closing_ends_the_thread(watched, tmp_path):
    widget = watched()
    assert widget.watching
    before = threading.active_count()
    widget.close()
    until(lambda: not widget.watching)
    assert threading.active_count() == before - 1


def test_it_ends_with_its_cell_in_marimo(watched):
    """Bug: a cell that runs again leaves the threads of its earlier runs behind."""
    thread = type("Thread", (threading.Thread,), {"should_exit": True})(target=watched()._follow, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_run_that_is_resumed_is_read_anew(watched, tmp_path):
    run = Run.open(tmp_path / "run", {"steps": 9})
    run.append("history", [row(step) for step in range(1, 8)])
    run.append("checks", [check(5, 0.5), check(7, 0.5)])
    widget = watched()
    assert title(widget).startswith("step 7 of 9")
    run.rewind("checks", 5)
    run.rewind("history", 5)
    until(lambda: title(widget).startswith("step 5 of 9"))
    run.append("history", [row(6, entropy=0.9)])
    until(lambda: title(widget).startswith("step 6 of 9"))
    assert trace(go.Figure(widget.picture), "entropy, nats a token").y == (0.07,) * 5 + (0.9,)
    assert trace(go.Figure(widget.picture), "true reward, held out").x == (5,)


def test_the_time_left_is_of_rows_as_they_come(watched, tmp_path):
    """Bug: seconds of a step that several processes share are added up, and checks are left out."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text('{"params": {"fit": {"steps": 400}}}')
    history = folder / "history.jsonl"
    write(history, {"step": 50, "loss": 1.0})
    os.utime(history, (1000, 1000))
    widget = watched(every=1000)
    assert title(widget) == "step 50 of 400"
    write(history, {"step": 100, "loss": 1.0}, mode="a")
    os.utime(history, (1100, 1100))
    widget.look()
    assert title(widget) == "step 100 of 400 · 2.0 s a step · about 10 min left"
    write(history, {"step": 150, "loss": 1.0}, mode="a")
    os.utime(history, (1400, 1400))
    widget.look()
    assert title(widget) == "step 150 of 400 · 4.0 s a step · about 17 min left"
    (folder / "run.json").write_text('{"params": {"fit": {"steps": 400}, "rl": {"steps": 60}}}')
    write(history, {"step": 200, "loss": 1.0}, mode="a")
    widget.look()
    assert title(widget).startswith("step 200 · "), "which of the two it is is not known"


def test_unknown_keys_of_the_widget(watched, tmp_path):
    """Bug: an error in a thread that nobody sees, after which the picture stands still."""
    widget = watched(keys="entropi")
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "history.jsonl", {"step": 1, "loss": 0.5})
    until(lambda: "no row has a number named 'entropi': there are loss" in title(widget))
    write(tmp_path / "run" / "history.jsonl", {"step": 2, "entropi": 0.5}, mode="a")
    until(lambda: title(widget).startswith("step 2"))
    with pytest.raises(WorkbenchError, match="no row has a number named 'nrom': there are loss, entropi"):
        watched(keys=["nrom"])


def test_a_file_system_that_is_away_for_a_while(watched, tmp_path, monkeypatch):
    widget, real = watched(), curves.tail
    monkeypatch.setattr(curves, "tail", lambda *_: (_ for _ in ()).throw(OSError(116, "Stale file handle")))
    until(lambda: "cannot be read (Stale file handle): trying again" in title(widget))
    monkeypatch.setattr(curves, "tail", real)
    until(lambda: title(widget).startswith("waiting"))


def test_what_cannot_be_watched(watched, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkbenchError, match="is a file: give the folder of a run"):
        watched("file")
    with pytest.raises(WorkbenchError, match="every=0: give seconds above 0"):
        watched(every=0)


def test_a_look_at_nothing_new_costs_next_to_nothing(watched, tmp_path):
    (tmp_path / "run").mkdir()
    write(tmp_path / "run" / "history.jsonl", *(row(step) for step in range(10_000)))
    widget = watched(every=1000)
    before = widget.picture
    began = time.process_time()
    for _ in range(100):
        widget.look()
    assert (time.process_time() - began) / 100 < 0.005 and widget.picture is before


def test_without_a_script_there_is_the_picture(watched):
    widget = watched()
    assert widget._repr_mimebundle_()[0]["application/vnd.plotly.v1+json"] == widget.picture
    json.dumps(widget.picture, allow_nan=False)


def test_without_anywidget_the_error_says_what_to_install():
    code = (
        "import sys; sys.modules['anywidget'] = None\n"
        "from workbench.widgets.curves import figure, watch_run\n"
        "print(len(figure([{'step': 1, 'loss': 2}]).data)); watch_run('later')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "1\n" and "pip install 'workbench[widgets]'" in done.stderr.splitlines()[-1]


# --- the widget, in a browser ---

NOTEBOOK = "from workbench.widgets.curves import watch_run\n\ncurves = watch_run('run', every=0.2)\ncurves"
BUSY = "import time\nfrom pathlib import Path\n\nwhile not Path('free').exists():\n    time.sleep(0.1)"


def drive(page, folder, name):  # noqa: F811
    """A run grows while it is shown; what is drawn then, in pixels and words, is known beforehand."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    plot = page.get_by_test_id("curves")
    expect(plot.locator(".gtitle")).to_have_text("waiting for run: no row yet")
    (folder / "run").mkdir()
    (folder / "run" / "run.json").write_text('{"params": {"rl": {"steps": 60}}}')
    write(folder / "run" / "history.jsonl", *(row(step) for step in range(1, 11)))
    expect(plot.locator(".gtitle")).to_have_text(re.compile("^step 10 of 60"))
    before = plot.locator(".scatterlayer path.js-line").nth(2).get_attribute("d")
    rows = [row(s, tokens_per_chain=20 + s % 7, true=0.2 + s / 99) for s in range(11, 41)]
    rows[20]["alarm"] = "reward hacking: the proxy rose and the true reward fell"
    write(folder / "run" / "checks.jsonl", check(10, 0.3), check(40, 0.6))
    write(folder / "run" / "history.jsonl", *rows, mode="a")
    expect(plot.locator(".gtitle")).to_contain_text("reward hacking")
    assert plot.locator(".scatterlayer path.js-line").nth(2).get_attribute("d") != before
    assert plot.locator(".errorbar").count() == 4
    if shots := os.environ.get("CURVES_SHOTS"):
        page.screenshot(path=Path(shots) / f"{name}.png")
    (folder / "run" / "DONE").write_text("{}")
    expect(plot.locator(".gtitle")).to_contain_text("finished")


@pytest.mark.browser
@pytest.mark.slow
@slowly
def test_in_jupyterlab(page, tmp_path):  # noqa: F811
    """While another cell keeps the kernel busy."""
    import nbformat

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in (NOTEBOOK, BUSY)])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "book.ipynb")
    command = "jupyterlab --no-browser --allow-root --ip=127.0.0.1 --port={port} --IdentityProvider.token="
    command += " --LabApp.expose_app_in_browser=True --LabApp.news_url=None"
    with serving(tmp_path, *command.split(), health="/api") as address:
        answers = []  # until JupyterLab has asked the kernel for widgets, it may take new ones for old and lose them
        page.on("websocket", lambda socket: socket.on("framereceived", lambda it: answers.append(it)))
        page.goto(f"{address}/lab/tree/book.ipynb")
        page.get_by_text("| Idle").wait_for()
        while not any("comm_info_reply" in str(answer) for answer in answers):
            page.wait_for_timeout(50)
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        drive(page, tmp_path, "jupyterlab")
        assert page.get_by_text("| Busy").count() == 1
        (tmp_path / "free").touch()
    assert not page.trouble


@pytest.mark.browser
@pytest.mark.slow
@slowly
def test_in_marimo(page, tmp_path):  # noqa: F811
    cell = NOTEBOOK.replace("\n", "\n    ")
    (tmp_path / "app.py").write_text(
        f"import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    {cell}\n    return\n"
    )
    command = "marimo -q run app.py --headless --no-token --host 127.0.0.1 --port {port}".split()
    with serving(tmp_path, *command, health="/health") as address:
        page.goto(address)
        drive(page, tmp_path, "marimo")
    assert not page.trouble
