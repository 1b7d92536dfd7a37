"""The command line: `python -m workbench COMMAND`. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from .types import WorkbenchError, unknown


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

    given = dict(_pair(text) for text in args.parameter)
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
    from . import lanes, pipeline, series

    series.check_profile(args.profile)
    runs, began = series.runs_folder(args.runs), time.monotonic()
    built, most = pipeline.build(args.profile, runs, lanes=lanes.lanes(gigabytes=2))
    ran, peak = series.reproduce(args.profile, args.runs, again=args.again, lanes=lanes.lanes(gigabytes=4))
    args.json, args.anew = False, args.again
    print()
    claims(args)
    if args.profile == "nano" and args.runs is None:
        from . import claims as found

        page = found.page(found.load(runs, args.profile), args.profile, time.strftime("%Y-%m-%d"))
        series.write(series.ROOT / "docs" / "claims.md", page)
    print()
    code = gallery(args)
    row = {"seconds": round(time.monotonic() - began, 1), "peak_mb": max(most, peak), "built": built}
    row |= {"stages": len(pipeline.STAGES), "ran": ran}
    with (runs / args.profile / "reproduce.jsonl").open("a") as log:
        log.write(json.dumps(row) + "\n")
    return code


def claims(args) -> int:
    from . import claims, series

    series.check_profile(args.profile)
    rows = claims.load(series.runs_folder(args.runs), args.profile)
    if args.json:
        print(claims.to_json(rows))
    else:
        print(claims.table(rows) if rows else "no claims yet: run the notebooks with `make reproduce`")
    return 0


def gallery(args) -> int:
    from . import gallery

    page = gallery.write(args.profile, args.runs, anew=getattr(args, "anew", True))
    print(f"gallery: {page}")
    return 0


def solve(args) -> int:
    from . import pipeline, series

    series.check_profile(args.profile)
    args.runs = series.runs_folder(args.runs)
    return pipeline.solve_cli(args)


def stage(args) -> int:
    from . import pipeline, pretrained, series

    pipeline.build_stage(args.stage, args.profile, series.runs_folder(args.runs), args.seed, pretrained.open_series)
    return 0


def prm_train(args) -> int:
    from . import stepdata
    from .runs import Run
    from .verifiers import prm

    if args.profile not in prm.SIZES:
        raise WorkbenchError(f"profile {args.profile!r} has no pre-trained base: one of {', '.join(prm.SIZES)}")
    size = prm.SIZES[args.profile]
    config = _changed(size.training, dict(_pair(text) for text in args.parameter))
    rows = stepdata.Rows(args.data, args.format, args.split)
    reported = stepdata.Rows(args.reported, split=args.reported_split) if args.reported else ()
    about = {"base": args.base or size.base, "data": rows.hash, "reported": None, **asdict(config)}
    if args.reported:
        about["reported"] = reported.hash
    prompts = (chain.problem.prompt for chain in reported)
    if int(os.environ.get("RANK", 0)):  # under `accelerate launch` the first process keeps the records
        prm.train(rows, about["base"], args.out, config, prompts, log=lambda row: None, progress=False)
        return 0
    run = Run.open(args.out, about)
    if run.done:
        print(f"{run.path / 'model'} is finished")
        return 0
    run.rewind("history", prm.reached(run.path / "trainer") or -1)  # -1: the header, too, comes again

    def log(row):
        run.append("history", [row])
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)

    if config == size.training and not args.base:
        need = size.memory(4).total / 1e9
        print(f"{size.note}, about {size.minutes} minutes, {need:.1f} GB of memory at most")
    folder, cost = prm.train(rows, about["base"], run.path, config, prompts, log=log)
    listed = dict(rows.reasons()) | {"listed": rows.rejected}
    run.finish(rows=rows.counts["rows"], chains=rows.counts["chains"], rejected=listed, cost=asdict(cost))
    print(folder)
    return 0


def prm_evaluate(args) -> int:
    from . import judging, plots, stepdata
    from .adapters import fast_dtype, prepare
    from .claims import measured
    from .format import Encoder
    from .models import load_model, placed
    from .packing import UNKNOWN, mask_after_error
    from .tasks import digest, plain
    from .verifiers import score_all
    from .verifiers.likelihood import mean_logprobs
    from .verifiers.prm import about

    def score(pairs):
        return judge.score_trees(pairs, progress=True) if args.way == "prm" else score_all(judge, pairs, progress=True)

    if args.problems < 0:
        raise WorkbenchError(f"--problems {args.problems}: how many to judge, or 0 for all of them")
    judge = _judge(args)

    def labelled(source):
        known = stepdata.Rows(source, args.format, args.split)
        chains = [
            c._replace(labels=tuple(None if x == UNKNOWN else x for x in mask_after_error(c.labels))) for c in known
        ]
        print(
            f"{source}: {len(chains):,} chains, {known.counts['labels']:,} labels; "
            f"left out, or not as they were: {', '.join(f'{n:,} x {why}' for why, n in known.reasons()) or 'none'}"
        )
        return chains

    def drawn(chains, n, what):  # whole problems: of chains that are drawn, most steps are the right ones they share
        ids = sorted({c.problem.id for c in chains}, key=lambda name: digest("drawn", name))
        kept = set(ids[:n])
        print(f"{what}: {len(kept):,} of {len(ids):,} problems, drawn at random, with all of their chains")
        return [c for c in chains if c.problem.id in kept]

    items, tuning = labelled(args.data), labelled(args.tuning) if args.tuning else None
    if tuning is None:  # every fourth problem, by a hash of its text
        apart = [digest("tuning", chain.problem.id) % 4 == 0 for chain in items]
        tuning = [chain for chain, held in zip(items, apart, strict=True) if held]
        items = [chain for chain, held in zip(items, apart, strict=True) if not held]
    sampled = _responses(args.responses) if args.responses else {}
    known = set(about(args.checkpoint).get("learnt", ()))

    def learnt(prompts):
        return {prompt for prompt in prompts if digest(plain(prompt)) in known}

    if args.tuning:  # of what the PRM was trained on, the part that it held out will do
        asked = {c.problem.prompt for c in tuning}
        old = learnt(asked)
        print(f"{args.tuning}: {len(old):,} of {len(asked):,} problems were trained on and are left out")
        tuning = [c for c in tuning if c.problem.prompt not in old]
        if not tuning:
            raise WorkbenchError(f"all problems of {args.tuning} were trained on: name others with --tuning")
    problems = [c.problem for c in items + tuning] + [some[0][0] for some in sampled.values()]
    if both := learnt({p.prompt for p in problems}):
        raise WorkbenchError(
            f"{len(both)} of these problems were trained on, the first {min(both)[:60]!r}: judge others"
        )
    if args.problems:
        items, tuning = drawn(items, args.problems, "judged"), drawn(tuning, -(-args.problems // 3), "for thresholds")
        kept = sorted(sampled, key=lambda name: digest("drawn", name))[: args.problems]
        sampled = {name: sampled[name] for name in kept}
    out = args.out or args.checkpoint.parent / f"judged-{Path(args.data).stem}"
    both = [(chain.problem.blind(), chain.trace) for chain in items + tuning]
    scores = score(both)
    responses = _scored(sampled, score, judge.aggregate) if sampled else None
    if args.way == "generative":
        print(f"{judge.unknown:,} of {judge.critiques:,} critiques gave no verdict")
    baselines, base = {}, args.policy or args.reference or about(args.checkpoint).get("base")
    if base and not args.no_policy:
        model, tokenizer = load_model(base, dtype=fast_dtype())
        prepare(model, tokenizer)
        found = mean_logprobs(placed(model), Encoder(tokenizer), both, progress=True)
        sure = [tuple(None if x is None else math.exp(x) for x in row) for row in found]
        baselines[judging.POLICY] = (sure[: len(items)], sure[len(items) :])
    report = judging.report(
        items, scores[: len(items)], tuning, scores[len(items) :], baselines, responses, name=args.checkpoint.name
    )
    print(judging.as_text(report))
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(judging.to_json(report) + "\n")
    figures = {"reliability": (plots.reliability_plot, report.bins), "depth": (plots.score_by_depth, report.depths)}
    if choice := report.choice:
        figures |= {"best_of_n": (plots.best_of_n, choice), "over_optimisation": (plots.over_optimisation, choice)}
    for name, (draw, rows) in figures.items():
        if figure := measured(draw, rows):  # with few problems there may be nothing to draw, and the rest stays
            plots.save(figure, out / name)
    print(out)
    return 0


def _responses(source):
    """`stepdata.responses`, with a word on what was odd."""
    from . import stepdata

    found, odd = stepdata.responses(source)
    told = ", ".join(f"{n:,} x {what}" for what, n in odd.items()) or "nothing odd"
    print(f"{source}: {sum(map(len, found.values())):,} responses to {len(found):,} problems; {told}")
    return found


def _scored(sampled, score, aggregate):
    """{problem: its responses as best-of-N wants them}, each with the aggregate of its steps' scores."""
    from .grading import canonical
    from .judging import Response
    from .select import aggregate_score

    flat = [entry for some in sampled.values() for entry in some]
    scores = iter(score([(problem.blind(), trace) for problem, trace, *_ in flat if trace]))
    out: dict[str, list] = {name: [] for name in sampled}
    for problem, trace, answer, right in flat:
        steps = [replace(step, score=s) for step, s in zip(trace.steps, next(scores), strict=True)] if trace else ()
        whole = aggregate_score(replace(trace, steps=tuple(steps)), aggregate) if trace else None
        out[problem.id].append(Response(None if answer is None else canonical(answer), right, whole))
    return out


def _judge(args):
    for option, way in (("base", "prm"), ("critiques", "generative"), ("reference", "implicit")):
        if getattr(args, option) is not None and args.way != way:
            raise WorkbenchError(f"--{option} is for --as {way}, and this is --as {args.way}: leave it out")
    if args.way == "generative":
        from .verifiers.generative import Generative

        return Generative.load(args.checkpoint, **({} if args.critiques is None else {"k": args.critiques}))
    if args.way == "implicit":
        from .verifiers.implicit import Implicit

        if args.reference is None:
            raise WorkbenchError("--as implicit compares with what training began from: name it, --reference MODEL")
        return Implicit.load(args.checkpoint, args.reference)
    from .verifiers.prm import PRM

    return PRM.load(args.checkpoint, args.base)


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _changed(config, given: dict[str, str]):
    """`config` with some fields replaced by what was typed, read as the field's own kind."""
    kinds = {field.name: type(getattr(config, field.name)) for field in fields(config)}
    for name, text in given.items():
        if name not in kinds:
            raise unknown("parameter", name, kinds)
        try:
            value = _BOOLS[text.lower()] if kinds[name] is bool else kinds[name](text)
        except (ValueError, KeyError):
            raise WorkbenchError(f"-p {name}={text}: {name} is {kinds[name].__name__}") from None
        config = replace(config, **{name: value})
    return config


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
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = [str.ljust, str.rjust, str.ljust, str.ljust, str.ljust]
    rows_of_text = [[p(cell, w) for p, cell, w in zip(pad, line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line).rstrip() for line in rows_of_text)


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
    made.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    made.add_argument("--again", action="store_true", help="run it even if it is finished and unchanged")
    made.add_argument("--marimo", action="store_true", help="run the marimo build instead")
    made = command(reproduce, "run the whole series, print the claims, write the gallery")
    made.add_argument("--again", action="store_true", help="run every notebook again; finished stages stay")
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
    made.set_defaults(action=prm_train)
    made.add_argument("data", help="a file, a folder, or a hub id owner/name")
    made.add_argument("--profile", default="small", help="small (default) or gpu: the base and the scalars")
    made.add_argument("--out", type=Path, required=True, help="the run's folder; the same command goes on in it")
    made.add_argument("--base", help="another base: a checkpoint folder or hub id")
    made.add_argument("--reported", help="step labels that the PRM will be measured on: an overlap is refused")
    made.add_argument("--reported-split", default="test", help="the split of those, if a hub data set (default test)")
    made.add_argument("--format", help="the rows' format, where it cannot be told from their fields")
    made.add_argument("--split", default="train", help="the split of a hub data set (default train)")
    made.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="may be repeated")
    made = inner.add_parser("evaluate", help="step AUC, first-error F1, calibration and depth, beside three baselines")
    made.set_defaults(action=prm_evaluate)
    made.add_argument("checkpoint", type=Path, help="the model folder that `prm train` wrote, or a language model's")
    made.add_argument("data", help="labelled steps: a file, a folder, or a hub id owner/name")
    made.add_argument(
        "--tuning", help="labelled steps for the threshold, without what was trained on (default: a quarter)"
    )
    told = "sampled responses that are graded, to choose from: JSON lines of question, code, pred and score"
    made.add_argument("--responses", help=told)
    ways = "prm (default), a language model that is asked for critiques, or one that is held against a --reference"
    made.add_argument("--as", dest="way", default="prm", choices=("prm", "generative", "implicit"), help=ways)
    made.add_argument("--base", help="where an adapter's base lies, if not where it was (--as prm)")
    made.add_argument("--critiques", type=int, help="how many of each step (--as generative; default 4)")
    made.add_argument("--reference", help="the model that training began from (--as implicit)")
    made.add_argument("--policy", help="the language model of the log-prob baseline (default: the base, the reference)")
    made.add_argument(
        "--problems", type=int, default=0, help="judge so many, and a third as many others for the threshold"
    )
    made.add_argument("--no-policy", action="store_true", help="leave that baseline out, which halves the time")
    made.add_argument("--format", help="the rows' format, where it cannot be told from their fields")
    made.add_argument("--split", default="train", help="the split of a hub data set (default train)")
    made.add_argument("--out", type=Path, help="where report.json and the figures go (default: beside the checkpoint)")
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
