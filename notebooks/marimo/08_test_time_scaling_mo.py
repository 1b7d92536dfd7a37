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
    # What is a decade of compute worth?

    A model can be made better before it meets a question (training) or while it works on one (sampling, judging).
    OpenAI's o1 report (September 2024) drew both as nearly straight lines over the logarithm of compute, on axes without
    numbers. You draw the same two pictures with numbers, from records alone: no model is loaded here.

    - **You will know** the slope of accuracy per decade of compute, what coverage promises and selection keeps, which
      method suits which difficulty, and what reinforcement learning does to the curve at test time.
    - **Time and memory.** `nano`: 1 min and 1 GB when the earlier stages are on disk. What is missing is built here, with
      a progress bar.
    - **Modules.** `scaling`, `plots`, `claims`, and the records of notebooks 02, 05 and 07.
    """)
    return


@app.cell
def _():
    # Cell tags: setup
    from collections import Counter, defaultdict
    from math import comb, log, log10

    import plotly.graph_objects as go
    from IPython.display import Markdown
    from plotly.subplots import make_subplots

    from workbench import claims, plots, scaling, select
    from workbench.pipeline import Series, ledger, read_records
    from workbench.types import Cost, Record, Step, Trace

    return (
        Cost,
        Counter,
        Markdown,
        Record,
        Series,
        Step,
        Trace,
        claims,
        comb,
        defaultdict,
        go,
        ledger,
        log10,
        make_subplots,
        plots,
        read_records,
        scaling,
        select,
    )


@app.cell
def _():
    # Cell tags: parameters
    profile = "nano"
    runs = "runs"
    seed = 0
    return profile, runs, seed


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A slope you can check by hand

    A decade is a factor of ten. If accuracy is 0.3 at 1 million FLOPs, 0.4 at 10 and 0.5 at 100, a decade is worth 0.1.
    You make such records and ask the package.
    """)
    return


@app.cell
def _(Cost, Record):
    def pretend(n, right):
        """Ten problems, of which `right` are solved, at n million FLOPs each."""
        knobs, cost = {"method": "vote", "n": n}, Cost(policy_flops=1e6 * n)
        return [Record("toy", f"p/{i}", 0, "5", i < right, cost, knobs=knobs) for i in range(10)]

    return (pretend,)


@app.cell
def _(pretend, scaling):
    scaling.log_slope(pretend(1, 3) + pretend(10, 4) + pretend(100, 5), "vote").value
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## The test-time axis

    You open the records that guided search left: every method, every n, the same test problems.
    """)
    return


@app.cell
def _(Series, profile, read_records, runs, seed):
    series = Series(profile, runs, seed)
    search = series.search()
    records, samples = read_records(search), read_records(search, "samples")
    len(records), len(samples), len({r.problem for r in records})
    return records, samples, series


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A straight line through a method's budgets gives its slope: accuracy gained per tenfold compute, problems resampled.
    The judge's reading is on the bill.
    """)
    return


@app.cell
def _(records, scaling):
    points = scaling.curve(records)
    slopes = {method: scaling.log_slope(records, method) for method in ("majority", "best_of_n", "weighted_vote")}
    for _method, _slope in slopes.items():
        print(f"{_method:<14} per decade of FLOPs: {_slope}")
    return points, slopes


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    This is the figure that answers the title. Each line is a method, each point a budget, the dashed line one sample.
    """)
    return


@app.cell
def _(records):
    def at(method, n):
        return [r for r in records if (r.knobs["method"], r.knobs["n"]) == (method, n)]

    return (at,)


@app.cell
def _(at, plots, points, scaling, slopes):
    shown = [p for p in points if p.method in ("greedy", "majority", "best_of_n", "weighted_vote", "beam")]
    _worth = {m: f"{100 * slopes[m].value:+.0f} points" for m in ("majority", "weighted_vote")}
    title = f"A decade of test-time compute: {_worth['majority']} by majority, {_worth['weighted_vote']} with a judge"
    plots.accuracy_vs_flops(shown, title=title, baseline=scaling.accuracy(at("majority", 1)))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Look at greedy before you believe a slope: it is measured from *one sample*. How many chains does each method need to
    pass one greedy chain?
    """)
    return


@app.cell
def _(at, points, scaling, slopes):
    bar = scaling.accuracy(at("greedy", 1)).value
    passes = {m: next((p for p in points if p.method == m and p.accuracy.value > bar), None) for m in slopes}
    for _method, _point in passes.items():
        _say = f"n={_point.n}, {_point.x / scaling.curve(at('greedy', 1))[0].x:.0f} times its FLOPs" if _point else "never"
        print(f"{_method:<14} passes greedy ({bar:.3f}): {_say}")
    return (bar,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A line is a summary, not a law: accuracy ends at 1, and often bends before. You look at each step of the curve: what
    does the next doubling of n add?
    """)
    return


@app.cell
def _(points, slopes):
    lines = {m: [p.accuracy.value for p in points if p.method == m] for m in slopes}
    steps = {m: [b - a for a, b in zip(line, line[1:], strict=False)] for m, line in lines.items()}
    last = {m: doublings[-1] for m, doublings in steps.items()}
    for _method, _doublings in steps.items():
        print(f"{_method:<14}", " ".join(f"{step:+.3f}" for step in _doublings))
    return (last,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Coverage, and what selection keeps of it

    Pass@k is the chance that *one* of k chains is right: what a perfect judge would get. You estimate it without bias
    from all chains of a problem (exercise 1).
    """)
    return


@app.cell
def _(Counter, samples, scaling):
    most = min(Counter(r.problem for r in samples).values())
    ks = [2**i for i in range(most.bit_length()) if 2**i <= most]
    covered = scaling.coverage(samples, ks)
    [(k, round(e.value, 3)) for k, e in covered]
    return covered, ks, most


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Large Language Monkeys (arXiv 2407.21787) found c = exp(a·k^b) with a and b below zero. You fit it, where the points
    allow (a coverage of 0 or 1 is outside the law).
    """)
    return


@app.cell
def _(scaling):
    def fitted(line):
        """A power law through the points strictly between 0 and 1, or None."""
        inside = [(k, e.value) for k, e in line if 0 < e.value < 1]
        rising = len(inside) > 1 and inside[-1][1] > inside[0][1]
        return scaling.power_law(*zip(*inside, strict=True)) if rising else None

    return (fitted,)


@app.cell
def _(covered, fitted):
    law = fitted(covered)
    law
    return (law,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Guessing is the floor. Answers lie between 0 and 999, so k blind guesses cover k in a thousand. The dashed line is
    generous: it grants every k the guesses of the largest.
    """)
    return


@app.cell
def _(covered, ks, law, plots):
    guess = max(ks) / 1000
    plots.coverage({"sampling": covered}, baseline=guess, laws={"sampling": law} if law else None)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Now selection beside coverage, at the same n. The gap is what a better judge could still win.
    """)
    return


@app.cell
def _(at, covered, ks, scaling, series):
    ceiling = dict(covered)
    for _k in [k for k in ks if k in series.profile.search_n]:
        _kept = {m: scaling.accuracy(at(m, _k)).value for m in ("majority", "weighted_vote")}
        print(f"n={_k:<3} coverage {ceiling[_k].value:.3f}", *(f"  {m} {v:.3f}" for m, v in _kept.items()))
    return (ceiling,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Easy questions, hard questions

    Snell et al. (arXiv 2408.03314) cut the problems into five bins by the policy's *own* pass@1. If you bin by the same
    chains that you then report, the bins follow their luck: a problem looks easy because it was lucky, and then shines.
    So the second half of the chains bins, and only methods that use the first half are reported.
    """)
    return


@app.cell
def _(most, samples, scaling, series):
    half = most // 2
    binning = [r for r in samples if r.seed >= half]
    own = scaling.by_problem(binning)
    bins = scaling.quantile_bins(own, k=5)
    limit = [n for n in series.profile.search_n if n <= half]
    half, limit
    return bins, half, limit


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    How much does honesty matter? Bin by the first half and report the first half: the easy bin shines, the hard bin looks
    hopeless.
    """)
    return


@app.cell
def _(bins, half, samples, scaling):
    first = [r for r in samples if r.seed < half]
    lucky = scaling.quantile_bins(scaling.by_problem(first), k=5)
    for _b in (1, 5):
        _honest, _vain = (scaling.accuracy([r for r in first if each[r.problem] == _b]).value for each in (bins, lucky))
        print(f"bin {_b}: pass@1 {_honest:.3f} binned by other chains, {_vain:.3f} binned by the same")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The budget is one number for all: what the weighted vote costs at 16 (or at the largest n allowed here). Every setting
    that costs no more may compete.
    """)
    return


@app.cell
def _(limit, points):
    fixed = 16 if 16 in limit else max(limit)
    price = {(p.method, p.n): p.x for p in points}
    budget = price["weighted_vote", fixed]
    rivals = [
        (p.method, p.n)
        for p in points
        if p.x <= budget
        and (p.n in limit or p.method == "greedy")
        and p.method in ("greedy", "majority", "best_of_n", "weighted_vote", "beam")
    ]
    rivals
    return fixed, price, rivals


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A row is a setting, a column a bin (1 is the easiest).
    """)
    return


@app.cell
def _(Markdown, at, bins, rivals, scaling):
    table = {
        setting: [scaling.accuracy([r for r in at(*setting) if bins[r.problem] == b]).value for b in range(1, 6)]
        for setting in rivals
    }
    Markdown(
        "| method | n | bin 1 | bin 2 | bin 3 | bin 4 | bin 5 |\n|---|---|---|---|---|---|---|\n"
        + "\n".join(f"| {m} | {n} | " + " | ".join(f"{v:.2f}" for v in row) + " |" for (m, n), row in table.items())
    )
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 1: choose here, report there

    It is tempting to take the best of each column. That is choosing and reporting on the same problems. Snell et al. use
    two folds: choose the setting on one half of a bin, report it on the other, swap. Write it; the next cell needs it.
    """)
    return


@app.function
# Cell tags: solution
def two_fold(rows, folds):
    """{problem: mark of the setting that was chosen without it}; rows: {setting: {problem: 0 or 1}}."""
    out = {}
    for here, there in (folds, folds[::-1]):
        choice = max(rows, key=lambda setting: sum(rows[setting][p] for p in there))
        out |= {p: rows[choice][p] for p in here}
    return out


@app.cell
def _():
    # Cell tags: check
    coins = {"heads": {"a": 1, "b": 1, "c": 0, "d": 0}, "tails": {"a": 0, "b": 0, "c": 1, "d": 1}}
    assert two_fold(coins, (["a", "b"], ["c", "d"])) == dict.fromkeys("abcd", 0), (
        "luck on one fold is no skill on the other"
    )
    assert two_fold(coins, (["a", "c"], ["b", "d"])).keys() == set("abcd"), "every problem is reported once"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You run it in every bin, and beside it what you get if you choose and report on the same problems.
    """)
    return


@app.cell
def _(at, bins, fixed, rivals, scaling):
    marks = {setting: scaling.by_problem(at(*setting)) for setting in rivals}
    optimal, vain = {}, {}
    for _b in range(1, 6):
        _inside = sorted(p for p in bins if bins[p] == _b)
        optimal |= two_fold(marks, (_inside[::2], _inside[1::2]))
        vain |= two_fold(marks, (_inside, _inside))
    best_fixed = scaling.paired_bootstrap(optimal, marks["weighted_vote", fixed])
    print(f"best method per bin, chosen on other problems: {scaling.bootstrap(optimal)}")
    print(f"chosen on the same problems (do not do this): {scaling.bootstrap(vain)}")
    print(f"against the weighted vote everywhere: {best_fixed}")
    return (best_fixed,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## The training axis

    Teaching logged its accuracy as it went: greedy, on validation problems. FLOPs grow with steps (batches differ a
    little in length, so this is exact only at the end).
    """)
    return


@app.cell
def _(plots, series):
    taught = series.teach()
    total = taught.summary["cost"]["training_flops"]
    lesson = [{**row, "FLOPs": total * row["step"] / taught.summary["steps"]} for row in taught.read("history")]
    log_axis = {"type": "log", "title": "training FLOPs (log scale)", "dtick": 1, "exponentformat": "power"}
    _title = f"{total:.2g} FLOPs of teaching bring greedy accuracy to {lesson[-1]['accuracy']:.0%}"
    plots.learning_curve(lesson, x="FLOPs", title=_title).update_xaxes(**log_axis)
    return lesson, log_axis, taught, total


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Is it a line? You compare the last decade of training with its last doubling.
    """)
    return


@app.cell
def _(lesson, total):
    for _share, _name in ((10, "decade"), (2, "doubling")):
        _from = next(row for row in lesson if row["FLOPs"] >= total / _share)
        print(f"the last {_name}, from {_from['FLOPs']:.2g} FLOPs: {lesson[-1]['accuracy'] - _from['accuracy']:+.3f}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Before and after reinforcement learning, at test time

    Reinforcement learning is training too. Each policy left chains for every test problem, four of them after reward. A
    vote over groups of n of these four is a test-time curve; the groups of one problem are averaged.
    """)
    return


@app.cell
def _(Record, Step, Trace, defaultdict, select):
    def votes(rows, n, name):
        """Majority over each group of n among the first four chains of a problem, as records; costs add up."""
        chains, out = defaultdict(list), []
        for row in sorted(rows, key=lambda r: r.seed):
            chains[row.problem].append(row)
        for problem, four in chains.items():
            for group in range(4 // n):
                some = four[group * n : group * n + n]
                answer = select.majority(
                    [Trace((Step(r.answer or "", True),), "answer" if r.answer else "cut") for r in some]
                )
                right = answer is not None and any(r.correct for r in some if r.answer == answer)
                knobs, cost = {"method": name, "n": n}, sum(r.cost for r in some)
                out.append(Record("vote", problem, group, answer, right, cost, some[0].level, knobs))
        return out

    return (votes,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The axis is sampled tokens: both policies are equally large, and a group's prompt is read once or shared.
    """)
    return


@app.cell
def _(plots, read_records, samples, scaling, series, votes):
    sides = {"before RL": samples, "after RL": read_records(series.reinforce("outcome"))}
    voted = [r for name, rows in sides.items() for n in (1, 2, 4) for r in votes(rows, n, name)]
    plots.accuracy_vs_flops(scaling.curve(voted, x="sampled"))
    return (voted,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    How large a vote did the policy need *before*, to be as good as one chain *after*?
    """)
    return


@app.cell
def _(points, scaling, voted):
    after = scaling.accuracy([r for r in voted if r.knobs == {"method": "after RL", "n": 1}])
    reached = next((p for p in points if p.method == "majority" and p.accuracy.value >= after.value), None)
    print(f"one chain after RL: {after}")
    print(f"reached before RL by a vote of {reached.n}" if reached else "no vote of the policy before RL reaches it")
    return (reached,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    If a vote does reach it, training pays for itself after some number of questions: its FLOPs over the FLOPs that each
    answer saves.
    """)
    return


@app.cell
def _(Cost, price, reached, series):
    rl_flops = Cost(**series.reinforce("outcome").summary["cost"]).flops
    saves = reached.x - price["majority", 1] if reached else 0
    print(
        f"RL cost {rl_flops:.3g} FLOPs;",
        f"paid back after {rl_flops / saves:,.0f} questions" if saves > 0 else "saves none",
    )
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Both axes side by side

    The o1 picture, with numbers: training on the left (greedy, validation problems), test time on the right (test
    problems), accuracy up.
    """)
    return


@app.cell
def _(lesson, points):
    tests = {m: [p for p in points if p.method == m] for m in ("majority", "weighted_vote")}
    drawn = [("teaching", 1, [row["FLOPs"] for row in lesson], [row["accuracy"] for row in lesson])]
    drawn += [(m, 2, [p.x for p in line], [p.accuracy.value for p in line]) for m, line in tests.items()]
    return drawn, tests


@app.cell
def _(drawn, go, log_axis, make_subplots, plots, slopes, tests):
    both = make_subplots(1, 2, shared_yaxes=True, subplot_titles=("training, all questions", "test time, each question"))
    for _name, _col, _x, _y in drawn:
        _line = go.Scatter(x=_x, y=_y, name=_name, line_color=plots.colour(_name), mode="lines+markers")
        both.add_trace(_line, 1, _col)
    _title = "A decade at test time: " + ", ".join(f"{slopes[m].value:+.2f} ({m})" for m in tests)
    both.update_xaxes(**log_axis | {"title": "FLOPs (log scale)", "tickfont_size": 12})
    both.update_yaxes(tickformat=".0%", range=[0, 1], col=1, title="accuracy")
    both.update_layout(template="workbench", title={"text": _title, "y": 0.96}, showlegend=True, margin={"t": 90, "b": 70})
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What you saw
    """)
    return


@app.cell
def _(
    Markdown,
    at,
    bar,
    best_fixed,
    ceiling,
    claims,
    ks,
    last,
    law,
    reached,
    scaling,
    series,
    slopes,
):
    _top = max(ks)
    _kept = scaling.accuracy(at("weighted_vote", max(series.profile.search_n)))
    _fit = f"The power law misses by at most {law.max_error:.3f}." if law else "No power law fits here."
    Markdown(
        f"- A decade of test-time compute is worth {slopes['weighted_vote'].value:+.3f} accuracy with the judge "
        f"({claims.told(slopes['weighted_vote'], '> 0', 'above zero', 'not above zero')}) and "
        f"{slopes['majority'].value:+.3f} with the vote. The o1 report's axes carry no numbers: there is no slope to "
        "compare these with.\n"
        f"- The line hides a bend: the last doubling of n adds {last['weighted_vote']:+.3f} with the judge and "
        f"{last['majority']:+.3f} with the vote, and one greedy chain already has {bar:.3f}.\n"
        f"- Coverage reaches {ceiling[_top].value:.3f} at {_top} chains. {_fit} The judge keeps {_kept.value:.3f}.\n"
        f"- The best method per bin changes accuracy by {best_fixed.value:+.3f} against the weighted vote everywhere: "
        f"{claims.told(best_fixed, '> 0', 'it helps', 'it does not help')}. Snell et al. report 2–4 times less compute.\n"
        f"- One chain after reinforcement learning is worth "
        + (f"a vote of {reached.n} before it." if reached else "more than any vote before it.")
    )
    return


@app.cell
def _(claims, profile, runs, slopes):
    found = [
        claims.Claim(
            "scaling.test_time_slope",
            "OpenAI o1 report 2024; Snell et al. 2024 (2408.03314)",
            "the judge-weighted vote gains accuracy with every decade of test-time compute",
            "> 0",
            slopes["weighted_vote"],
        )
    ]
    claims.record(runs, profile, "08_test_time_scaling", found)
    print(claims.table(found))
    print(f"beside it, majority vote: {slopes['majority']} per decade")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 2: pass@k without bias

    From n chains of which c are right: how likely is it that k of them, drawn without putting back, hold a right one?
    The formula that comes to mind first, 1 − (1 − c/n)^k, draws *with* putting back, and is too low.
    """)
    return


@app.cell
def _(comb):
    # Cell tags: solution
    def my_pass_at_k(n, c, k):
        """Unbiased pass@k of one problem."""
        return 1 - comb(n - c, k) / comb(n, k)

    return (my_pass_at_k,)


@app.cell
def _(my_pass_at_k, scaling):
    # Cell tags: check
    assert abs(my_pass_at_k(4, 1, 2) - 1 / 2) < 1e-12, "of six pairs, three hold the right one"
    assert my_pass_at_k(4, 3, 2) == 1, "two wrong ones cannot be drawn"
    assert all(abs(my_pass_at_k(16, c, 8) - scaling.pass_at_k(16, c, 8)) < 1e-9 for c in range(17))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 3: a slope

    Least squares of accuracy on the logarithm of compute, to the base ten: a decade is a factor of ten. (The natural
    logarithm gives a number 2.3 times too small, and nobody notices.)
    """)
    return


@app.cell
def _(log10):
    # Cell tags: solution
    def my_slope(flops, accuracies):
        """Accuracy per decade of compute."""
        decades = [log10(x) for x in flops]
        mean = sum(decades) / len(decades)
        return sum((d - mean) * a for d, a in zip(decades, accuracies, strict=True)) / sum((d - mean) ** 2 for d in decades)

    return (my_slope,)


@app.cell
def _(my_slope):
    # Cell tags: check
    assert abs(my_slope([1e6, 1e7, 1e8], [0.3, 0.4, 0.5]) - 0.1) < 1e-9, "a tenth a decade"
    assert abs(my_slope([2e6, 8e6, 32e6], [0.2, 0.2, 0.2])) < 1e-12, "flat is flat"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Ledger

    Nothing was trained or sampled here. This is what the records cost when they were made.
    """)
    return


@app.cell
def _(Markdown, ledger, records, series, taught):
    stages = {"teach": taught, "sample chains": series.chains(), "train the judge": series.judge()}
    stages |= {"reinforce (outcome)": series.reinforce("outcome")}
    stages["search, all methods"] = sum(r.cost for r in records)
    Markdown(ledger(stages))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Next: every figure here was drawn from records. Write a search of your own (notebook 05, exercise 3), give its records
    a name, and draw its line beside these.
    """)
    return


if __name__ == "__main__":
    app.run()
