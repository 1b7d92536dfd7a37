"""Jobs side by side: each in a process of its own with one thread, as many at a time as there are lanes.

Two lanes of one thread do nearly half as much again as one of two, and no result depends on how many cores there are.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import ModuleType

from .types import WorkbenchError

GPU = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # where one may be: a process that has asked for it cannot be forked
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
ERROR = "error: "
STOPPED = 143  # the exit code of a job that was told to stop


class JobFailed(WorkbenchError):
    """It was started and stopped: not the caller's mistake, so the exit code is 1."""

    code = 1


@dataclass(frozen=True)
class Job:
    """`work(*arguments)` in a process of its own, once all of `needs` are done. `work` is a function of a module."""

    name: str
    work: Callable
    arguments: tuple = ()
    needs: tuple[str, ...] = ()
    expected: float = 1.0  # seconds, for the estimate only


def clock(seconds: float) -> str:
    """
    >>> clock(75), clock(3725)
    ('1:15', '1:02:05')
    """
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def memory() -> int:
    """Bytes held by the processes that this one started; shared pages are counted once where that is known."""
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        try:
            full = child.memory_full_info()
            total += getattr(full, "pss", full.rss)
        except psutil.Error:
            pass  # it ended while we looked
    return total


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def how_many(gigabytes: int) -> int:
    """How many jobs of so much memory to run at a time: a core each, and at most four (by then stages wait for one
    another, see `wall`)."""
    import psutil

    return max(1, min(4, cores(), psutil.virtual_memory().available // (gigabytes * 10**9)))


def wall(jobs: Sequence[Job], lanes: int) -> float:
    """Seconds that these jobs take, `lanes` at a time, at the least: all their work shared, or the longest line of
    jobs that wait for one another.

    >>> jobs = [Job("teach", print, expected=320), Job("direct", print, expected=230)]
    >>> jobs.append(Job("chains", print, needs=("teach",), expected=120))
    >>> wall(jobs, lanes=1), wall(jobs, lanes=4)
    (670.0, 440)
    """
    named = {job.name: job for job in jobs}

    def line(name: str) -> float:
        return named[name].expected + max((line(n) for n in named[name].needs if n in named), default=0)

    return max(sum(job.expected for job in jobs) / lanes, *map(line, named)) if jobs else 0


def abreast(
    jobs: Sequence[Job],
    lanes: int,
    logs: Path,
    imports: Sequence[str] = (),
    show: Callable[[str], None] = print,
) -> int:
    """Run the jobs, `lanes` at a time, in their order as far as their needs allow; returns peak memory in bytes.

    What a job prints goes to `logs`/NAME.log, and `show` says what is done and what is left. The first that fails stops
    the rest: `JobFailed` has its last line and names its log. `imports` are modules that all jobs need: where a process
    can be forked safely they are loaded once for all.

    >>> import tempfile
    >>> jobs = [Job("a", print, ("ready",)), Job("b", print, ("steady",), needs=("a",))]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     peak = abreast(jobs, 2, Path(folder), show=lambda said: None)
    ...     print(sorted(path.name for path in Path(folder).iterdir()), peak >= 0)
    ['a.log', 'b.log'] True
    """
    todo, running, done = list(jobs), {}, []
    began, peak, looked, spoken = time.monotonic(), 0, 0.0, time.monotonic()
    logs.mkdir(parents=True, exist_ok=True)
    forks = sys.platform == "linux" and not _forker()._forkserver_pid  # one that is there is somebody else's
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([] if any(map(os.path.exists, GPU)) else list(imports))

    def left() -> str:
        """By the pace of this machine so far."""
        thought = sum(job.expected for job, _ in done)
        pace = sum(took for _, took in done) / thought if thought else 1.0
        now, ahead = time.monotonic(), [replace(job, expected=pace * job.expected) for job in todo]
        for job, _, start in running.values():
            ahead.append(replace(job, expected=max(pace * job.expected - (now - start), 0)))
        return f"{clock(now - began)} gone, about {clock(wall(ahead, lanes))} left"

    try:
        while todo or running:
            waiting = {*running, *(job.name for job in todo)}
            for job in [job for job in todo if not set(job.needs) & waiting][: lanes - len(running)]:
                log = logs / f"{job.name}.log"
                log.write_text("")
                process = context.Process(target=_work, args=(log, job.work, job.arguments), name=job.name)
                with _alone():
                    process.start()
                running[job.name] = (job, process, time.monotonic())
                todo.remove(job)
            wait([process.sentinel for _, process, _ in running.values()], timeout=0.5)
            if time.monotonic() - looked > 5:  # a look takes a tenth of a second of a core
                peak, looked = max(peak, memory()), time.monotonic()
            if not over(f"{left()} · {', '.join(running)}") and time.monotonic() - spoken > 30:
                spoken = time.monotonic()
                show(f"  {', '.join(running)}: {left()}")
            for name, (job, process, start) in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[name]
                over("")
                if process.exitcode:
                    raise JobFailed(_story(name, process.exitcode, logs / f"{name}.log"))
                done.append((job, time.monotonic() - start))
                show(f"  {name}: {clock(done[-1][1])}; " + (left() if todo or running else "all done"))
    finally:
        over("")
        _end([process for _, process, _ in running.values()], forks)
    return peak


def _forker():
    """The library's handle on the process that jobs are forked from. Imported here: not every system has it."""
    from multiprocessing.forkserver import _forkserver

    return _forkserver


def _end(processes: Sequence, forks: bool) -> None:
    """Stop the jobs, and the server that forked them with all that it forked: a call that is interrupted while a job
    starts does not know of it yet. A server that stayed would fork the modules and the environment of now for the next
    call."""
    import psutil

    server = _forker()._forkserver_pid if forks else None
    gone = suppress(psutil.NoSuchProcess)
    family = [psutil.Process(p.pid) for p in processes if p.is_alive()]
    if server:
        with gone:
            family = psutil.Process(server).children()
    try:
        for job in family:
            with gone:
                job.terminate()
        psutil.wait_procs(family, timeout=5)
    finally:
        for job in family:
            with gone:
                job.kill()
        if server:
            with suppress(ProcessLookupError):
                os.kill(server, signal.SIGTERM)
            _forker()._stop()


def _work(log: Path, work: Callable, arguments: tuple) -> None:
    """What the process does: the job, with its output in the log, until it ends or its parent does."""
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", buffering=1, closefd=False)

    def end_with_parent():
        multiprocessing.parent_process().join()
        os.kill(os.getpid(), signal.SIGTERM)  # it had no chance to stop us: free the job for whoever comes next
        time.sleep(5)
        os._exit(STOPPED)

    def stop(*_):
        signal.signal(signal.SIGTERM, lambda *_: None)  # once: what follows is the tidying up
        raise KeyboardInterrupt

    # Ctrl-C reaches a whole group, and the parent alone decides: its word is tidied up after as Ctrl-C is. With a
    # handler of Ctrl-C at work in the main thread, that word would go to another thread, and wake nobody.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        work(*arguments)
    except WorkbenchError as error:
        print(ERROR + " ".join(str(error).split()))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _story(name: str, code: int, log: Path) -> str:
    lines = [line for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    told = lines[-1].strip() if lines else "it said nothing"
    if code == 1 and told.startswith(ERROR):  # a sentence that names the thing and the remedy
        return f"{name}: {told.removeprefix(ERROR)}"
    if code in (STOPPED, -signal.SIGTERM, -9):
        told = f"killed from outside, as a system does when its memory runs out; last it said: {told}"
    return f"{name} failed ({told}): read {log}, then run this again"


@contextmanager
def _alone() -> Iterator[None]:
    """A process that starts meanwhile has one thread, for libraries look when they are loaded; and it does not run the
    caller's script again to find `work`, which is a module's."""
    main, sys.modules["__main__"] = sys.modules["__main__"], ModuleType("__main__")
    before = {name: os.environ.get(name) for name in ONE_THREAD}
    os.environ.update(ONE_THREAD)
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def over(line: str) -> bool:
    """Write the line over the last one, where a person watches; is that so?"""
    if sys.stdout.isatty():
        print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
    return sys.stdout.isatty()
