"""The command line: `python -m workbench COMMAND`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from .select import AGGREGATES
from .types import WorkbenchError, aligned, unknown


def doctor(args) -> int:
    from . import doctor

    checks = doctor.examine(args.profile)
    print(json.dumps([vars(check) for check in checks], indent=1) if args.json else doctor.table(checks))
    return 0 if all(check.state != "missing" or not check.needed for check in checks) else 1


def build(args) -> int:
    from . import series

    stale = series.build(check=args.check)
    for path in stale:
        print(f"{'stale' if args.check else 'built'}: {path}")
    if args.check and stale:
        print("run: python -m workbench build", file=sys.stderr)
        return 1
    print(f"{len(series.names())} notebooks are up to date")
    return 0


def run(args) -> int:
    from . import gallery, series

    given = dict(args.parameter)
    if args.marimo:
        series.run_marimo(args.notebook, args.profile, args.runs, given)
        return 0
    status = series.run(args.notebook, args.profile, args.runs, given, again=args.again)
    gallery.illustrate([Path(status["output"])])
    print(status["output"])
    return 0


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise WorkbenchError(f"-p {text!r}: write it as -p name=value")
    return name.strip(), value.strip()


def reproduce(args) -> int:
    from . import claims as found
    from . import gallery, lanes, pipeline, series

    series.check_profile(args.profile)
    if args.seed < 0:
        raise WorkbenchError(f"--seed {args.seed}: 0, or another training's number from 1 on")
    root, began = series.runs_folder(args.runs), time.monotonic()
    runs = root / f"seed-{args.seed}" if args.seed else root
    built, most = pipeline.build(args.profile, runs, args.seed, lanes.how_many(gigabytes=2))
    given = {"seed": args.seed}
    ran, peak = series.reproduce(args.profile, runs, given, again=args.again, lanes=lanes.how_many(gigabytes=4))
    both, left_out = series.trainings(args.profile, root, args.seed)
    print("\n".join(["", *left_out, found.table(both), ""]))
    if args.profile == "nano" and args.runs is None and both.get(0):
        page = found.page(both, args.profile, time.strftime("%Y-%m-%d"))
        series.write(series.ROOT / "docs" / "claims.md", page)
    for folder in dict.fromkeys([root, runs] if both.get(0) else [runs]):  # the first training's tells of this one, too
        print(f"gallery: {gallery.write(args.profile, folder, anew=args.again)}")
    row = {"seconds": round(time.monotonic() - began, 1), "peak_mb": max(most, peak), "built": built}
    row |= {"stages": len(pipeline.STAGES), "ran": ran}
    with (runs / args.profile / "reproduce.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    return 0


def claims(args) -> int:
    from . import claims, series

    series.check_profile(args.profile)
    _there(args.runs)
    found, left_out = series.trainings(args.profile, args.runs)
    print(*left_out, sep="\n", end="\n" * bool(left_out), file=sys.stderr)
    if args.json:
        print(claims.to_json(found))
    else:
        print(claims.table(found) if any(found.values()) else "no claims yet: run the notebooks with `make reproduce`")
    return 0


def gallery(args) -> int:
    from . import gallery

    _there(args.runs)
    print(f"gallery: {gallery.write(args.profile, args.runs)}")
    return 0


def _there(runs: Path | None) -> None:
    """What only reads a named folder must not take a slip of the pen for an empty one."""
    if runs is not None and not runs.is_dir():
        what = "is a file, not the folder of all runs" if runs.exists() else "is not there"
        raise WorkbenchError(f"--runs {runs} {what}: name the folder that `reproduce` or `run` wrote to")


def solve(args) -> int:
    from . import pipeline, series

    series.check_profile(args.profile)
    args.runs = series.runs_folder(args.runs)
    return pipeline.solve_cli(args)


def stage(args) -> int:
    from . import pipeline, pretrained, series

    pipeline.build_stage(args.stage, args.profile, series.runs_folder(args.runs), args.seed, pretrained.open_series)
    return 0


def prm(args) -> int:
    from . import prm_cli

    return getattr(prm_cli, args.what)(args)


def bench(args) -> int:
    import importlib.util

    from . import series

    folder = series.ROOT / "benchmarks"
    known = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    if args.name and args.name not in known:
        raise unknown("benchmark", args.name, known)
    sys.path.insert(0, str(folder))  # what benchmarks share lies beside them
    held = True
    for name in [args.name] if args.name else known:
        spec = importlib.util.spec_from_file_location(f"benchmarks.{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        rows = module.main()
        path = series.runs_folder(args.runs) / "bench" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        series.write(path, json.dumps(rows, indent=1) + "\n")
        print(bench_table(name, rows), end="\n\n")
        held &= all(row["holds"] is not False for row in rows)
    return 0 if held else 1


def bench_table(name: str, rows: list[dict[str, Any]]) -> str:
    """Rows of name, value, unit, goal, holds as aligned text; a goal of None is a measurement without a goal.

    >>> print(bench_table("speed", [dict(name="sample", value=5120.4, unit="tokens/s", goal=">= 5000", holds=True)]))
    speed   value  unit      goal     holds
    sample  5,120  tokens/s  >= 5000  yes
    """
    words = {True: "yes", False: "NO", None: "-"}
    lines = [[name, "value", "unit", "goal", "holds"]]
    for row in rows:
        goal = "-" if row["goal"] is None else str(row["goal"])
        lines.append([row["name"], _number(row["value"]), row["unit"], goal, words[row["holds"]]])
    return aligned(lines, right=(1,))


def _number(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


class _Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one sentence with the remedy, like every other mistake here."""

    def error(self, message: str):
        raise WorkbenchError(f"{message}; see `{self.prog} --help`")


def parser() -> argparse.ArgumentParser:
    main = _Parser(prog="python -m workbench", description="A notebook-first research workbench for reasoning models.")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    repeated = {"type": _pair, "action": "append", "default": [], "metavar": "NAME=VALUE", "help": "may be repeated"}

    def command(action, text, profile=True, runs=True):
        made = commands.add_parser(action.__name__, help=text, description=text)
        made.set_defaults(action=action)
        if profile:
            made.add_argument(
                "--profile",
                default="nano",
                help="nano (default); micro: the plumbing in seconds; for `run` 03-07 and `stage` also small or gpu",
            )
        if runs:
            made.add_argument("--runs", type=Path, help="folder of all runs (default: runs/ in the project)")
        return made

    made = command(doctor, "say what this machine can do, and what to do about what it can't", runs=False)
    made.add_argument("--json", action="store_true", help="for machines")
    made = command(build, "make the notebooks from notebooks/src", profile=False, runs=False)
    made.add_argument("--check", action="store_true", help="write nothing; exit 1 and name what is out of date")
    made = command(run, "run one notebook under papermill")
    made.add_argument("notebook", help="its number or name: 4, 04_prm, prm")
    made.add_argument("-p", "--parameter", **repeated)
    made.add_argument("--again", action="store_true", help="run it even if it is finished and unchanged")
    made.add_argument("--marimo", action="store_true", help="run the marimo build instead")
    made = command(reproduce, "run the whole series, print the claims, write the gallery")
    made.add_argument("--again", action="store_true", help="run every notebook again; finished stages stay")
    told = "train all again on other problems, in runs/seed-<n>; from three trainings on, a claim is about all of them"
    made.add_argument("--seed", type=int, default=0, help=told)
    made = command(claims, "print what the notebooks found, with intervals")
    made.add_argument("--json", action="store_true", help="for machines")
    command(gallery, "write the executed notebooks as web pages that need no network")
    made = command(stage, "build one stage of the series, such as teach or judge-likelihood")
    made.add_argument("stage", help="the name of its folder under runs/<profile>")
    made.add_argument("--seed", type=int, default=0)
    made = command(solve, "reason about a problem of your own with the trained models")
    made.add_argument("problem", help='for example "47+38-29*2"')
    made.add_argument("--n", type=int, default=32, help="how many chains to grow (default 32)")
    made.add_argument("--seed", type=int, default=0)
    made = commands.add_parser("prm", help="train a process reward model on step labels, or judge one")
    inner = made.add_subparsers(dest="what", metavar="train|evaluate", parser_class=_Parser, required=True)
    made = inner.add_parser("train", help="from PRM800K, Math-Shepherd, OmegaPRM or ProcessBench rows")
    made.set_defaults(action=prm)
    made.add_argument("data", help="a file, a folder, or a hub id owner/name")
    made.add_argument("--profile", default="small", help="small (default) or gpu: the base and the scalars")
    made.add_argument("--out", type=Path, required=True, help="the run's folder; the same command goes on in it")
    made.add_argument("--base", help="another base: a checkpoint folder or hub id")
    made.add_argument("--reported", help="step labels that the PRM will be measured on: an overlap is refused")
    made.add_argument("--reported-split", default="test", help="the split of those, if a hub data set (default test)")
    made.add_argument("--format", help="the rows' format, where it cannot be told from their fields")
    made.add_argument("--split", default="train", help="the split of a hub data set (default train)")
    made.add_argument("-p", "--parameter", **repeated)
    made = inner.add_parser("evaluate", help="step AUC, first-error F1, calibration and depth, beside three baselines")
    made.set_defaults(action=prm)
    made.add_argument("checkpoint", type=Path, help="the model folder that `prm train` wrote, or a language model's")
    made.add_argument("data", help="labelled steps: a file, a folder, or a hub id owner/name")
    made.add_argument(
        "--tuning", help="labelled steps for the threshold, without what was trained on (default: a quarter)"
    )
    told = "sampled responses that are graded, to choose from: JSON lines of question, code, pred and score"
    made.add_argument("--responses", help=told)
    told = "a response's score from those of its steps (default: what suits the verifier)"
    made.add_argument("--aggregate", choices=tuple(AGGREGATES), help=told)
    ways = "prm (default), a language model that is asked for critiques, or one that is held against a --reference"
    made.add_argument("--as", dest="way", default="prm", choices=("prm", "generative", "implicit"), help=ways)
    made.add_argument("--base", help="where an adapter's base lies, if not where it was (--as prm)")
    made.add_argument("--critiques", type=int, help="how many of each step (--as generative; default 4)")
    made.add_argument("--reference", help="the model that training began from (--as implicit)")
    made.add_argument(
        "--beta", type=float, help="the scale of its rewards, as in training (--as implicit; default .05)"
    )
    told = "score a step's own reward (default) or the sum so far (--as implicit)"
    made.add_argument("--form", choices=("step", "cumulative"), help=told)
    made.add_argument("--policy", help="the language model of the log-prob baseline (default: the base, the reference)")
    told = "judge so many; the threshold comes from a third as many others, or from 200 or more of --tuning"
    made.add_argument("--problems", type=int, default=0, help=told)
    made.add_argument("--no-policy", action="store_true", help="leave that baseline out, which halves the time")
    made.add_argument("--format", help="the rows' format, where it cannot be told from their fields")
    made.add_argument("--split", default="train", help="the split of a hub data set (default train)")
    made.add_argument("--tuning-format", help="the same of --tuning (default: as --format)")
    made.add_argument("--tuning-split", help="the same of --tuning (default: as --split)")
    told = "where report.json and the figures go, outside of runs (default: runs/judged/RUN-DATA, here)"
    made.add_argument("--out", type=Path, help=told)
    made = command(bench, "measure speed and quality against their goals", profile=False)
    made.add_argument("name", nargs="?", help="one file of benchmarks/; all of them when left out")
    return main


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 fine, 1 the work failed, 2 a mistake in what was asked."""
    argv = sys.argv[1:] if argv is None else argv
    made = parser()
    try:
        if not argv:
            made.print_help()
            return 0
        if not argv[0].startswith("-"):
            known = next(a for a in made._actions if isinstance(a, argparse._SubParsersAction)).choices
            if argv[0] not in known:
                raise unknown("command", argv[0], known)
        args = made.parse_args(argv)
        return args.action(args)
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return getattr(error, "code", 2)
    except OSError as error:
        if error.strerror is None:
            raise
        print(f"workbench: {_disk(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("workbench: stopped; the same command goes on from the last finished unit", file=sys.stderr)
        return 130


def _disk(error: OSError) -> str:
    import errno

    place = f": {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{place}; free some space and start the same command again"
    return f"{error.strerror}{place}"


if __name__ == "__main__":
    sys.exit(main())
