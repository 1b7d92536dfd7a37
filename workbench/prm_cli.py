"""`python -m workbench prm train` and `evaluate`: a process reward model from labelled steps, and how good it is."""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from .pretrained import changed
from .runs import Run, write
from .series import coerce
from .types import Problem, Trace, WorkbenchError

TUNING = 200  # problems of a tuning set of its own, at least, where only some of all problems are judged
TOGETHER = 64  # chains, or a few more, that are scored and kept at a time
FIGURES = "reliability", "depth", "best_of_n", "over_optimisation"
SHOWN = {"report.json", *(name + ending for name in FIGURES for ending in (".png", ".html"))}  # .html: no browser


def train(args) -> int:
    from . import stepdata
    from .smollm2 import on_disk
    from .verifiers import prm

    if args.profile not in prm.SIZES:
        raise WorkbenchError(f"profile {args.profile!r} has no pre-trained base: one of {', '.join(prm.SIZES)}")
    size = prm.SIZES[args.profile]
    plain = asdict(size.training)
    typed = {k: coerce(k, text, plain[k]) if k in plain else text for k, text in args.parameter}
    config = changed(size.training, typed)
    rows = stepdata.Rows(args.data, args.format, args.split)
    reported = stepdata.Rows(args.reported, split=args.reported_split) if args.reported else ()
    about = {"base": args.base or size.base, "data": rows.hash, "reported": None, **asdict(config)}
    if args.reported:
        about["reported"] = reported.hash
    prompts = (chain.problem.prompt for chain in reported)
    first = not int(os.environ.get("RANK", 0))
    with prm.team().main_process_first():  # under `accelerate launch` it keeps the records, and all see it finished
        inputs = on_disk(about["base"])  # which may make it first
        run = Run.open(args.out, about, inputs) if first else Run.finished(args.out, about, inputs)
    if run is not None and run.done:
        if first:
            print(f"{run.path / 'model'} is finished")
        return 0
    if not first:
        prm.train(rows, about["base"], args.out, config, prompts, log=lambda row: None, progress=False)
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


def evaluate(args) -> int:
    from . import judging, plots
    from .claims import measured
    from .models import is_checkpoint
    from .verifiers import score_all
    from .verifiers.prm import about

    for option, other in (("tuning_split", "tuning"), ("tuning_format", "tuning"), ("aggregate", "responses")):
        if getattr(args, option) and not getattr(args, other):
            raise WorkbenchError(f"--{option.replace('_', '-')} is for --{other}, and there is none: leave it out")
    if args.problems < 0:
        raise WorkbenchError(f"--problems {args.problems}: how many to judge, or 0 for all of them")
    judge = cache(_judge(args))
    if args.critiques is not None or not all(is_checkpoint(m) for m in (args.checkpoint, args.reference) if m):
        judge()  # a mistake is told before the data is read
    out = _out(args)
    policy = None if args.no_policy else _policy(args, out / "scores" / "policy")
    items, tuning, sampled = _unseen(args)
    said = about(args.checkpoint)
    both = [(chain.problem.blind(), chain.trace) for chain in items + tuning]

    def scored(name: str, pairs: Sequence[tuple[Problem, Trace]]) -> list[tuple]:
        how = {k: getattr(args, k) for k in ("way", "critiques")} | _implicit(args)
        models = {"checkpoint": args.checkpoint, "base": args.base or said.get("base"), "reference": args.reference}
        scores, counts = kept(out / "scores" / name, how, models, pairs, score)
        if drawn := counts["critiques"]:
            print(f"{counts['unknown']:,} of {drawn:,} critiques gave no verdict")
        return scores

    def score(pairs: Sequence[tuple[Problem, Trace]]) -> tuple[list[tuple], dict[str, int]]:
        if args.way == "prm":
            return judge().score_trees(pairs), {}
        before = Counter({name: getattr(judge(), name, 0) for name in ("critiques", "unknown")})
        scores = score_all(judge(), pairs)
        return scores, {name: getattr(judge(), name, 0) - n for name, n in before.items()}

    scores = scored(args.way, both)
    responses = _responses(sampled, scored, judge) if sampled else None
    baselines = {}
    if policy:
        sure = policy(both)
        baselines[judging.POLICY] = (sure[: len(items)], sure[len(items) :])
    name = args.checkpoint.name
    why = (
        "a log-ratio's sigmoid is .5 where a step changes nothing: no chance of being right" if _of_steps(args) else ""
    )
    report = judging.report(
        items, scores[: len(items)], tuning, scores[len(items) :], baselines, responses, name=name, uncalibrated=why
    )
    print(judging.as_text(report))
    asked = {k: v for k, v in vars(args).items() if k not in ("action", "command", "what", "out")}
    asked |= {"aggregate": judge().aggregate} if sampled else {}
    text = json.dumps({"settings": asked} | json.loads(judging.to_json(report)), default=str) + "\n"
    _aside(out, text)
    write(out / "report.json", text)
    figures = {"reliability": (plots.reliability_plot, report.bins), "depth": (plots.score_by_depth, report.depths)}
    if choice := report.choice:
        figures |= {"best_of_n": (plots.best_of_n, choice), "over_optimisation": (plots.over_optimisation, choice)}
    for name, (draw, rows) in figures.items():
        if figure := measured(draw, rows):  # with few problems there may be nothing to draw, and the rest stays
            plots.save(figure, out / name)
    print(out)
    return 0


def _out(args) -> Path:
    """Where the report goes: below the current folder unless it is named, and into no run: a run holds what its stage
    wrote."""
    model = args.checkpoint.resolve()
    name = model.parent.name if (model.parent / "run.json").exists() else model.name  # every run's is called `model`
    stem = re.sub(r"(\.jsonl?|\.parquet|\.gz)+$", "", Path(args.data).resolve().name)
    out = args.out or Path("runs", "judged", f"{name}-{stem}")
    for folder in (out.resolve(), *out.resolve().parents):
        if (folder / "run.json").exists():
            raise WorkbenchError(
                f"{out} lies in the run {folder}, which holds only what its stage wrote: name --out outside"
            )
    return out


def _aside(out: Path, text: str) -> None:
    """Another report than `text` is kept with its figures in a folder of its own: none of them stays beside a new one.

    Scores stay, so that what both ask for is read once.
    """
    old = sorted(path for path in out.iterdir() if path.name in SHOWN)
    if old and (out / "report.json" not in old or (out / "report.json").read_text() != text):
        number = next(n for n in range(1, 10**6) if not (out / f"earlier-{n}").exists())
        kept_in = out / f"earlier-{number}"
        kept_in.mkdir()
        for path in old:
            path.rename(kept_in / path.name)
        print(f"the report that was in {out} is another one; it is kept in {kept_in}")


def _judge(args) -> Callable:
    """What loads the verifier when it is first needed: where all its scores are kept it is not."""
    ways = {"base": "prm", "critiques": "generative", "reference": "implicit", "beta": "implicit", "form": "implicit"}
    for option, way in ways.items():
        if getattr(args, option) is not None and args.way != way:
            raise WorkbenchError(f"--{option} is for --as {way}, and this is --as {args.way}: leave it out")
    more = {} if args.aggregate is None else {"aggregate": args.aggregate}
    if args.way == "generative":
        from .verifiers.generative import Generative

        more |= {} if args.critiques is None else {"k": args.critiques}
        return lambda: Generative.load(args.checkpoint, **more)
    if args.way == "implicit":
        from .verifiers.implicit import Implicit

        if args.reference is None:
            raise WorkbenchError("--as implicit compares with what training began from: name it, --reference MODEL")
        return lambda: Implicit.load(args.checkpoint, args.reference, **more, **_implicit(args))
    from .verifiers.prm import PRM

    return lambda: PRM.load(args.checkpoint, args.base, **more)


def _implicit(args) -> dict:
    """What is said of an implicit PRM's scores, where it is said."""
    return {name: value for name in ("beta", "form") if (value := getattr(args, name)) is not None}


def _of_steps(args) -> bool:
    return args.way == "implicit" and args.form != "cumulative"


def _unseen(args) -> tuple[list, list, dict]:
    """What is judged, what thresholds come from, and the responses: problems that were not trained on."""
    from .judging import refuse_shared
    from .tasks import digest, mark
    from .verifiers.prm import about

    known = set(about(args.checkpoint).get("learnt", ()))

    def learnt(problems):
        return {problem.prompt for problem in problems if mark(problem) in known}

    items, sampled = _labelled(args.data, args.format, args.split), _graded(args.responses) if args.responses else {}
    if args.tuning:  # of what the PRM was trained on, the part that it held out will do
        tuning = _labelled(args.tuning, args.tuning_format or args.format, args.tuning_split or args.split)
        asked = {c.problem.prompt for c in tuning}
        old = learnt(c.problem for c in tuning)
        print(f"{args.tuning}: {len(old):,} of {len(asked):,} problems were trained on and are left out")
        tuning = [c for c in tuning if c.problem.prompt not in old]
        if not tuning:
            raise WorkbenchError(f"all problems of {args.tuning} were trained on: name others with --tuning")
    else:  # every fourth problem, by a hash of its text
        apart = [digest("tuning", mark(chain.problem)) % 4 == 0 for chain in items]
        tuning = [chain for chain, held in zip(items, apart, strict=True) if held]
        items = [chain for chain, held in zip(items, apart, strict=True) if not held]
        if not (items and tuning):
            raise WorkbenchError(
                f"{args.data} has too few problems to keep a quarter of them for thresholds: name others with --tuning"
            )
    problems = [c.problem for c in items + tuning] + [some[0][0] for some in sampled.values()]
    if both := learnt(problems):
        raise WorkbenchError(
            f"{len(both)} of these problems were trained on, the first {min(both)[:60]!r}: judge others"
        )
    if args.problems:  # what is reported; a tuning set of its own may be larger, for few make a threshold of luck
        items = _drawn(items, args.problems, "judged")
        few = max(args.problems, TUNING) if args.tuning else -(-args.problems // 3)
        tuning = _drawn(tuning, few, "for thresholds")
        some = sorted(sampled, key=lambda name: digest("drawn", name))[: args.problems]
        sampled = {name: sampled[name] for name in some}
    refuse_shared(items, tuning)
    return items, tuning, sampled


def _labelled(source: str, format: str | None, split: str) -> list:
    from . import stepdata
    from .packing import UNKNOWN, mask_after_error

    rows = stepdata.Rows(source, format, split)
    chains = [c._replace(labels=tuple(None if x == UNKNOWN else x for x in mask_after_error(c.labels))) for c in rows]
    print(
        f"{source}: {len(chains):,} chains, {rows.counts['labels']:,} labels; "
        f"left out, or not as they were: {', '.join(f'{n:,} x {why}' for why, n in rows.reasons()) or 'none'}"
    )
    return chains


def _drawn(chains: Sequence, n: int, what: str) -> list:
    """Whole problems: of chains that are drawn, most steps are the right ones they share."""
    from .tasks import digest

    ids = sorted({c.problem.id for c in chains}, key=lambda name: digest("drawn", name))
    some = set(ids[:n])
    print(f"{what}: {len(some):,} of {len(ids):,} problems, drawn at random, with all of their chains")
    return [c for c in chains if c.problem.id in some]


def _graded(source):
    """`stepdata.responses`, with a word on what was odd."""
    from . import stepdata

    found, odd = stepdata.responses(source)
    told = ", ".join(f"{n:,} x {what}" for what, n in odd.items()) or "nothing odd"
    print(f"{source}: {sum(map(len, found.values())):,} responses to {len(found):,} problems; {told}")
    return found


def _responses(sampled, scored, judge):
    """{problem: its responses as best-of-N wants them}, each with the aggregate of its steps' scores."""
    from .grading import canonical
    from .judging import Response
    from .select import aggregate_score

    flat = [entry for some in sampled.values() for entry in some]
    scores = iter(scored("responses", [(problem.blind(), trace) for problem, trace, *_ in flat if trace]))
    out: dict[str, list] = {name: [] for name in sampled}
    for problem, trace, answer, right in flat:
        steps = [replace(step, score=s) for step, s in zip(trace.steps, next(scores), strict=True)] if trace else ()
        whole = aggregate_score(replace(trace, steps=tuple(steps)), judge().aggregate) if trace else None
        out[problem.id].append(Response(None if answer is None else canonical(answer), right, whole))
    return out


def _policy(args, path: Path) -> Callable[[Sequence[tuple[Problem, Trace]]], list[tuple]] | None:
    """What gives the log-prob baseline, the mean probability that a language model gives to a step's tokens; None
    where nobody knows a model. Errors: it is not there, which is not for after an hour of scoring."""
    from .adapters import fast_dtype, prepare
    from .format import Encoder
    from .models import load_model, looked_at, placed
    from .verifiers.likelihood import mean_logprobs
    from .verifiers.prm import about

    base = args.policy or args.reference or args.base or about(args.checkpoint).get("base")
    if not base:
        return None
    if not (path / "DONE").exists():
        try:
            looked_at(base)
        except WorkbenchError as error:
            raise WorkbenchError(f"{error}. The log-prob baseline needs it: --policy MODEL, or --no-policy") from error
    loaded: list = []

    def score(some: Sequence[tuple[Problem, Trace]]) -> tuple[list[tuple], dict]:
        if not loaded:
            model, tokenizer = load_model(base, dtype=fast_dtype())
            prepare(model, tokenizer)
            loaded.extend((placed(model), Encoder(tokenizer)))
        return mean_logprobs(*loaded, some), {}

    def probabilities(pairs: Sequence[tuple[Problem, Trace]]) -> list[tuple]:
        found, _ = kept(path, {}, {"policy": base}, pairs, score)
        return [tuple(None if x is None else math.exp(x) for x in row) for row in found]

    return probabilities


def kept(
    path: Path,
    how: Mapping,
    models: Mapping[str, str | Path | None],
    pairs: Sequence[tuple[Problem, Trace]],
    score: Callable[[Sequence[tuple[Problem, Trace]]], tuple[list[tuple], Mapping[str, int]]],
) -> tuple[list[tuple[float | None, ...]], Counter]:
    """A score a step for every chain, and what `score` counted, from the run at `path` where it has them: a call that
    was stopped goes on where it was, and of one that ended nothing is read again.

    `score` is given whole problems, `TOGETHER` chains of them at a time, the same wherever it goes on from, so that the
    numbers do not depend on it. Other chains, another `how` or other `models` (their bytes, if they lie on this
    machine) begin a run of their own.
    """
    from tqdm.auto import tqdm

    from .tasks import digest

    groups: dict[str, list[int]] = {}
    for place, (problem, _) in enumerate(pairs):
        groups.setdefault(problem.id, []).append(place)
    parts: list[list[int]] = [[]]
    for places in groups.values():
        if len(parts[-1]) >= TOGETHER:
            parts.append([])
        parts[-1] += places
    chains = [[p.id, p.prompt, [[step.text, step.final] for step in trace.steps]] for p, trace in pairs]
    named = {name: str(model) for name, model in models.items() if model}
    here = {name: model for name, model in named.items() if Path(model).exists()}  # wherever it lies
    params = {**how, "chains": digest(json.dumps(chains)), "together": TOGETHER}
    run = Run.open(path, params | {name: model for name, model in named.items() if name not in here}, here)
    rows = run.read("scores")
    if run.done:
        print(f"scores of {path.name}: read before; to read again, delete {path}")
    with tqdm(total=len(pairs), desc=f"scores of {path.name}", unit="chain", disable=run.done) as bar:
        for number, places in enumerate(parts):
            if number >= len(rows):
                scores, counts = score([pairs[place] for place in places])
                rows.append({"places": places, "scores": scores, "counts": counts})
                run.append("scores", rows[-1:])
            bar.update(len(places))
    if not run.done:
        run.finish()
    found = {place: tuple(s) for row in rows for place, s in zip(row["places"], row["scores"], strict=True)}
    return [found[place] for place in range(len(pairs))], sum((Counter(row["counts"]) for row in rows), Counter())
