"""The stages end to end at profile micro: what is finished is found, what was cut short comes out the same."""

import json
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import claims, evaluate, pipeline, series
from workbench.pipeline import STAGES, Series, build_stage, read_records, read_traces
from workbench.policies.scripted import Scripted
from workbench.runs import Run
from workbench.types import Cost, Record, WorkbenchError
from workbench.verifiers import score_all
from workbench.verifiers.oracle import Answers


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    for name in STAGES:
        build_stage(name, "micro", runs)
    return runs


def rows(runs, stage):
    """Everything a stage measured, without what a clock measured."""

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if not k.endswith("seconds")}
        return value

    files = sorted((Path(runs) / "micro" / stage).glob("*.jsonl"))
    return {f.name: [timeless(json.loads(line)) for line in f.read_text().splitlines()] for f in files}


def weights(runs, stage):
    return {p.name: p.read_bytes() for p in (Path(runs) / "micro" / stage / "model").glob("*.safetensors")}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_killed_before_its_last_word_comes_out_the_same(built, stage):
    """Bug: rows of the first try stay, those of the second are appended, and every curve refuses the file."""
    before, model = rows(built, stage), weights(built, stage)
    assert any(before.values())
    (built / "micro" / stage / "DONE").unlink()
    build_stage(stage, "micro", built)
    assert rows(built, stage) == before and weights(built, stage) == model


def test_what_is_missing_is_known_before_it_is_built(built, monkeypatch, tmp_path):
    """Bugs: after an upgrade stages of other scalars count as finished, and a notebook builds them one by one; looking
    moves them aside."""
    assert pipeline.missing("micro", built) == [] and set(pipeline.missing("micro", tmp_path)) == set(STAGES)
    before = sorted(path.name for path in (built / "micro").iterdir())
    changed = {**pipeline.PROFILES, "micro": replace(pipeline.PROFILES["micro"], audit=3)}
    monkeypatch.setattr(pipeline, "PROFILES", changed)
    assert pipeline.missing("micro", built) == ["audit", "judge-head-rollouts"]
    changed["micro"] = replace(pipeline.PROFILES["micro"], search_n=(1, 2, 4))
    assert {"search", "reinforce-outcome"} <= set(pipeline.missing("micro", built)) < set(STAGES)
    assert sorted(path.name for path in (built / "micro").iterdir()) == before


class Opened(Series):
    """Stages that are all there, and which of them were asked for, with what."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked = {}

    def _open(self, stage, inputs=None, **params):
        self.asked[stage] = SimpleNamespace(done=True, path=Path(stage), inputs=inputs or {}, params=params)
        return self.asked[stage]


@pytest.mark.parametrize("profile", pipeline.PROFILES)
def test_a_stage_waits_for_all_that_it_opens(profile):
    """Bug: a stage opens one that another lane still writes, and `make reproduce` stops."""

    def before(stage):
        return {stage}.union(*map(before, STAGES[stage][0]))

    for stage in STAGES:
        series = Opened(profile)
        build_stage(stage, opened=lambda *args, series=series: series)
        assert stage in series.asked and set(series.asked) <= before(stage), stage


def test_variants_of_the_flywheel_turn_a_wheel_of_their_own(built):
    """Bugs: STaR's larger wheel for all of them, or for the plain round that they are held against."""
    series = Opened("micro")
    series.profile = replace(series.profile, turn=replace(series.profile.turn, problems=8))
    for kind in Series.FLYWHEELS:
        series.flywheel(kind)
    problems = {kind: series.asked[f"flywheel-{kind}"].params["wheel"]["problems"] for kind in Series.FLYWHEELS}
    assert problems == {kind: 12 if kind in ("restart", "continued") else 8 for kind in Series.FLYWHEELS}
    assert "first round" not in series.asked["flywheel-plain"].inputs
    assert "first round" in series.asked["flywheel-continued"].inputs
    plain, restart = (Series("micro", built).flywheel(kind) for kind in ("plain", "restart"))
    assert plain.read("history") == restart.read("history")[:2], "the same scalars, and its round is not made twice"
    model = "rounds/1/model/model.safetensors"
    assert (plain.path / model).read_bytes() == (restart.path / model).read_bytes()


def test_other_rewards_follow_the_outcome_s_scalars():
    """Bug: who makes reinforcement smaller to fit a machine makes one of five runs smaller."""
    series = Opened("micro")
    series.profile = replace(series.profile, reinforce=replace(series.profile.reinforce, prompts=3, levels=(2,)))
    for reward in Series.REWARDS:
        series.reinforce(reward)
        about = series.asked[f"reinforce-{reward}"].params["rl"]
        assert (about["prompts"], about["levels"]) == (3, (2,))


def test_a_finished_series_is_found_not_built(built, capsys):
    assert pipeline.build("micro", built) == (0, 0)
    s = Series("micro", built, progress=False)
    records = read_records(s.search())
    assert "building" not in capsys.readouterr().out
    methods = {record.knobs["method"] for record in records}
    assert {"greedy", "majority", "best_of_n", "weighted_vote", "beam", "verifier alone"} <= methods
    assert all(record.cost.policy_flops > 0 for record in records)


@pytest.mark.parametrize("stage", ["search", "small"])
def test_a_sample_carries_what_its_judge_thinks(built, stage):
    """Bugs: another chain's score; the judge's reading in the policy's bill; a prompt that is billed with every chain,
    or with none."""
    s, small = Series("micro", built, progress=False), stage == "small"
    run, judge = getattr(s, stage)(), s.verifier("small" if small else "likelihood")
    records, samples = read_records(run), read_records(run, "samples")
    most = max(r.knobs["n"] for r in records if r.knobs["method"] == "weighted_vote")
    _, drawn = evaluate.samples("", s.test(), s.policy(small=small), most, s.seed, s.profile.sampling)
    scores = score_all(judge, [(q, trace) for q, traces in drawn for trace in traces])
    assert [r.knobs["score"] for r in samples] == pytest.approx([min(steps) for steps in scores], abs=1e-5)
    assert len({r.knobs["score"] for r in samples}) > most
    for vote in [r for r in records if (r.knobs["method"], r.knobs["n"]) == ("weighted_vote", most)]:
        chains = [r for r in samples if r.problem == vote.problem]
        assert sum(r.knobs["judged_flops"] for r in chains) == pytest.approx(vote.cost.verifier_flops)
        assert sum(r.cost.flops for r in chains) == pytest.approx(vote.cost.policy_flops)


def test_early_policies_that_teaching_never_reached_are_left_out(tmp_path):
    """Bugs: a seed that learns sooner stops the series; what the chains cost is on no bill."""
    s = Series("micro", tmp_path, progress=False)
    s.profile = replace(s.profile, early=(4, 99))
    records = read_records(s.early())
    assert {r.knobs["step"] for r in records} == {4} and len(records) == s.profile.search_problems * s.profile.early_n
    assert s.early().summary["cost"]["sampled"] == sum(r.cost.sampled for r in records) > 0


def test_a_row_that_is_no_record_is_named(tmp_path):
    run, record = Run.open(tmp_path / "r", {}), Record("r", "p/1", 0, "5", True, Cost(sampled=7))
    run.append("records", [record.to_json()])
    assert read_records(run) == [record]
    run.append("records", [{"run": "r"}])
    with pytest.raises(WorkbenchError, match=r"records\.jsonl, row 2, is no record"):
        read_records(run)


def test_a_corrupted_stage_is_named_and_not_believed(built):
    """Bug: `DONE` is there, so a damaged model counts as finished."""
    path = built / "micro" / "judge-orm" / "model" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8])
    try:
        with pytest.raises(WorkbenchError, match="judge-orm"):
            pipeline.build("micro", built)
    finally:
        path.write_bytes(whole)


def test_a_damaged_rl_checkpoint_is_named(built):
    state = built / "micro" / "reinforce-prm-min" / "state.safetensors"
    whole, done = state.read_bytes(), built / "micro" / "reinforce-prm-min" / "DONE"
    last = done.read_text()
    done.unlink()
    state.write_bytes(whole[:100])
    try:
        with pytest.raises(WorkbenchError, match="state.safetensors"):
            build_stage("reinforce-prm-min", "micro", built)
    finally:
        state.write_bytes(whole)
        done.write_text(last)


def test_labels_on_disk_are_the_oracles_and_the_rollouts(built):
    s = Series("micro", built, progress=False)
    for problem, trace, labels in read_traces(s.chains()):
        assert labels == [float(x) for x in s.task.oracle(problem, trace.steps)]
    soft = s.audit().read("traces")
    assert all(h == float(x > 0) for row in soft for x, h in zip(row["soft"], row["hard"], strict=True))


def test_other_parameters_keep_the_earlier_run(built, monkeypatch, capsys):
    """Bug: a changed parameter silently reuses, or silently deletes, what was there."""
    p = pipeline.PROFILES["micro"]
    monkeypatch.setitem(pipeline.PROFILES, "micro", replace(p, audit=p.audit - 1))
    run = Series("micro", built, progress=False).audit()
    assert "audit" in capsys.readouterr().out and run.done
    assert len(list((built / "micro").glob("audit~*"))) == 1


BAD = [("2+3", 0, "--n"), ("what is 2+3", 4, "47\\+38"), ("12-45", 4, "range")]


@pytest.mark.parametrize("words, n, complaint", BAD)
def test_solve_refuses_before_it_builds(tmp_path, words, n, complaint):
    with pytest.raises(WorkbenchError, match=complaint):
        pipeline.solve_cli(Namespace(problem=words, profile="micro", runs=tmp_path, n=n, seed=0))
    assert not list(tmp_path.iterdir())


def test_solve_tells_what_it_did(built, capsys):
    pipeline.solve_cli(Namespace(problem="47+38-29*2", profile="micro", runs=built, n=4, seed=0))
    assert "47+38-29*2" in capsys.readouterr().out


@pytest.mark.parametrize("name, advice", [("micro", "try --profile nano"), ("nano", "try more with --n")])
def test_what_solve_advises_depends_on_the_profile(tmp_path, monkeypatch, capsys, name, advice):
    """Bug: more chains are advised of a model that has learnt nothing."""
    monkeypatch.setattr(Series, "policy", lambda self, stage: Scripted({(): [("?", 1.0)]}))  # which cuts a chain
    monkeypatch.setattr(Series, "verifier", lambda self: Answers([self.task.parse("2+3")]))
    assert pipeline.solve_cli(Namespace(problem="2+3", profile=name, runs=tmp_path, n=2, seed=0)) == 1
    assert capsys.readouterr().out.endswith(f"{advice}\n")


@pytest.mark.parametrize("name", ["profile", "stage"])
def test_unknown_names(tmp_path, name):
    with pytest.raises(WorkbenchError, match="nanu"):
        build_stage("nanu" if name == "stage" else "teach", "micro" if name == "stage" else "nanu", tmp_path)


def test_a_notebook_says_the_same_as_ipynb_and_as_marimo(built, tmp_path):
    """Bug: two builds of one source drift apart. The claims that both record are compared, number by number."""
    name, found = series.find("02"), []
    for form in (series.run, series.run_marimo):
        form(name, "micro", built)
        found.append([claim.row() for claim in claims.load(built, "micro") if claim.id.startswith("sft.")])
        (built / "micro" / "claims" / f"{name}.jsonl").unlink()
    assert len(found[0]) == 2 and found[0] == found[1]
