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
    # Does a judge find what a vote misses?

    You have a policy that writes chains of steps and a judge that scores them. Sample sixteen chains and you must still
    give *one* answer. A vote trusts the crowd; a judge may trust a single chain. You find out which is worth more when
    both are charged for every token that they read or write.

    - **You will know** what a search is (a generator that asks for steps), how beams, lookahead, tree search, particles
      and revisions decide, what a driver meters, and how far a good judge, a weak judge and a perfect one are apart.
    - **Time and memory.** `nano`: 1 min and 1.5 GB when the earlier stages are on disk. What is missing is built here,
      with a progress bar. `small`: 25 min and 4 GB on two cores (SmolLM2-135M on GSM8K). `gpu`: 45 min and 12 GB on one
      GPU (1.5B parameters in 4 bits). Both are estimated, after notebook 04.
    - **Modules.** `search`, `trees`, `verifiers`, `select`, `scaling`, `plots`, `claims`.
    """)
    return


@app.cell
def _():
    # Cell tags: setup
    from collections import Counter
    from dataclasses import replace

    from IPython.display import Markdown

    from workbench import claims, plots, scaling, search, tasks, trees
    from workbench.pipeline import ledger, read_records
    from workbench.policies import Want
    from workbench.policies.scripted import Scripted
    from workbench.pretrained import open_series
    from workbench.search import Grow, drive
    from workbench.search.beam import beam
    from workbench.search.best_of_n import best_of_n
    from workbench.search.majority import majority
    from workbench.search.weighted_vote import weighted_vote
    from workbench.select import weighted
    from workbench.types import Node, Step, Trace
    from workbench.verifiers.oracle import Oracle

    return (
        Counter,
        Grow,
        Markdown,
        Node,
        Oracle,
        Scripted,
        Step,
        Trace,
        Want,
        beam,
        best_of_n,
        claims,
        drive,
        ledger,
        majority,
        open_series,
        plots,
        read_records,
        replace,
        scaling,
        search,
        tasks,
        trees,
        weighted,
        weighted_vote,
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
    ## A case small enough to check by hand

    Here is a policy with a bad habit: it adds before it multiplies, seven times out of ten.
    """)
    return


@app.cell
def _(Scripted, tasks):
    toy = Scripted(
        {
            (): [("2+3=5", 0.7), ("3*4=12", 0.3)],
            ("2+3=5",): [("5*4=20", 1.0)],
            ("2+3=5", "5*4=20"): [("=20", 1.0)],
            ("3*4=12",): [("2+12=14", 1.0)],
            ("3*4=12", "2+12=14"): [("=14", 1.0)],
        }
    )
    puzzle = tasks.get("arithmetic").parse("2+3*4")
    return puzzle, toy


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You sample eight chains and count the answers. The truth is 2 + 12 = 14.
    """)
    return


@app.cell
def _(Counter, drive, majority, puzzle, toy):
    [voted] = drive([puzzle], majority, toy, n=8)
    Counter(leaf.trace.answer for leaf in voted.leaves), voted.answer
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The vote returns what most chains say. More chains make it *surer*, not righter.
    Now a judge scores every step of the same eight chains (the oracle, which knows the task), and equal answers add up
    their scores.
    """)
    return


@app.cell
def _(Oracle, drive, puzzle, toy, weighted_vote):
    [judged] = drive([puzzle], weighted_vote, toy, Oracle([puzzle]), n=8)
    judged.answer
    return (judged,)


@app.cell
def _(judged, plots):
    plots.labelled_tree(judged.nodes)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The right answer was there all along, in the minority. That is all a judge can do for you: *find* it. It cannot find
    what no chain contains. So three numbers frame this notebook: what the vote gets, what the judge gets, and what is
    there to be found.
    """)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## A search is a generator

    It yields what it wants to grow, is sent the grown nodes, and returns an answer. Majority vote is two lines.
    """)
    return


@app.cell
def _(majority, plots):
    plots.show_source(majority)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Best-of-n and the weighted vote differ from it in the last line, and in asking for scores.
    """)
    return


@app.cell
def _(best_of_n, plots):
    plots.show_source(best_of_n)
    return


@app.cell
def _(plots, weighted_vote):
    plots.show_source(weighted_vote)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Beam search asks the judge *on the way* (Snell et al., arXiv 2408.03314, section 5.2): keep the best n/width
    unfinished chains, grow `width` children from each, repeat.
    """)
    return


@app.cell
def _(beam, plots):
    plots.show_source(beam)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## The real policy, the real judge, one problem

    You open the series. A stage that an earlier notebook left is found; one that is missing is built now.
    """)
    return


@app.cell
def _(changes, open_series, profile, read_records, runs, seed):
    series = open_series(profile, runs, seed, changes)
    run = series.search()
    records = read_records(run)
    len(records), sorted({r.knobs["method"] for r in records})
    return records, run, series


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You fix the budget before you look at any accuracy: n = 16, or the largest n whose cost the vote's curve reaches.
    """)
    return


@app.cell
def _(records, scaling):
    points = scaling.curve(records)
    reach = max(point.x for point in points if point.method == "majority")
    fits = [point.n for point in points if point.method == "weighted_vote" and point.x <= reach]
    n = 16 if 16 in fits else max(fits)
    price = {(point.method, point.n): point.x for point in points}
    n
    return n, points, price, reach


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    To watch a search, you pick, on purpose, a problem of about three operations where the vote fails and the judge does
    not (or the last one, if there is none). One such case proves nothing; the records below decide.
    """)
    return


@app.cell
def _(n, records, series):
    right = {(r.knobs["method"], r.knobs["n"], r.problem): r.correct for r in records}
    test = series.test()
    missed = [p for p in test if right["weighted_vote", n, p.id] and not right["majority", n, p.id]]
    problem = min(missed or test[-1:], key=lambda p: abs(p.level - 3))
    problem
    return problem, right, test


@app.cell
def _(problem, series):
    policy, judge = series.policy(), series.verifier()
    sampling, blind = series.profile.sampling, problem.blind()
    return blind, judge, policy, sampling


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    To step a search by hand you need one helper: it grows what was asked for, lets the judge read each new chain, and
    writes the scores on its steps. The problem it hands out is blind: the gold answer is not in it.
    """)
    return


@app.cell
def _(Want, blind, judge, policy, replace, sampling, seed):
    def serve(request):
        counts = request.n if isinstance(request.n, list) else [request.n] * len(request.nodes)
        more = {"to_end": request.to_end, "first": request.first, "close": request.close}
        wants = [Want(blind, node, n, **more) for node, n in zip(request.nodes, counts, strict=True)]
        drawn = policy.extend(wants, seed, request.sampling(sampling))
        ends = [chain[-1] for chains in drawn for chain in chains]
        scored = judge.score([(blind, end.trace) for end in ends])
        return [
            replace(end, steps=tuple(replace(s, score=v) for s, v in zip(end.steps, scores, strict=True)))
            for end, scores in zip(ends, scored, strict=True)
        ]

    return (serve,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You start the generator. Its first request: four first steps below the root.
    """)
    return


@app.cell
def _(Node, beam, judge):
    knobs = {"n": 4, "width": 2, "aggregate": judge.aggregate}
    walk = beam(Node(), **knobs)
    first = next(walk)
    first
    return first, knobs, walk


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You grow them and look at what the judge says.
    """)
    return


@app.cell
def _(first, plots, serve):
    firsts = serve(first)
    plots.show_steps(*(node.trace for node in firsts))
    return (firsts,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    You send them in. A generator hands back its next wish, or stops and hands back its answer; so your second helper
    returns both.
    """)
    return


@app.function
def send(search, nodes):
    """(the next request, None) or (None, the answer)."""
    try:
        return search.send(nodes), None
    except StopIteration as end:
        return None, end.value


@app.cell
def _(firsts, walk):
    second, early_answer = send(walk, firsts)
    second and ([(node.path, node.steps[-1].text, round(node.score, 3)) for node in second.nodes], second.n)
    return early_answer, second


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    It wants two children for each of the best two (4 / 2). You go on until it returns, and keep every node.
    """)
    return


@app.cell
def _(early_answer, firsts, problem, second, serve, walk):
    tree, request, answer = firsts, second, early_answer
    while request:
        _grown = serve(request)
        tree = tree + _grown
        request, answer = send(walk, _grown)
    print(f"{problem.prompt} = {problem.answer}; beam answers {answer}")
    return answer, tree


@app.cell
def _(plots, tree):
    plots.labelled_tree(tree)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Beams cost diversity: children of one parent often say the same. How many of the nodes are different chains?
    """)
    return


@app.cell
def _(tree):
    len(tree), len({tuple(step.text for step in node.steps) for node in tree})
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Every method is a row of wishes

    Step the others by hand too, with the same two helpers, and write down what each one wishes for: how many nodes it
    grows, how many children in all, and whether by a step or to the end.
    """)
    return


@app.function
def wish(request):
    children = sum(request.n) if isinstance(request.n, list) else request.n * len(request.nodes)
    how = "closed" if request.close else "whole chains" if request.to_end else "steps"
    heat = "" if request.temperature is None else f", temperature {request.temperature:g}"
    return f"{len(request.nodes)} → {children} {how}{heat}"


@app.cell
def _(Node, search, seed, serve, tasks):
    def story(name, **knobs):
        lots = {"rng": tasks.rng(name, seed)} if name == "particle" else {}
        walk = search.get(name)(Node(), **knobs, **lots)
        wishes, (asked, found) = [], (next(walk), None)
        while asked:
            wishes.append(wish(asked))
            asked, found = send(walk, serve(asked))
        return wishes, found

    return (story,)


@app.cell
def _(story):
    small = {"beam": {"n": 4, "width": 2}, "lookahead": {"n": 4, "width": 2}, "dvts": {"n": 4, "width": 2}}
    small |= {"mcts": {"n": 3, "width": 2}, "particle": {"n": 4}, "revisions": {"n": 3}, "adaptive": {"n": 8, "batch": 2}}
    small |= {"budget_forcing": {"cap": 16}, "hybrid": {"n": 4, "width": 2, "probe": 2}, "weighted_vote": {"n": 4}}
    for _name, _knobs in small.items():
        _wishes, _found = story(_name, **_knobs)
        print(f"{_name:>14} ({_found}): " + "; ".join(_wishes[:5]) + (f"; … {len(_wishes)} in all" * (len(_wishes) > 5)))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Lookahead wishes at temperature 0 before it decides: it values a step by where the step leads. DVTS grows as many
    steps as the beam, but its subtrees never compete. MCTS grows one node at a time. Particles are *drawn* by the
    odds of their score where the beam cuts, so counts differ from node to node. Revisions and the adaptive vote wish for
    whole chains, one after another. Each file is about as long as its docstring; look at one.
    """)
    return


@app.cell
def _(plots, search):
    plots.show_source(search.get("particle"))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## The driver does the same for all problems at once

    It batches the requests of every problem into one call, meters each token, and stops at a budget. By hand or driven,
    the nodes are the same, because the noise of a token depends on its place in the tree and on nothing else.
    """)
    return


@app.cell
def _(answer, drive, judge, knobs, policy, problem, sampling, seed, tree):
    [driven] = drive([problem], "beam", policy, judge, seed=seed, sampling=sampling, **knobs)
    driven.answer == answer, [node.path for node in driven.nodes] == [node.path for node in tree]
    return (driven,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The bill has two payers. A judge that nobody charges looks like free accuracy.
    """)
    return


@app.cell
def _(driven):
    print(f"sampled {driven.cost.sampled}, prompt {driven.cost.prompt}, judged {driven.cost.judged} tokens")
    print(f"policy {driven.cost.policy_flops:.3g} FLOPs, judge {driven.cost.verifier_flops:.3g} FLOPs")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    A judge of the same size that reads each step once costs what the policy costs. Read every trace whole, as many
    programs do, and it costs several times as much. You reckon it from the tree: the tokens in front of each node.
    """)
    return


@app.cell
def _(blind, driven, policy):
    reads = sum(policy.prompt_tokens(blind, node) for node in driven.nodes)
    print(
        f"judged once: {driven.cost.judged} tokens; every trace read whole: {reads}, {reads / driven.cost.judged:.1f} times"
    )
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The tree is data: a line a node, with what became of it and why. The beam searches of this series are on disk.
    """)
    return


@app.cell
def _(problem, run, trees):
    grown = [branch for branch in trees.load(run.path / "trees.jsonl") if branch.problem == problem.id]
    for _branch in sorted({b.path: b for b in grown}.values(), key=lambda b: b.path)[:12]:
        print(f"{'  ' * len(_branch.path)}{_branch.text:<14} {_branch.score:.3f}  {_branch.fate}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## All problems, all budgets

    The records hold every method at every n on the same test problems, from the same chains. A row is a method, a column
    is n, a cell is accuracy.
    """)
    return


@app.cell
def _(Markdown):
    def grid(points, show):
        ns = sorted({point.n for point in points})
        cell = {(point.method, point.n): show(point) for point in points}
        lines = ["| |" + "|".join(f" n={each} " for each in ns) + "|", "|---|" + "---|" * len(ns)]
        for method in sorted({point.method for point in points}):
            lines.append(f"| {method} |" + "|".join(cell.get((method, each), "") for each in ns) + "|")
        return Markdown("\n".join(lines))

    return (grid,)


@app.cell
def _(grid, points):
    grid(points, lambda point: f"{point.accuracy.value:.3f}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The same n is not the same price. This is what each cell costs, in millions of FLOPs a problem, judge included.
    """)
    return


@app.cell
def _(grid, points):
    grid(points, lambda point: f"{point.x / 1e6:,.1f}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    So you compare at equal FLOPs: the weighted vote at the n that you fixed, against the majority vote at the *same*
    compute, problem by problem. The package interpolates the majority's curve over log compute.
    """)
    return


@app.cell
def _(records):
    def rows(method, n):
        return [r for r in records if (r.knobs["method"], r.knobs["n"]) == (method, n)]

    return (rows,)


@app.cell
def _(n, records, rows, scaling):
    gain = scaling.paired_at_equal_flops(records, "weighted_vote", "majority", n=n)
    same_n = scaling.difference(rows("weighted_vote", n), rows("majority", n))
    print(f"at n={n}, equal FLOPs: {gain}")
    print(f"at n={n}, equal chains: {same_n}  <- the judge reads for free here")
    return gain, same_n


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The same comparison for every guided method, at the largest n whose bill the vote's curve reaches. An interval that
    leaves out zero is a difference; but many intervals look at the same problems: expect one row in twenty to be luck.
    """)
    return


@app.cell
def _(points, reach, records, scaling):
    def beside_the_vote(method):
        """(n, the difference); None for a method that costs more than the vote's curve reaches, whatever its n."""
        at = max((point.n for point in points if point.method == method and point.x <= reach), default=None)
        return at and (at, scaling.paired_at_equal_flops(records, method, "majority", n=at))

    return (beside_the_vote,)


@app.cell
def _(Markdown, beside_the_vote, n, price):
    guided = ("best_of_n", "weighted_vote", "beam", "lookahead", "dvts", "mcts", "particle", "revisions", "hybrid")
    versus = {method: _at for method in guided if (_at := beside_the_vote(method))}
    Markdown(
        "| method | n | minus the vote at equal FLOPs | FLOPs of the vote of 16 |\n|---|---|---|---|\n"
        + "\n".join(
            f"| {method} | {at} | {gap} | {price[method, at] / price['majority', n]:.2f} |"
            for method, (at, gap) in sorted(versus.items(), key=lambda row: -row[1][1].value)
        )
    )
    return (versus,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    One rival needs neither vote nor judge: greedy, a single chain without dice.
    """)
    return


@app.cell
def _(n, price, rows, scaling):
    over_greedy = {m: scaling.difference(rows(m, n), rows("greedy", 1)) for m in ("majority", "weighted_vote")}
    for _method, _gap in over_greedy.items():
        _times = price[_method, n] / price["greedy", 1]
        print(f"{_method} at n={n} minus greedy: {_gap}, for {_times:.0f} times the FLOPs")
    return (over_greedy,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    And one question spoils many a paper on judges: this judge is a language model too, taught on right and corrected
    steps. What does it answer when *it* writes, one greedy chain, and nobody samples or votes? (The judge of `small` and
    `gpu` is a head that only scores, so there it answers nothing.)
    """)
    return


@app.cell
def _(n, rows, scaling):
    solo = rows("verifier alone", 1)
    over_judge = scaling.difference(rows("weighted_vote", n), solo) if solo else None
    print(f"the judge alone: {scaling.accuracy(solo) if solo else 'it cannot write'}")
    print(f"weighted vote at n={n} minus the judge alone: {over_judge}")
    return over_judge, solo


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The figure that answers the question has compute on its axis. The dashed line is one sample.
    """)
    return


@app.cell
def _(gain, n, plots, points, rows, scaling):
    drawn = ("greedy", "verifier alone", "majority", "best_of_n", "weighted_vote", "beam")
    main = [p for p in points if p.method in drawn]
    alone = scaling.accuracy(rows("majority", 1))
    title = f"At equal FLOPs (n = {n}) a judge changes the vote's accuracy by {100 * gain.value:+.1f} points"
    plots.accuracy_vs_flops(main, title=title, baseline=alone)
    return alone, main


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    The other methods beside the same vote (DVTS and the hybrid lie on the beam here, so they are left to the table).
    """)
    return


@app.cell
def _(alone, plots, points):
    others = ("majority", "adaptive", "lookahead", "mcts", "particle", "revisions")
    plots.accuracy_vs_flops([p for p in points if p.method in others], baseline=alone)
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What was there, what was found

    A chain with the right answer and right steps is there in some share of problems (the oracle finds it). You sort the
    problems by who found it.
    """)
    return


@app.cell
def _(Counter, n, right, test):
    sorts = Counter(tuple(right[m, n, p.id] for m in ("best_of_n (oracle)", "majority", "weighted_vote")) for p in test)
    names = {(True, True, True): "both find it", (True, False, True): "only the judge finds it"}
    names |= {(True, True, False): "only the vote finds it", (True, False, False): "there, and both miss it"}
    found = Counter({name: sorts[key] for key, name in names.items()})
    found["not among the chains, or by luck"] = len(test) - found.total()
    found
    return (found,)


@app.cell
def _(rows, scaling, series):
    for _n in series.profile.search_n:
        _gap = scaling.difference(rows("best_of_n (oracle)", _n), rows("weighted_vote", _n))
        print(f"n={_n:<3} there but not found: {_gap}")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Where is it lost? You look by level: one operation on the left, the longest chains on the right.
    """)
    return


@app.cell
def _(n, plots, rows):
    plots.levels(rows("majority", n) + rows("weighted_vote", n) + rows("best_of_n (oracle)", n))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Thinking to order

    Budget forcing (Muennighoff et al., arXiv 2501.19393) needs no judge. A *cap* makes the policy answer when its tokens
    are up; *extend* writes "Wait" where it wanted to answer. The paper's model got better when it was made to go on.
    Yours has never seen a "Wait".
    """)
    return


@app.cell
def _(points):
    forced = sorted((p for p in points if p.method.startswith("budget_forcing")), key=lambda p: p.x)
    for _point in [*forced, *(p for p in points if p.method == "majority" and p.n == 1)]:
        print(f"{_point.method.replace('majority', 'not forced'):<26} {_point.accuracy} at {_point.x / 1e6:.0f} MFLOP")
    return (forced,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Too much of a judge

    Cobbe et al. (arXiv 2110.14168) saw best-of-n rise, then fall: among enough chains one fools the judge. Three judges
    choose here: the language-model judge, the linear head on step ends, and the head that only saw outcomes (ORM).
    The oracle of steps is the yardstick.
    """)
    return


@app.cell
def _(alone, plots, points, rows, scaling, series):
    _kinds = {"language model" if series.MAIN == "likelihood" else "PRM": "best_of_n"}
    _kinds |= {kind: f"best_of_n ({kind})" for kind in ("head", "ORM", "oracle")}
    kinds = {kind: name for kind, name in _kinds.items() if any(p.method == name for p in points)}
    most = {kind: max(p.n for p in points if p.method == name) for kind, name in kinds.items()}
    _last = {kind: scaling.accuracy(rows(name, most[kind])).value for kind, name in kinds.items()}
    _title = "best of n by judge: " + ", ".join(f"{kind} {value:.0%} at {most[kind]}" for kind, value in _last.items())
    plots.accuracy_vs_flops([p for p in points if p.method in kinds.values()], title=_title, baseline=alone)
    return kinds, most


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Does the curve bend down? You compare each judge's largest n with n = 4 (or 1), on the same problems. Below zero
    means: the more you search, the more you are fooled.
    """)
    return


@app.cell
def _(kinds, most, rows, scaling):
    few = 4 if min(most.values()) > 4 else 1
    bend = {kind: scaling.difference(rows(name, most[kind]), rows(name, few)) for kind, name in kinds.items()}
    for _kind, _gap in bend.items():
        print(f"{_kind:<15} n={most[_kind]} minus n={few}: {_gap}")
    return (bend,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What the papers say of these searches

    Some of their sentences can be tested here, each on the same problems, at equal FLOPs where the two sides cost
    differently. Each speaks of the papers' models and judges: here is another world, so a failure is no refutation.
    """)
    return


@app.cell
def _(claims, records, rows, scaling, series):
    wide = max(series.profile.beam_n)


    def equal_flops(a, b, n=wide):
        return claims.measured(scaling.paired_at_equal_flops, records, a, b, n=n)


    def equal_n(a, b):
        return claims.measured(scaling.difference, rows(a, wide), rows(b, wide))

    return equal_flops, equal_n, wide


@app.cell
def _(claims, equal_flops, rows, scaling, series, wide):
    forced_on = claims.measured(scaling.difference, rows("budget_forcing (extend 1)", 1), rows("majority", 1))
    SNELL = "Snell et al. 2024 (2408.03314)"
    snell = [
        (
            "search.beam_over_best_of_n",
            SNELL,
            f"a beam of {wide} beats best-of-n at equal FLOPs",
            "> 0",
            equal_flops("beam", "best_of_n"),
        ),
        (
            "search.lookahead_under_beam",
            SNELL,
            "looking one step ahead, a beam is worse than a plain one of equal FLOPs",
            "< 0",
            equal_flops("lookahead", "beam", min(series.profile.beam_n)),
        ),
        (
            "search.revisions_over_parallel",
            SNELL,
            f"{wide} revisions in a row beat best-of-n at equal FLOPs (here the policy was not taught to revise)",
            "> 0",
            equal_flops("revisions", "best_of_n"),
        ),
    ]
    return forced_on, snell


@app.cell
def _(equal_n, forced_on, wide):
    others_say = [
        (
            "search.dvts_over_beam",
            "Beeching et al. 2024, Scaling test-time compute with open models",
            f"apart from one another the subtrees of DVTS end higher than one beam of {wide}",
            "> 0",
            equal_n("dvts", "beam"),
        ),
        (
            "search.particles_over_beam",
            "Puri et al. 2025 (2502.01618)",
            f"{wide} particles, drawn in proportion to the judge's odds, end higher than a beam that keeps the best",
            "> 0",
            equal_n("particle", "beam"),
        ),
        (
            "search.steps_over_outcomes",
            "Lightman et al. 2023 (2305.20050)",
            f"of {wide} chains a head taught on steps chooses better than one taught on outcomes",
            "> 0",
            equal_n("best_of_n (head)", "best_of_n (ORM)"),
            "MATH-500, best of 1860: .782, .724",
        ),
        (
            "adaptive.wait_gain",
            "s1, Muennighoff et al. 2025 (2501.19393)",
            "made to go on once, by a Wait in place of its answer, the policy is right more often",
            "> 0",
            forced_on,
        ),
    ]
    return (others_say,)


@app.cell
def _(claims, n, others_say, over_judge, snell, solo):
    said = [claims.Claim(*saying) for saying in snell + others_say]
    _who = "this series: a control that a judge which can write must pass"
    _text = f"a judge-weighted vote of {n} is right more often than one greedy answer of the judge itself"
    said.append(claims.Claim("search.guided_over_judge", _who, _text, "> 0", over_judge, tried=bool(solo)))
    for _claim in said:
        print(f"{_claim.id:<32} {_claim.value:>7} [{_claim.interval}]: {_claim.verdict}")
    return (said,)


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## What you saw
    """)
    return


@app.cell
def _(claims):
    def verdict(estimate):
        return {"holds": "above zero", "fails": "not above zero", "undecided": "undecided"}[claims.decide(estimate, "> 0")]

    return (verdict,)


@app.cell
def _(
    Markdown,
    bend,
    claims,
    forced,
    found,
    gain,
    n,
    over_greedy,
    over_judge,
    same_n,
    test,
    verdict,
    versus,
):
    _falls = [kind for kind, gap in bend.items() if claims.decide(gap, "< 0") == "holds"]
    _by_value = sorted(versus, key=lambda method: -versus[method][1].value)
    _best = "".join(f"; the best of them by value is {m}, {versus[m][1].value:+.3f}" for m in _by_value[:1])
    _alone = over_judge and (
        f"- The judge alone, as a policy and greedily, is {-over_judge.value:+.3f} from the guided vote of {n} "
        f"(guided minus alone: {verdict(over_judge)}), for a small part of its FLOPs. Where the two are close, the "
        "judge is above all a better policy, and the search is a dear way to use it.\n"
    )
    Markdown(
        f"- At equal FLOPs (n = {n}) the judge adds {gain.value:+.3f} accuracy to the vote: {verdict(gain)}. "
        f"At equal n it looks like {same_n.value:+.3f}; the difference is the judge's own bill.\n"
        f"- Greedy, one chain, is the cheap rival: at n = {n} the vote adds {over_greedy['majority'].value:+.3f} to it "
        f"({verdict(over_greedy['majority'])}), the judge {over_greedy['weighted_vote'].value:+.3f} "
        f"({verdict(over_greedy['weighted_vote'])}).\n"
        f"{_alone or ''}"
        f"- Of {len(test)} problems the judge alone finds {found['only the judge finds it']}, the vote alone "
        f"{found['only the vote finds it']}, and {found['there, and both miss it']} right chains are missed by both.\n"
        f"- Best-of-n bends down with n for: {', '.join(_falls) or 'no judge, as far as these intervals tell'}. "
        "Lightman et al. (arXiv 2305.20050) report their best at n = 1860, Cobbe et al. peak near 400: judges differ.\n"
        f"- Of {len(versus)} guided methods {sum(claims.decide(gap, '> 0') == 'holds' for _, gap in versus.values())} beat "
        f"the vote at equal FLOPs beyond doubt{_best}.\n"
        f"- Budget forcing: {max(p.accuracy.value for p in forced):.0%} at most, {forced[-1].accuracy.value:.0%} for the "
        "dearest. A policy must *learn* to stop early, or to go on from a marker.\n"
        "- Training the judge is in the ledger below and in no curve; it is paid once."
    )
    return


@app.cell
def _(claims, gain, n, profile, runs, said):
    claims.record(
        runs,
        profile,
        "05_guided_search",
        [
            claims.Claim(
                "search.prm_over_majority",
                "Snell et al. 2024 (2408.03314), Lightman et al. 2023 (2305.20050)",
                f"a judge-weighted vote of {n} beats majority vote at equal FLOPs, the judge's included",
                "> 0",
                gain,
                "MATH-500, best of 1860: PRM .782, majority .696 (without the judge's FLOPs)",
            ),
            *said,
        ],
    )
    _mine = {"search.prm_over_majority", *(claim.id for claim in said)}
    print(claims.table(c for c in claims.load(runs, profile) if c.id in _mine))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 1: keep n/width, grow width

    One round of Snell's beam: of the scored `pool`, keep the best n/width, and ask for `width` children of each, so that
    the pool stays at n. Many programs keep `width` and grow n/width; with n = 16 and width = 2 that is another search.
    A finished chain is not grown.
    """)
    return


@app.cell
def _(Grow):
    # Cell tags: solution
    def next_request(pool, n, width):
        """The Grow that follows a pool of scored nodes."""
        kept = sorted(pool, key=lambda node: -node.score)[: n // width]
        return Grow([node for node in kept if not node.finished], width)

    return (next_request,)


@app.cell
def _(Node, Step, next_request):
    # Cell tags: check
    pool = [Node((i,), (Step(f"{i}", score=i / 16),), "answer" if i == 15 else None) for i in range(16)]
    asked = next_request(pool, n=16, width=2)
    assert sorted(node.path[0] for node in asked.nodes) == [*range(8, 15)], "the best 8, less the finished one"
    assert asked.n == 2, "two children each"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 2: who may vote?

    Write the weighted vote without the package. A chain that ran out of tokens has no answer and no vote, even if many
    of them agree on having none.
    """)
    return


@app.cell
def _(Counter):
    # Cell tags: solution
    def my_weighted(traces):
        """The answer with the largest sum of scores; a chain's score is its worst step's."""
        sums = Counter()
        for trace in traces:
            if trace.answer is not None:
                sums[trace.answer] += min(trace.scores)
        return sums.most_common(1)[0][0] if sums else None

    return (my_weighted,)


@app.cell
def _(Step, Trace, my_weighted, weighted):
    # Cell tags: check
    cut = Trace((Step("47+38=8", score=0.9),), "length")
    seven = Trace((Step("3+4=7", score=0.8), Step("7", True, score=0.7)))
    eight = Trace((Step("3+4=8", score=0.2), Step("8", True, score=0.9)))
    crowd = [cut, cut, seven, eight, eight]
    assert my_weighted(crowd) == weighted(crowd, "min") == "7"
    assert my_weighted([seven, *[eight] * 4]) == "8", "four times 0.2 against 0.7: scores add up"
    assert my_weighted([cut]) is None, "nobody finished: abstain"
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ### Exercise 3: a search of your own

    A wrong first step ruins a whole chain, and first steps are cheap. Write a search that samples n first steps, keeps
    the best quarter, finishes those, and holds a weighted vote. A first step may already be an answer: it stays in the
    vote.
    """)
    return


@app.cell
def _(Grow, weighted):
    # Cell tags: solution
    def prune_early(root, *, n=16, aggregate="min"):
        """Sample n first steps, finish the best quarter, vote by score."""
        steps = yield Grow([root], n)
        kept = sorted(steps, key=lambda node: -(node.score or 0))[: max(1, n // 4)]
        ends = yield Grow([node for node in kept if not node.finished], to_end=True)
        return weighted([node.trace for node in kept + ends if node.finished], aggregate)

    return (prune_early,)


@app.cell
def _(Node, Step, prune_early):
    # Cell tags: check
    mine = prune_early(Node(), n=8)
    assert next(mine).n == 8
    early = [Node((0,), (Step("7", True, score=0.9),), "answer")]
    early += [Node((i,), (Step("1+1=3", score=i / 10),)) for i in range(1, 8)]
    asked_next = mine.send(early)
    assert [node.path for node in asked_next.nodes] == [(7,)] and asked_next.to_end
    try:
        mine.send([Node((7, 0), (*early[7].steps, Step("8", True, score=0.6)), "answer")])
    except StopIteration as done:
        assert done.value == "7", "0.9 against 0.6"
    else:
        raise AssertionError("it must stop and answer")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Now yours against the house, on the same test problems and the same first steps. You need no registration: the driver
    takes any generator.
    """)
    return


@app.cell
def _(drive, judge, main, n, policy, prune_early, sampling, seed, tasks, test):
    results = drive(test, prune_early, policy, judge, seed=seed, sampling=sampling, n=n, aggregate=judge.aggregate)
    hits = [tasks.get(r.problem.task).check(r.problem, r.answer) for r in results]
    mean_flops = sum(r.cost.flops for r in results) / len(results)
    print(f"prune_early, n={n}: accuracy {sum(hits) / len(hits):.3f} at {mean_flops:.3g} FLOPs a problem")
    for _point in sorted((p for p in main if p.x <= 1.5 * mean_flops), key=lambda p: -p.accuracy.value)[:3]:
        print(f"{_point.method}, n={_point.n}: accuracy {_point.accuracy.value:.3f} at {_point.x:.3g} FLOPs")
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    ## Ledger

    What it took to get here. Search is charged in full for every method, though shared chains are drawn once.
    """)
    return


@app.cell
def _(Markdown, ledger, records, series):
    stages = {"teach the policy": series.teach(), "sample chains": series.chains()}
    stages |= {f"train the judge: {kind}": series.judge(kind) for kind in series.JUDGES}
    stages["search, all methods"] = sum(r.cost for r in records)
    Markdown(ledger(stages))
    return


@app.cell(hide_code=True)
def _(mo):
    mo.md(r"""
    Next: a judge need not wait for test time. In notebook 07 reward changes the policy itself.
    """)
    return


if __name__ == "__main__":
    app.run()
