"""The series on a pre-trained base, with a tiny one in its place: each test names the mistake that it keeps out."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from workbench import doctor, pipeline, pretrained, tasks
from workbench import series as books
from workbench.adapters import prepare
from workbench.format import TAGS
from workbench.models import load_model, new_model
from workbench.pipeline import build_stage, read_records, read_traces
from workbench.pretrained import Pretrained, open_series
from workbench.types import WorkbenchError

TINY = {
    "step_tokens": 24,
    "chain_tokens": 64,
    "teach.steps": 4,
    "teach.check_every": 2,
    "taught": 12,
    "held_out": 4,
    "judge_problems": 6,
    "judge_chains": 2,
    "judge.method": "lora",
    "judge.steps": 2,
    "judge.check_every": 1,
    "judge.held_out": 0.3,
    "audit": 3,
    "rollouts": 2,
    "search_problems": 4,
    "search_n": (1, 2, 4),
    "caps": (16,),
    "judged": 12,
    "reinforce.steps": 2,
    "reinforce.levels": (2,),
    "reinforce.prompts": 2,
    "reinforce.check_every": 1,
    "process.steps": 1,
    "wheel.problems": 4,
    "wheel.steps": 1,
    "turn.problems": 4,
    "turn.steps": 1,
}


def word_problem(i: int) -> dict:
    a, b, c = 2 + i % 7, 3 + i % 5, i
    steps = [f"Pens: {a}*{b}=<<{a}*{b}={a * b}>>{a * b}", f"All: {a * b}+{c}=<<{a * b}+{c}={a * b + c}>>{a * b + c}"]
    question = f"Ann has {a} boxes of {b} pens and {c} more pens. How many pens?"
    return {"question": question, "answer": "\n".join(steps) + f"\n#### {a * b + c}"}


def marked_rows(first: int, n: int) -> list[dict]:
    """Rows of PRM800K's table: a right first step, then a right and a wrong one that end."""
    rows = []
    for i in range(first, first + n):
        about = {"instruction": f"What is {i} times 3 plus 1?", "answer": None, "is_solution": False}
        one = f"{i} times 3 is {3 * i}."
        rows.append({**about, "responses": [], "next_response": one, "rating": 1})
        rows.append({**about, "responses": [one], "next_response": f"So it is {3 * i + 1}.", "rating": 1})
        rows.append({**about, "responses": [one], "next_response": f"So it is {3 * i + 2}.", "rating": -1})
    return rows


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    """A tiny Llama that was never trained, with its tags all alike, as a base has them."""
    folder = tmp_path_factory.mktemp("base")
    model = new_model("micro", tokenizer)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[tokenizer.convert_tokens_to_ids(list(TAGS))] = table.mean(0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory):
    """A handful of rows as GSM8K and PRM800K have them."""
    folder = tmp_path_factory.mktemp("data")
    files = {"gsm8k/train": [word_problem(i) for i in range(80)]}
    files |= {"gsm8k/test": [word_problem(i) for i in range(100, 110)]}
    files |= {"prm800k/phase1_train": marked_rows(100, 12), "prm800k/phase1_test": marked_rows(300, 16)}
    for name, rows in files.items():
        path = folder / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_DATA", str(folder))
        tasks.get("gsm8k")._table.cache_clear()
        yield folder
    tasks.get("gsm8k")._table.cache_clear()


@pytest.fixture(scope="module")
def opened(base, tmp_path_factory):
    shared = tmp_path_factory.mktemp("runs")

    def opened(runs=shared, **more):
        return open_series("small", runs, changes={**TINY, "base": str(base), **more}, progress=False)

    return opened


def test_every_stage_builds_and_is_found_again(opened, capsys):
    series = opened()
    stages = [series.teach(), series.chains(), series.audit(), *map(series.judge, series.VERIFIERS), series.search()]
    assert all(run.done and (run.path / "DONE").exists() for run in stages)
    assert all(run.summary["cost"] for run in stages[:-1]), "what it cost is on no bill"
    capsys.readouterr()
    again = opened()
    assert [again.teach().path, again.search().path] == [stages[0].path, stages[-1].path]
    assert "building" not in capsys.readouterr().out
    methods = {r.knobs["method"] for r in read_records(series.search())}
    assert {"greedy", "majority", "best_of_n", "weighted_vote", "best_of_n (ORM)", "best_of_n (oracle)"} <= methods
    assert "verifier alone" not in methods and "beam (oracle)" not in methods


def test_the_policy_is_an_adapter_and_only_that_is_kept(opened):
    folder = opened().teach().path / "model"
    assert (folder / "adapter_model.safetensors").exists() and not (folder / "model.safetensors").exists()
    one, two = opened().policy(), opened().policy()
    how = {"sampling": opened().profile.sampling}
    from workbench.search import drive

    texts = [
        [[s.text for s in leaf.trace.steps] for r in drive(opened().test(), "greedy", p, **how) for leaf in r.leaves]
        for p in (one, two)
    ]
    assert texts[0] == texts[1], "tags drawn anew at every load make it another model"


def test_tags_of_a_base_are_told_apart_and_those_of_a_policy_stay(base, tokenizer):
    """Bug: six equal rows at the mean. Its logit is the mean of all, so no adapter makes a tag the likeliest token."""
    ids = tokenizer.convert_tokens_to_ids(list(TAGS))
    rows = []
    for _ in range(2):
        model, its = load_model(base)
        prepare(model, its)
        rows.append(model.get_input_embeddings().weight[ids].clone())
        prepare(model, its)
        assert torch.equal(model.get_input_embeddings().weight[ids], rows[-1])
    assert torch.equal(*rows)
    assert torch.pdist(rows[0]).min() > 0.5 * rows[0].norm(dim=1).mean()
    trained = new_model("micro", tokenizer)
    before = trained.get_input_embeddings().weight.clone()
    prepare(trained, tokenizer)
    assert torch.equal(before, trained.get_input_embeddings().weight)


@pytest.mark.parametrize(
    "stage, dies_at", [("teach", 2), ("judge-head", 2), ("reinforce-outcome", 2), ("flywheel-restart", 1)]
)
def test_a_stage_killed_at_a_check_comes_out_the_same(opened, tmp_path, monkeypatch, stage, dies_at):
    """Bugs: the run begins anew, or rows of the history come twice."""
    whole = build_stage(stage, opened=lambda *_: opened())
    kept = pipeline.Run.append

    def dies(run, name, rows):
        kept(run, name, rows := list(rows))
        if name == "history" and rows[0].get("step", rows[0].get("round", 0)) >= dies_at:
            raise KeyboardInterrupt

    if stage != "teach":
        opened(tmp_path).teach()
    monkeypatch.setattr(pipeline.Run, "append", dies)
    with pytest.raises(KeyboardInterrupt):
        build_stage(stage, opened=lambda *_: opened(tmp_path))
    monkeypatch.undo()
    again = build_stage(stage, opened=lambda *_: opened(tmp_path))
    model = "rounds/2/model" if stage == "flywheel-restart" else "model"
    weights = [(run.path / model / "adapter_model.safetensors").read_bytes() for run in (whole, again)]
    assert weights[0] == weights[1]
    steps = [[row.get("step", row.get("round")) for row in run.read("history")] for run in (whole, again)]
    assert steps[0] == steps[1] and len(steps[0]) > 1


@pytest.mark.parametrize("reward", ["outcome", "prm-min"])
def test_reward_moves_the_adapter_and_nothing_else(opened, reward):
    series = opened()
    run = build_stage(f"reinforce-{reward}", opened=lambda *_: series)
    one, two = (load_file(stage.path / "model" / "adapter_model.safetensors") for stage in (series.teach(), run))
    assert one.keys() == two.keys() and not (run.path / "model" / "model.safetensors").exists()
    assert run.read("history")[-1]["step"] == (2 if reward == "outcome" else 1)
    assert {r.problem for r in read_records(run)} == {p.id for p in series.test()}
    series.policy(stage=f"reinforce-{reward}")


def test_labels_without_an_oracle_are_the_answers(opened):
    series = opened()
    for problem, trace, marks in read_traces(series.chains()):
        right = trace.answer is not None and series.task.check(problem, trace.answer)
        assert marks == [float(right)] * len(trace.steps)
    for row in series.audit().read("traces"):
        assert {x * series.profile.rollouts % 1 for x in row["soft"]} <= {0.0}


def test_judges_are_held_against_peoples_marks(opened):
    """Bugs: thresholds chosen on what is reported; a step without a mark counted; scores of another chain."""
    series = opened()
    judges = {"head": series.verifier()}
    parts = {split: series.marked(split, {}, judges) for split in ("valid", "test")}
    ids = {split: {p.id for p, _ in seen["head"]} for split, (seen, _) in parts.items()}
    assert ids["valid"] and ids["test"] and not ids["valid"] & ids["test"]
    seen, marks = parts["test"]
    assert len(seen["head"]) == len(marks) == TINY["judged"] == len(ids["test"]), "a problem's chains stand together"
    assert {tuple(m) for m in marks} == {(1.0, 1.0), (1.0, 0.0)}
    for (problem, trace), row in zip(seen["head"], marks, strict=True):
        assert len(trace.steps) == len(row) and problem.answer is None
        assert trace.scores == pytest.approx(list(judges["head"].score([(problem, trace)])[0]), abs=1e-4)


def test_a_prm_that_would_learn_what_it_is_reported_on_is_refused(opened, data, tmp_path):
    bad = tmp_path / "both.jsonl"
    bad.write_text("".join(json.dumps(row) + "\n" for row in marked_rows(100, 3) + marked_rows(305, 1)))
    with pytest.raises(WorkbenchError, match="1 problems of .* are also reported on"):
        opened(tmp_path / "runs", marks=str(bad)).judge()


def test_rows_that_are_not_here_are_named(opened, tmp_path):
    with pytest.raises(tasks.Missing, match=r"no step labels prm800k/phase9\* in .*: put PRM800K's file there"):
        opened(tmp_path, marks="prm800k/phase9*").judge()


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"audits": 3}, "unknown scalar of Profile 'audits': did you mean 'audit'"),
        ({"teach.stepz": 3}, "unknown scalar of Lora 'stepz': did you mean 'steps'"),
        ({"teach.lr.x": 3}, "unknown scalar"),
        ({"audit": "3"}, "audit='3': it is of type int"),
        ({"judge.method": "dora"}, "one of full, lora, qlora"),
        ({"search_n": ["a"]}, r"search_n=\('a',\): one or more of type int"),
        ({"search_n": []}, "one or more of type int"),
        ({"name": "tiny"}, "profile small has no use for name, or is named by it"),
        ({"task": "countdown"}, "profile small asks gsm8k, gsm_symbolic or math: for countdown take nano"),
        ({"task": "gsm9k"}, "unknown task 'gsm9k': did you mean 'gsm8k'"),
        ({"turn.rounds": 2}, "profile small has no use for turn.rounds"),
        ({"head.steps": 3, "teach.target": 0.5}, "no use for head.steps, teach.target"),
    ],
)
def test_unknown_changes_are_refused(tmp_path, changes, complaint):
    """Bug: a misspelt scalar is ignored, and two hours later the run is the wrong one."""
    with pytest.raises(WorkbenchError, match=complaint):
        open_series("small", tmp_path, changes=changes)


def test_changes_serve_every_profile(tmp_path):
    series = open_series("micro", tmp_path, changes={"audit": 3, "teach.lr": 1})
    assert type(series) is pipeline.Series and (series.profile.audit, series.profile.teach.lr) == (3, 1.0)
    with pytest.raises(WorkbenchError, match="unknown profile 'nanu': did you mean 'nano'"):
        open_series("nanu", tmp_path)
    with pytest.raises(WorkbenchError, match="notebooks 03 to 07"):
        pipeline.profile("small")


def test_a_change_opens_a_run_of_its_own(tmp_path):
    """Bug: chains of 96 tokens served a series of 64, and records of 8 problems one of 12."""
    for kind, change in (("chains", "chain_tokens"), ("flywheel", "search_problems"), ("teach", "held_out")):
        keys = []
        for value in (24, 32):
            series = open_series("micro", tmp_path / kind, changes={"teach.steps": 2, change: value}, progress=False)
            run = getattr(series, kind)()
            keys.append(run.about["key"])
            assert run.done
        assert len(set(keys)) == 2, kind


def test_what_a_profile_has_not_is_said(opened):
    series = opened()
    for ask in (lambda: series.policy(reasoning=False), series.small, series.early, lambda: series.judge("likelihood")):
        with pytest.raises(WorkbenchError, match="profile small"):
            ask()


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_the_planner_knows_what_grows(name):
    p = pretrained.profile(name)
    need = pretrained.needs(p, 2)
    assert need.keys() == {"teach", "judge", "search", "flywheel", "reinforce"} and max(need.values()) < 22e9
    more = replace(p, teach=replace(p.teach, batch=2 * p.teach.batch), rows=2 * p.rows)
    assert all(pretrained.needs(more, 2)[stage] > need[stage] for stage in ("teach", "search", "reinforce"))
    assert doctor._plan(name).found.startswith("the stages take ")


def test_profiles_differ_in_scalars_only():
    """Bug: a profile that takes another path through the code, which the other's tests do not see."""
    small, gpu = (pretrained.profile(name) for name in pretrained.NAMES)
    assert type(small) is type(gpu) and isinstance(Pretrained("gpu").profile, pretrained.Profile)


NOTEBOOKS = [name for name in books.names() if "03" <= name[:2] <= "05"]
NOTEBOOKS += [pytest.param(name, marks=pytest.mark.slow) for name in books.names() if name[:2] in ("06", "07")]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_at_profile_small(name, opened, base):
    """Its cells one after another, with the tiny base. Bug: a cell that only arithmetic can serve stops it."""
    given = {"profile": "small", "runs": str(opened().root.parent), "changes": {**TINY, "base": str(base)}}
    space: dict = {"__name__": "notebook"}
    for cell in books.read(name).cells:
        marks = books.tags(cell)
        if cell.cell_type == "code" and "mutant" not in marks:
            exec(compile(cell.source, f"{name}: {cell.source[:60]}", "exec"), space)
        if "parameters" in marks:
            space |= given
    assert space["series"].profile.name == "small"
