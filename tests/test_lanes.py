"""Jobs in processes of their own: needs are waited for, a failure is told and stops the rest, nothing is left over."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from workbench import lanes
from workbench.lanes import Job, JobFailed, abreast, wall
from workbench.pipeline import STAGES
from workbench.types import WorkbenchError

ROOT = Path(__file__).resolve().parents[1]


def note(folder, name, seconds=0.0):
    """A job: when it began and ended, and with how many threads."""
    with (folder / "times").open("a") as file:
        file.write(f"{name} begins {os.environ['OMP_NUM_THREADS']}\n")
    time.sleep(seconds)
    with (folder / "times").open("a") as file:
        file.write(f"{name} ends {os.getpid()}\n")


def threads(path):
    import torch

    path.write_text(f"{torch.get_num_threads()}")


def refuse(path):
    raise WorkbenchError(f"{path} is not a model")


def divide(by):
    print("about to divide")
    return 1 / by


def told_of(path):
    path.write_text(f"{os.environ['WORKBENCH_DATA']} {os.environ['OMP_NUM_THREADS']}")


def loaded(path, *names):
    path.write_text(str(any(name in sys.modules for name in names)))


def tidy(folder):
    try:
        (folder / "begun").write_text("yes")
        time.sleep(60)
    finally:
        time.sleep(1)
        (folder / "tidied").write_text("yes")


def wait_for(path, call):
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end and call.poll() is None
        time.sleep(0.1)


def die():
    os.kill(os.getpid(), 9)


@pytest.mark.parametrize("cores, free, want", [(1, 64, 1), (2, 64, 2), (16, 64, 4), (16, 5, 2), (16, 1, 1)])
def test_as_many_lanes_as_there_are_cores_and_memory(monkeypatch, cores, free, want):
    """Bugs: two of sixteen cores are used; four stages at once on a machine of 4 GB; none where memory is short."""
    monkeypatch.setattr(lanes.os, "sched_getaffinity", lambda _: range(cores))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free * 10**9))
    assert lanes.how_many(gigabytes=2) == want


def test_no_more_lanes_than_a_line_of_stages_can_use():
    """Bug: an estimate that falls with every lane, though teaching must be over before anything is sampled."""
    jobs = [Job(name, print, (), *about) for name, about in STAGES.items()]
    seconds = {job.name: job.expected for job in jobs}
    line = sum(seconds[name] for name in ("teach", "chains", "judge-likelihood", "search"))
    assert wall(jobs, 2) == sum(seconds.values()) / 2 > line == wall(jobs, 100)
    assert wall([Job("search", print, (), ("gone",), 5)], 2) == 5 and wall([], 2) == 0


def test_needs_are_waited_for_and_lanes_are_filled(tmp_path):
    """Bugs: a job starts before what it needs is done; two that could run together take turns; a job gets all cores."""
    said = []
    jobs = [
        Job("first", note, (tmp_path, "first", 1.0)),
        Job("after", note, (tmp_path, "after"), ("first",)),
        Job("beside", note, (tmp_path, "beside", 0.3)),
        Job("third", note, (tmp_path, "third")),
    ]
    peak = abreast(jobs, 2, tmp_path / "logs", show=said.append)
    order = [line.rsplit(" ", 1) for line in (tmp_path / "times").read_text().splitlines()]
    words = [what for what, _ in order]
    assert words.index("first ends") < words.index("after begins")
    assert words.index("beside begins") < words.index("first ends"), "one waits for nothing"
    assert words.index("beside ends") < words.index("third begins"), "never more than two"
    assert {number for what, number in order if what.endswith("begins")} == {"1"}
    assert len({number for what, number in order if what.endswith("ends")}) == 4, "each in a process of its own"
    assert len(said) == 4 and said[-1].endswith("all done") and "left" in said[0] and peak > 0


def test_imports_made_once_still_leave_one_thread(tmp_path):
    """Bug: the libraries are loaded before a job's process is told how many threads it has."""
    code = (
        "from pathlib import Path; from workbench.lanes import Job, abreast; from tests.test_lanes import threads\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "abreast([Job('a', threads, (folder / 'n',))], 1, folder, ['torch'])"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "n").read_text() == "1"


@pytest.mark.parametrize(
    "job, told",
    [
        (Job("bad", refuse, ("/x",)), r"^bad: /x is not a model$"),
        (Job("bad", divide, (0,)), r"bad failed \(ZeroDivisionError: division by zero\)"),
        (Job("bad", die), r"bad failed \(killed from outside, .*memory.*: it said nothing\)"),
    ],
)
def test_the_first_failure_stops_the_rest(tmp_path, job, told):
    """Bugs: the reason is a page down in a log; what ran beside it goes on for minutes."""
    jobs = [Job("long", note, (tmp_path, "long", 60.0)), job, Job("never", note, (tmp_path, "never"))]
    began = time.monotonic()
    with pytest.raises(JobFailed, match=told):
        abreast(jobs, 2, tmp_path / "logs", show=lambda said: None)
    assert time.monotonic() - began < 30
    times = (tmp_path / "times").read_text() if (tmp_path / "times").exists() else ""
    assert "never" not in times and "long ends" not in times
    if job.work is divide:
        assert "about to divide" in (tmp_path / "logs" / "bad.log").read_text(), "what it printed is kept"


def test_a_script_without_a_guard_is_not_run_again(tmp_path):
    """Bug: each job runs the caller's script first, which starts jobs."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom workbench.lanes import Job, abreast\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nfrom tests.test_lanes import note\nfolder = Path({str(tmp_path)!r})\n"
        "print('once')\nabreast([Job(name, note, (folder, name)) for name in 'ab'], 2, folder)\n"
    )
    out = subprocess.check_output([sys.executable, str(script)], cwd=ROOT, text=True)
    assert out.count("once") == 1 and (tmp_path / "times").read_text().count("ends") == 2


def test_nothing_is_imported_before_the_fork_where_a_gpu_may_be(tmp_path, monkeypatch):
    """Bug: a library that is loaded once for all asks for the GPU, and no job can use it: CUDA cannot be forked."""
    for gpu, told in ((tmp_path / "none", "True"), (tmp_path, "False")):
        monkeypatch.setattr(lanes, "GPU", (gpu,))
        job = Job("a", loaded, (tmp_path / told, "tomllib_is_not", "sndhdr"))
        abreast([job], 1, tmp_path / "logs", imports=["sndhdr"], show=lambda said: None)
        assert (tmp_path / told).read_text() == told


def test_what_is_asked_for_later_is_as_it_is_then(tmp_path, monkeypatch):
    """Bug: the process that jobs are forked from stays, with the modules and the environment of the first call."""
    for n in range(2):
        monkeypatch.setenv("WORKBENCH_DATA", f"/data/{n}")
        abreast([Job("a", told_of, (tmp_path / f"{n}",))], 1, tmp_path / "logs", show=lambda said: None)
        assert (tmp_path / f"{n}").read_text() == f"/data/{n} 1"
    assert not [child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())]


def test_a_stopped_call_tidies_up_once(tmp_path):
    """Bug: Ctrl-C reaches each job, and so does the word of the call that it stops: the second one falls into the
    tidying up after the first."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job\n"
        "from pathlib import Path; from workbench.lanes import Job, abreast; from tests.test_lanes import tidy\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "abreast([Job('a', tidy, (folder,))], 1, folder)"
    )
    call = psutil.Popen(
        [sys.executable, "-c", code], cwd=ROOT, start_new_session=True, stderr=(tmp_path / "err").open("w")
    )
    wait_for(tmp_path / "begun", call)
    os.killpg(call.pid, signal.SIGINT)
    call.wait(60)
    end = time.monotonic() + 10
    while not (tmp_path / "tidied").exists() and time.monotonic() < end:
        time.sleep(0.1)
    assert (tmp_path / "tidied").exists(), (tmp_path / "a.log").read_text() + (tmp_path / "err").read_text()


def test_a_killed_parent_takes_its_jobs_along(tmp_path):
    """Bug: the killed call's stages go on by themselves, and hold what the next call needs."""
    code = (
        "from pathlib import Path; from workbench.lanes import Job, abreast; from tests.test_lanes import note\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "abreast([Job(n, note, (folder, n, 60.0)) for n in 'ab'], 2, folder)"
    )
    call = psutil.Popen([sys.executable, "-c", code], cwd=ROOT)
    end = time.monotonic() + 60
    while not (tmp_path / "times").exists() or (tmp_path / "times").read_text().count("begins") < 2:
        assert time.monotonic() < end and call.poll() is None
        time.sleep(0.1)
    family = call.children(recursive=True)
    assert len(family) >= 2
    call.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    alive = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
    assert not alive
