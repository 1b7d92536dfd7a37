import marimo

__generated_with = "0.25.2"
app = marimo.App()


@app.cell
def _():
    import marimo as mo

    return (mo,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    # What does reward teach that examples did not?

    Examples showed the policy what a good chain looks like. Reward shows it which of *its own* chains were good. You take
    the policy from notebook 02, let it write groups of chains, and push it towards those that earn more. Several rewards
    compete: a right answer, ways to add up what the judge of notebook 04 says about the steps, and mixtures of both.

    - **You will know** how GRPO turns a group of rewards into a gradient, what a clipped ratio prevents, whether reward
      makes the policy *able* or only *sure*, and how a reward can rise while the truth does not.
    - **Time and memory.** `nano`: 1 min and 2 GB when the five runs are on disk. What is missing is built here, with a
      progress bar. `small`: 60 min and 6 GB on two cores (SmolLM2-135M on GSM8K). `gpu`: 60 min and 14 GB on one GPU
      (1.5B parameters in 4 bits). Both are estimated, after notebook 05.
    - **Modules.** `rl`, `watch`, `labels`, `scaling`, `plots`, `claims`.
    """)
    return


@app.cell
def _():
    # Cell tags: setup
    from dataclasses import replace

    import torch
    from IPython.display import Markdown

    from workbench import claims, evaluate, plots, rl, scaling, watch
    from workbench.pipeline import ledger, read_records
    from workbench.pretrained import open_series
    from workbench.search import drive
    from workbench.widgets import curves

    return (
        Markdown,
        claims,
        curves,
        drive,
        evaluate,
        ledger,
        open_series,
        plots,
        read_records,
        replace,
        rl,
        scaling,
        torch,
        watch,
    )


@app.cell
def _():
    # Cell tags: parameters
    profile = "nano"
    runs = "runs"
    seed = 0
    changes = {}
    return changes, profile, runs, seed


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A group of four, by hand

    You ask one question four times. One chain is right. GRPO (arXiv 2402.03300) needs no value network: a chain's
    *advantage* is how far its reward lies from the mean of its own group, in standard deviations.
    """)
    return


@app.cell
def _(torch):
    rewards = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    mean, std = rewards.mean(), rewards.std()
    (rewards - mean) / std
    return (rewards,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The mean is 1/4 and the standard deviation 1/2. The one right chain is pushed up three times as hard as each wrong one
    is pushed down. The package does the same, for many groups at once.
    """)
    return


@app.cell
def _(plots, rl):
    plots.show_source(rl.normalised)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A group that is all right, or all wrong, says nothing. Its advantages are zero and its chains are skipped.
    """)
    return


@app.cell
def _(rl, torch):
    rl.normalised(torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The loss multiplies the advantage by a ratio: how likely is the token now, against when it was sampled? Past 1 ± 0.2
    it pays nothing to go further in the same direction.
    """)
    return


@app.cell
def _(rl, torch):
    def gain(ratio, advantage, clip=0.2):
        new, old, one = torch.tensor([ratio]).log(), torch.zeros(1), torch.ones(1)
        return -rl.clipped_loss(new, old, torch.tensor([advantage]), one, clip, clip).item()

    return (gain,)


@app.cell
def _(gain):
    for _advantage in (1.0, -1.0):
        print(
            f"advantage {_advantage:+}:", {ratio: round(gain(ratio, _advantage), 2) for ratio in (0.5, 0.8, 1.0, 1.2, 1.5)}
        )
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Read the second line twice. A bad token that has become *more* likely (ratio 1.5) is charged in full: the clip limits
    rewards, never regrets.
    """)
    return


@app.cell
def _(plots, rl):
    plots.show_source(rl.clipped_loss)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A family

    GRPO's relatives differ in two places: what a chain's advantage is, and how much each of its tokens counts. You put
    one group through all of them: the rewards of above, and chains of 10, 20, 20 and 40 tokens.
    """)
    return


@app.cell
def _(rewards, rl):
    _lengths = [10, 20, 20, 40]
    for _name, _variant in rl.VARIANTS.items():
        _over = rl.deviation(rewards) if _variant.scale else 1
        _some = _variant.advantage and [round(a, 2) for a in (_variant.advantage(rewards) / _over)[0].tolist()]
        _weights = rl.token_weights(_lengths, _variant.mean, 96).split(_lengths)
        _told = [round(1000 * part[0].item(), 1) for part in _weights]
        print(f"{_name:<8} advantage {_some or 'from a value head'}; a token counts {_told} / 1000")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    GRPO's mean inside each response makes a token of a long chain cheap, right or wrong: a long mistake costs little.
    Dr.GRPO and DAPO undo that. Dr.GRPO also drops the deviation, for to divide by a small one makes the most of groups
    that are nearly all right or nearly all wrong. PPO learns a value for every token and needs no group; its advantages
    look ahead:
    """)
    return


@app.cell
def _(plots, rl):
    plots.show_source(rl.gae)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A real group

    You open the series, take the taught policy, and let it answer one training problem eight times.
    """)
    return


@app.cell
def _(changes, open_series, profile, runs, seed):
    series = open_series(profile, runs, seed, changes)
    policy, judge, sampling = series.policy(), series.verifier(), series.profile.sampling
    problems = series.problems("train", 24)
    return judge, policy, problems, sampling, series


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You look for a group that has something to say: some chains right, some wrong (or take the last one).
    """)
    return


@app.cell
def _(drive, policy, problems, rl, sampling, seed):
    groups = drive(problems, "majority", policy, seed=seed, sampling=sampling, n=8)
    pairs = [[(g.problem, leaf.trace) for leaf in g.leaves] for g in groups]
    outcomes = [rl.outcome(group).chains for group in pairs]
    pick = next((i for i, rewards_of in enumerate(outcomes) if 0 < sum(rewards_of) < 8), len(pairs) - 1)
    problems[pick].prompt, outcomes[pick]
    return outcomes, pairs, pick


@app.cell
def _(outcomes, pairs, pick, rl, torch):
    _scores = rl.normalised(torch.tensor([outcomes[pick]]))[0].tolist()
    for (_, _trace), _advantage in zip(pairs[pick], _scores, strict=True):
        print(f"{_advantage:+.2f}  {'; '.join(step.text for step in _trace.steps)}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    How many of the groups say anything at all? The rest costs samples and teaches nothing.
    """)
    return


@app.function
def speaking(outcomes):
    """The share of groups with right and wrong chains."""
    return sum(0 < sum(each) < len(each) for each in outcomes) / len(outcomes)


@app.cell
def _(outcomes):
    print(f"{speaking(outcomes):.0%} of {len(outcomes)} groups have right and wrong chains")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A policy that is sure of itself says the same thing eight times. Heat makes it stray. Mind that this may silence a
    group, too: who strays in every chain is wrong in all of them. So look at the start and at what a run makes of it.
    The runs below learn in the heat because it was tried (`docs/results.md`, "heat for reward"): who learns to be right
    in the heat is surer in the cold. What a run writes of each step (proxy, truth, tokens, entropy) is of the chains that
    it learns from, so of the heat; checks on held-out problems, and what is said of test problems, are at temperature 1.
    """)
    return


@app.cell
def _(
    drive,
    outcomes,
    policy,
    problems,
    replace,
    rl,
    sampling,
    seed,
    series,
    torch,
):
    heat = series.profile.reinforce.temperature
    hot = replace(sampling, temperature=heat)
    again = drive(problems, "majority", policy, seed=seed, sampling=hot, n=8)
    heated = [rl.outcome([(g.problem, leaf.trace) for leaf in g.leaves]).chains for g in again]
    print(f"temperature {heat}: {speaking(heated):.0%} speak; right {torch.tensor(heated).mean():.2f}", end=", ")
    print(f"at 1: {torch.tensor(outcomes).mean():.2f}")
    return


@app.cell
def _(series):
    _steps = series.reinforce("outcome").read("history")[1:]
    for _row in (_steps[0], _steps[len(_steps) // 2], _steps[-1]):
        print(f"step {_row['step']:>3}: {1 - _row['uniform_groups']:.0%} of the groups speak; right {_row['true']:.2f}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Rewards

    *Outcome* asks for the right answer and nothing else. A chain that never closed earns nothing.
    """)
    return


@app.cell
def _(plots, rl):
    plots.show_source(rl.outcome)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    *Process* rewards read the judge's step scores. The sum is the usual credit; PURE (arXiv 2504.15275) takes the worst
    step instead.
    """)
    return


@app.cell
def _(plots, rl):
    plots.show_source(rl.credit)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Compare two chains on paper: three steps scored 0.9, and the same with two more steps scored 0.5. Which one does each
    form prefer?
    """)
    return


@app.cell
def _(rl):
    short, padded = [0.9, 0.9, 0.9], [0.9, 0.9, 0.9, 0.5, 0.5]
    for _form in ("sum", "min", "difference"):
        print(f"{_form:<10} {sum(rl.credit(_form, short)):.2f} against {sum(rl.credit(_form, padded)):.2f}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The sum likes padding. Will the policy find out? PURE also mixes a verifiable reward in; `mixed` adds the outcome to
    the min form. You run all four (or find them on disk): same start, same stream of problems. They need not be equally
    long, nor learn at one rate; both are printed.
    """)
    return


@app.cell
def _(series):
    names = {"outcome": "outcome", "sum": "prm-sum", "min": "prm-min", "mixed": "prm-mixed"}
    trained = {name: series.reinforce(reward) for name, reward in names.items()}
    history = {name: run.read("history")[1:] for name, run in trained.items()}
    for _name, _run in trained.items():
        _rl = _run.params["rl"]
        print(f"{_name:<8} {len(history[_name]):>3} steps, rates {_rl['lr']:g} (AdamW), {_rl['muon_lr']:g} (Muon)")
    print("a row has", ", ".join(sorted(history["sum"][0])))
    return history, names, trained


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The proxies have different scales: a sum grows with the chain. To draw them together you divide by what one honest,
    perfect chain earns: 1 for outcome and min, 2 for their mixture; one point a step for the sum, so operations + 1.
    """)
    return


@app.cell
def _(sampling, series):
    config = series.profile.reinforce.config(sampling)
    levels = config.levels or series.task.LEVELS
    honest_steps = sum(levels[i % len(levels)] + 1 for i in range(config.prompts)) / config.prompts
    honest = {"outcome": 1.0, "sum": honest_steps, "min": 1.0, "mixed": 2.0}
    print(f"trained on problems of {min(levels)} to {max(levels)} operations; an honest chain has {honest_steps:.2f} steps")
    return honest, honest_steps


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    One step has few problems, so its means jump. You average over windows of five steps; the band is their range, not an
    interval, for steps of one run follow each other.
    """)
    return


@app.cell
def _(torch):
    def windows(rows, run, keys, size=5, scale=1.0):
        """Rows of five become one: mean, least and most."""
        out = []
        for at in range(0, len(rows), size):
            some, row = rows[at : at + size], {"run": run, "step": rows[at : at + size][-1]["step"]}
            for key in keys:
                values = torch.tensor([each[key] for each in some]) / (scale if key == "proxy" else 1.0)
                row |= {key: values.mean().item(), f"{key}_low": values.min().item(), f"{key}_high": values.max().item()}
            out.append(row)
        return out

    return (windows,)


@app.cell
def _(history, honest, plots, windows):
    smooth = {
        name: windows(rows, name, ["proxy", "true", "steps_per_chain", "entropy"], scale=honest[name])
        for name, rows in history.items()
    }
    steps_beside = "the range of steps next to one another"
    plots.proxy_vs_truth([row for rows in smooth.values() for row in rows], band=steps_beside)
    return smooth, steps_beside


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Left is what each run was paid for, right is what you wanted: the share of its own training chains that are right.
    For outcome they are the same number. Now the length of a chain, where padding would show. Dashed: an honest chain.
    """)
    return


@app.cell
def _(history, honest_steps, plots, smooth, steps_beside):
    flat = [row for rows in smooth.values() for row in rows]
    away = max(abs(row["steps_per_chain"] - honest_steps) for rows in history.values() for row in rows)
    title = f"steps a chain: no step's mean is further than {away:.2g} from an honest chain's {honest_steps:.2f}"
    plots.learning_curve(flat, baseline=honest_steps, y="steps_per_chain", title=title, band=steps_beside)
    return (flat,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    And the entropy: how unsure is the policy of its next token?
    """)
    return


@app.cell
def _(flat, plots, steps_beside):
    plots.learning_curve(flat, y="entropy", band=steps_beside)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Is somebody watching?

    At every check each run solved the same held-out problems, and left what each chain earned and whether it was right.
    An alarm reads both. It rings once the proxy rose and the truth fell since an earlier check, each beyond its interval.
    """)
    return


@app.cell
def _(plots, watch):
    plots.show_source(watch.alarm)
    return


@app.cell
def _(trained, watch):
    for _name, _run in trained.items():
        print(f"{_name:<8}", watch.alarm(_run.read("checks")) or "quiet")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You need not wait for the end: `curves.watch_run("runs/nano/reinforce-outcome")` as the last line of a cell follows a
    run while another process writes it. The same picture, still:
    """)
    return


@app.cell
def _(curves, trained):
    curves.figure(trained["outcome"].read("history"), trained["outcome"].read("checks"))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    An alarm that never rings may be broken. So you hack on purpose: a reward that pays for length and nothing else.
    """)
    return


@app.cell
def _(series, watch):
    hack = series.reinforce("length")
    alarm = watch.alarm(hack.read("checks"))
    print(alarm or "quiet")
    return alarm, hack


@app.cell
def _(hack, plots, steps_beside, windows):
    plots.proxy_vs_truth(windows(hack.read("history")[1:], "length", ["proxy", "true"], size=3), band=steps_beside)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## On problems it has not seen

    Each run left chains for every test problem. You take four of each, and four of the start's own, drawn with the same
    noise, so the comparison is paired twice: by problem and by dice.
    """)
    return


@app.cell
def _(hack, read_records, scaling, series, trained):
    reached = trained["outcome"].params["n"]  # chains of each problem
    samples = [r for r in read_records(series.search(), "samples") if r.seed < reached]
    sampled = {"before": scaling.named([r for r in samples if r.seed < 4], "before")}
    sampled |= {
        name: scaling.named([r for r in read_records(run) if r.seed < 4], name)
        for name, run in {**trained, "length": hack}.items()
    }
    for _name, _records in sampled.items():
        print(f"{_name:<8} pass@1 {scaling.accuracy(_records)}")
    return reached, sampled, samples


@app.cell
def _(sampled, scaling, trained):
    gains = {name: scaling.difference(sampled[name], sampled["before"]) for name in (*trained, "length")}
    for _name, _gain in gains.items():
        print(f"{_name:<8} minus before: {_gain}")
    return (gains,)


@app.cell
def _(sampled, scaling):
    over = scaling.difference(sampled["min"], sampled["sum"])
    print(f"min form minus sum form, after as many steps: {over}")
    return (over,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Where does it gain? You look by level. The runs saw only the levels printed above; the others show what carries over.
    """)
    return


@app.cell
def _(plots, sampled):
    plots.levels(sampled["before"] + sampled["outcome"])
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Able, or only sure?

    Pass@1 rises if the policy learns something new, and also if it only becomes surer of what it could do. Coverage
    tells them apart: pass@k asks whether *any* of k chains is right. This figure answers the title.
    """)
    return


@app.cell
def _(plots, reached, read_records, samples, scaling, trained):
    many = {
        "before": scaling.named(samples, "before"),
        "outcome": scaling.named(read_records(trained["outcome"]), "outcome"),
    }
    ks = [2**i for i in range(reached.bit_length()) if 2**i <= reached]
    covered = {name: scaling.coverage(rows, ks) for name, rows in many.items()}
    once, ever = (covered["outcome"][i][1].value - covered["before"][i][1].value for i in (0, -1))
    moved = f"Outcome reward: right once {100 * once:+.0f} points, right at least once in {ks[-1]} {100 * ever:+.0f}"
    plots.coverage(covered, title=moved)
    return ever, ks, many


@app.function
def at_least_once(records):
    """{problem: whether any of its chains is right}."""
    found = {r.problem: 0.0 for r in records}
    return found | {r.problem: 1.0 for r in records if r.correct}


@app.cell
def _(ks, many, scaling):
    wider = scaling.paired_bootstrap(at_least_once(many["outcome"]), at_least_once(many["before"]), seeds=ks[-1])
    print(f"pass@{ks[-1]}, after outcome reward minus before: {wider}")
    return (wider,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A policy that rolls its dice less wildly also gains pass@1, without any new skill. Greedy rolls none: if greedy gets
    better too, reward taught more than sharpness.
    """)
    return


@app.cell
def _(evaluate, read_records, sampling, scaling, series):
    greedy = {"before": [r for r in read_records(series.search()) if r.knobs["method"] == "greedy"]}
    greedy["after"] = evaluate.search(
        "", series.test(), "greedy", series.policy(stage="reinforce-outcome"), sampling=sampling
    )
    skill = scaling.difference(greedy["after"], greedy["before"])
    print({name: str(scaling.accuracy(rows)) for name, rows in greedy.items()})
    print(f"greedy, after outcome reward minus before: {skill}")
    return (skill,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A harder test: take the problems that the start never solved, in all its chains. How many does reward solve in four?
    """)
    return


@app.function
def solved(records):
    return {r.problem for r in records if r.correct}


@app.cell
def _(evaluate, ks, policy, sampled, samples, sampling, seed, series, trained):
    never = {r.problem for r in samples} - solved(samples)
    anew, _ = evaluate.samples("", series.test(), policy, 4, seed + 1, sampling)
    fresh = {"before": len(never & solved(anew))} | {name: len(never & solved(sampled[name])) for name in trained}
    print(f"{len(never)} problems were never solved in {ks[-1]} chains each; solved in four more: {fresh}")
    return fresh, never


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What a decade of training buys

    Every rollout, every step that was judged and every update is on the ledger, and so are the teaching and the judge's
    training before. So you can draw held-out accuracy against training FLOPs, on the kind of axis that search has at test
    time. These are validation problems, which settings were chosen on: they tell a run's course, not its gain.
    """)
    return


@app.cell
def _(names, plots, scaling, series):
    bought = {name: series.training_curve(f"reinforce-{reward}") for name, reward in names.items()}
    spent = [r for rows in bought.values() for r in rows]
    figure = plots.accuracy_vs_flops(scaling.curve(spent), title="Held-out accuracy against all training so far")
    figure.update_xaxes(title="training FLOPs, with what came before (log scale)")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The teaching before it is the same for every point, so on that axis a run is a sliver of a decade. For the slope you
    count reinforcement alone: from the first check to the last.
    """)
    return


@app.cell
def _(claims, scaling, series):
    alone = series.training_curve("reinforce-outcome", whole=False)
    slope = claims.measured(scaling.log_slope, alone, "reinforce-outcome")
    print(f"outcome reward, accuracy for a decade of its own FLOPs: {slope}")
    return (slope,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Did the sum form's proxy part from the truth?

    You need a number with an interval. Steps of one run follow each other, so they are no independent evidence; problems
    are. So you draw four chains a test problem, before and after, let the judge read them, and take per problem

    gap = (change of the proxy, as a share of what an honest chain earns) − (change of the truth).

    The definition is strict on purpose. A chain that turns from nearly right to right gains *more* truth than proxy,
    since its right steps were paid before. So a gap above zero means that the judge was pleased more than the truth
    improved.
    """)
    return


@app.cell
def _(judge, rl):
    by_sum, by_min = rl.process(judge, "sum"), rl.process(judge, "min")
    return by_min, by_sum


@app.cell
def _(by_min, by_sum, evaluate, rl, sampling, seed, series, torch):
    def looked_at(policy):
        """{problem: (share of the honest sum, worst step, truth, steps)}, means over four chains."""
        _, chains = evaluate.samples("", series.test(), policy, 4, seed, sampling)
        pairs = [(problem, trace) for problem, traces in chains for trace in traces]
        added, worst, right = by_sum(pairs).totals(), by_min(pairs).totals(), rl.outcome(pairs).chains
        rows = {problem.id: [] for problem, _ in chains}
        for (problem, trace), total, least, true in zip(pairs, added, worst, right, strict=True):
            rows[problem.id].append((total / (problem.level + 1), least, true, float(len(trace.steps))))
        return {name: torch.tensor(some).mean(0).tolist() for name, some in rows.items()}

    return (looked_at,)


@app.cell
def _(looked_at, names, policy, series):
    seen = {"before": looked_at(policy)}
    seen |= {name: looked_at(series.policy(stage=f"reinforce-{names[name]}")) for name in ("sum", "min")}
    return (seen,)


@app.cell
def _(seen, torch):
    for _name, _table in seen.items():
        _means = torch.tensor(list(_table.values())).mean(0).tolist()
        print("{:<7} sum share {:.3f}  worst step {:.3f}  truth {:.3f}  steps {:.2f}".format(_name, *_means))
    return


@app.cell
def _(seen):
    def parting(name, column):
        """Per problem: change of the proxy in `column` minus change of the truth."""
        start, end = seen["before"], seen[name]
        return {p: (end[p][column] - start[p][column]) - (end[p][2] - start[p][2]) for p in start}

    return (parting,)


@app.cell
def _(parting, scaling):
    gap = {"sum": scaling.bootstrap(parting("sum", 0), bounds=None, seeds=4)}
    gap["min"] = scaling.bootstrap(parting("min", 1), bounds=None, seeds=4)
    for _name, _gap in gap.items():
        print(f"{_name}: proxy gained minus truth gained: {_gap}")
    return (gap,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    And the crudest sign of padding: steps a chain, after minus before.
    """)
    return


@app.cell
def _(scaling, seen):
    longer = {
        name: scaling.bootstrap({p: seen[name][p][3] - seen["before"][p][3] for p in seen[name]}, bounds=None, seeds=4)
        for name in ("sum", "min")
    }
    for _name, _more in longer.items():
        print(f"{_name}: steps a chain {_more}")
    return (longer,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What you saw
    """)
    return


@app.cell
def _(slope):
    decade = f"{slope.value:+.3f}" if slope else "an unknown amount: the run is too short"
    room = "Perhaps because in a chain of sums every step must change the line: padding has few places to hide."
    return decade, room


@app.cell
def _(
    Markdown,
    alarm,
    claims,
    decade,
    ever,
    fresh,
    gains,
    gap,
    history,
    ks,
    longer,
    never,
    over,
    room,
    skill,
    wider,
):
    Markdown(
        f"- Outcome reward changes pass@1 by {gains['outcome'].value:+.3f}; a gain of 0.2 "
        f"{claims.told(gains['outcome'], '>= 0.2', 'is there', 'is not there', 'cannot be decided')}. "
        f"Sum: {gains['sum'].value:+.3f}, min: {gains['min'].value:+.3f}, mixed: {gains['mixed'].value:+.3f} "
        f"({', '.join(f'{name} {len(rows)}' for name, rows in history.items())} steps, at the rates above). "
        f"Min less sum: {over.value:+.3f}, "
        f"{claims.told(over, '> 0', 'the worst step is the better reward', 'it is not the better reward')}.\n"
        f"- Pass@{ks[-1]} changes by {ever:+.3f} under outcome reward: "
        f"{claims.told(wider, '< 0', 'it narrows', 'it does not narrow', 'no change that these problems show')}. "
        f"Of {len(never)} problems never solved before, it solves {fresh['outcome']} in four, and "
        f"{fresh['before']} without any training, by four more throws. The closer these are to "
        "nothing, the more reward taught it to be sure, not able.\n"
        f"- A decade of reinforcement's own FLOPs is worth {decade}.\n"
        f"- Paid for length alone, the policy's accuracy changes by {gains['length'].value:+.3f} "
        f"({claims.told(gains['length'], '< 0', 'a loss', 'no loss')}), and the alarm "
        f"{'names step ' + str(alarm.step) if alarm else 'stays quiet'}.\n"
        f"- Greedy, which has no dice to sharpen, changes by {skill.value:+.3f} "
        f"({claims.told(skill, '> 0', 'above zero', 'not above zero')}).\n"
        f"- With the sum form the proxy's gain less the truth's is {gap['sum'].value:+.3f}: "
        f"{claims.told(gap['sum'], '> 0', 'it parts from the truth', 'it does not part from the truth')}. "
        f"Chains change by {longer['sum'].value:+.2f} steps: "
        f"{claims.told(longer['sum'], '> 0', 'they grow', 'they do not grow', 'no clear growth')}.\n"
        "- PURE saw the sum form hacked within about 200 steps of training a large model on mathematics. "
        f"Here a run has {len(history['sum'])} steps. {claims.told(gap['sum'], '> 0', '', room, room)}"
    )
    return


@app.cell
def _(claims, gains, over, sampled, scaling, wider):
    found = [
        claims.Claim(
            "rl.outcome_gain",
            "GRPO (2402.03300), DeepSeek-R1 (2501.12948)",
            "outcome reward lifts pass@1 on unseen problems by twenty points or more",
            ">= 0.2",
            gains["outcome"],
            "MATH: .468 before, .517 after (DeepSeekMath 7B)",
        ),
        claims.Claim(
            "rl.min_over_sum",
            "PURE, Cheng et al. 2025 (2504.15275)",
            "process reward in min form ends more accurate than in sum form",
            "> 0",
            over,
        ),
        claims.Claim(
            "rl.mixed_over_sum",
            "PURE, Cheng et al. 2025 (2504.15275)",
            "process reward in min form with the outcome mixed in ends more accurate than in sum form alone",
            "> 0",
            scaling.difference(sampled["mixed"], sampled["sum"]),
            "a tenth of verifiable reward mitigates hacking",
        ),
        claims.Claim(
            "rl.coverage_change",
            "Yue et al. 2025 (2504.13837)",
            "outcome reward narrows coverage: fewer problems are solved at least once in many chains",
            "< 0",
            wider,
            "the base overtakes at large k",
        ),
    ]
    return (found,)


@app.cell
def _(claims, found, gap, profile, runs, slope):
    rest = [
        claims.Claim(
            "scaling.train_time_slope",
            "OpenAI o1 report 2024",
            "accuracy on validation problems rises with the logarithm of what reinforcement learning has spent",
            "> 0",
            slope,
        ),
        claims.Claim(
            "rl.prm_sum_proxy_gap",
            "PURE, Cheng et al. 2025 (2504.15275)",
            "under sum-form process reward the proxy gains more than the truth",
            "> 0",
            gap["sum"],
            "hacked within about 200 steps",
        ),
    ]
    claims.record(runs, profile, "07_reinforcement_learning", found + rest)
    print(claims.table(found + rest))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 1: advantages

    Write the advantages of a batch of groups with plain lists. Each group has its own mean and its own standard
    deviation (over n − 1, as above): an easy question must not make a hard one look bad. A uniform group gives zeros.
    """)
    return


@app.function
# Cell tags: solution
def my_advantages(groups):
    """[[reward]] -> [[advantage]], group by group."""
    out = []
    for group in groups:
        mean = sum(group) / len(group)
        std = (sum((r - mean) ** 2 for r in group) / (len(group) - 1)) ** 0.5
        out.append([(r - mean) / std if std > 0 else 0.0 for r in group])
    return out


@app.cell
def _(rl, torch):
    # Cell tags: check
    batch = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    assert torch.allclose(torch.tensor(my_advantages(batch)), rl.normalised(torch.tensor(batch)), atol=1e-3), (
        "group by group, the variance over n - 1"
    )
    assert my_advantages(batch)[2] == [0.0] * 4, "all right: nothing to learn"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 2: the clip limits rewards, never regrets

    Write the gain of one token. A common mistake clips the ratio and forgets the minimum, so that a bad token which
    became more likely is forgiven.
    """)
    return


@app.function
# Cell tags: solution
def my_gain(ratio, advantage, clip=0.2):
    """PPO's clipped surrogate for one token."""
    clipped = min(max(ratio, 1 - clip), 1 + clip)
    return min(ratio * advantage, clipped * advantage)


@app.cell
def _():
    # Cell tags: check
    assert abs(my_gain(1.5, 1.0) - 1.2) < 1e-9, "no reward beyond the clip"
    assert abs(my_gain(1.5, -1.0) + 1.5) < 1e-9, "a bad token made likelier is charged in full"
    assert abs(my_gain(0.5, -1.0) + 0.8) < 1e-9 and abs(my_gain(0.5, 1.0) - 0.5) < 1e-9
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 3: a reward that padding cannot raise

    Given the step scores of a chain and whether it closed, write a reward that no further step can raise, and that pays
    nothing for a chain without an end. (A sum fails the first, and paying for unfinished thoughts breeds long ones.)
    """)
    return


@app.function
# Cell tags: solution
def steady_reward(scores, closed):
    """Step scores in 0–1 -> one number."""
    return min(scores) if closed else 0.0


@app.cell
def _():
    # Cell tags: check
    chain = [0.9, 0.4, 0.8]
    assert all(steady_reward([*chain, more], True) <= steady_reward(chain, True) for more in (0.1, 0.5, 1.0))
    assert steady_reward(chain, False) == 0.0 and steady_reward(chain, True) > 0
    assert steady_reward([0.9, 0.9], True) > steady_reward([0.9, 0.4], True), "and it still tells good from bad"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Ledger

    Reinforcement learning spends most of its tokens on sampling. You compare with what teaching took.
    """)
    return


@app.cell
def _(Markdown, hack, ledger, series, trained):
    stages = {"teach": series.teach(), "reinforce: length": hack}
    stages |= {f"reinforce: {name}": run for name, run in trained.items()}
    Markdown(ledger(stages))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Next: 08 puts both axes side by side. What is a decade of compute worth at training time, and what at test time?
    """)
    return


if __name__ == "__main__":
    app.run()
