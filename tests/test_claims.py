"""Claims: the interval decides, in code. Each test names the mistake it pins."""

import json
import math
import os
from dataclasses import replace

import pytest

from workbench.claims import (
    HEADS,
    Claim,
    cells,
    decide,
    load,
    measured,
    page,
    record,
    rows,
    summed,
    table,
    to_json,
    told,
    trainings,
)
from workbench.scaling import Estimate, Ratio, difference, over_trainings
from workbench.types import Record, WorkbenchError


def claim(id="search.prm_over_majority", low=0.1, high=0.3, goal="> 0"):
    return Claim(id, "Snell et al. 2024", "guided search beats the vote", goal, Estimate(0.2, low, high, 50, 2))


@pytest.mark.parametrize(
    "goal, low, high, verdict",
    [
        ("> 0", 0.01, 0.2, "holds"),
        ("> 0", 0.0, 0.2, "undecided"),
        ("> 0", -0.2, 0.0, "fails"),
        (">=.1", 0.1, 0.2, "holds"),
        (">= 0.1", -0.1, 0.0999, "fails"),
        ("< 0", -0.2, -0.1, "holds"),
        ("< -1e-2", -0.2, 0.0, "undecided"),
        ("<= 0", 0.0, 0.1, "undecided"),
        ("<= 0", 0.01, 0.1, "fails"),
        ("in 0.3..0.7", 0.3, 0.7, "holds"),
        ("in .3...7", 0.2, 0.4, "undecided"),
        ("in -1..-0.5", 0.1, 0.4, "fails"),
        ("in 0.3..0.7", 0.1, 0.9, "undecided"),
        ("> 0", None, None, "undecided"),
    ],
)
def test_the_whole_interval_decides(goal, low, high, verdict):
    """Bug: the value alone decides, or an interval that touches the bound counts as beyond it."""
    assert decide(Estimate(0.2, low, high, 50), goal) == verdict


@pytest.mark.parametrize(
    "goal", ["", "0", "=> 0", "> zero", "in 0.7..0.3", "in 0.3-0.7", "> 0 or so", "__import__('os')"]
)
def test_a_goal_that_is_not_one_is_refused(goal):
    with pytest.raises(WorkbenchError, match="goal"):
        decide(Estimate(0.2, 0.1, 0.3, 50), goal)


def test_an_interval_that_is_not_one_is_refused():
    """Bug: every comparison with NaN is false, so a NaN would read as 'fails'."""
    for low, high in [(math.nan, 1.0), (1.0, 0.0)]:
        with pytest.raises(WorkbenchError, match="not an interval"):
            decide(Estimate(0.5, low, high, 50), "> 0")


def test_a_claim_flips_when_its_records_are_swapped():
    """Bug: a verdict that does not come from the records."""
    guided, vote = (
        [Record("r", f"p/{i}", 0, "5", i % 10 < share, knobs={"method": name}) for i in range(100)]
        for name, share in (("beam", 7), ("majority", 4))
    )
    verdicts = [
        Claim("search.prm_over_majority", "Snell et al. 2024", "search beats the vote", "> 0", difference(a, b)).verdict
        for a, b in [(guided, vote), (vote, guided), (vote, [*guided[:0], *vote])]
    ]
    assert verdicts == ["holds", "fails", "undecided"]


def test_round_trip_and_replacement(tmp_path):
    record(tmp_path, "nano", "05_search", [claim("old.claim")])
    mean = replace(claim("c.d"), trainings=3, tried=False)
    path = record(tmp_path, "nano", "05_search", [claim(), claim("a.b", None, None), mean])
    assert path == tmp_path / "nano" / "claims" / "05_search.jsonl"
    assert load(tmp_path, "nano") == [claim("a.b", None, None), mean, claim()]
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no half-written file stays behind"
    assert load(tmp_path, "small") == []


def test_a_typed_in_verdict_is_not_believed(tmp_path):
    """Bug: the table prints what the file says in place of what the interval says."""
    path = record(tmp_path, "nano", "05_search", [claim(low=-0.1)])
    path.write_text(path.read_text().replace("undecided", "holds"))
    assert load(tmp_path, "nano")[0].verdict == "undecided"


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupted_write_keeps_the_old_claims(tmp_path, monkeypatch, moment):
    """Bug: a half-written file that looks finished."""
    record(tmp_path, "nano", "05_search", [claim()])
    monkeypatch.setattr(os, moment, lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
    with pytest.raises(WorkbenchError, match="the disk is full"):
        record(tmp_path, "nano", "05_search", [claim("new.claim")])
    assert load(tmp_path, "nano") == [claim()] and len(list((tmp_path / "nano" / "claims").iterdir())) == 1


def test_broken_and_double_rows_are_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="twice"):
        record(tmp_path, "nano", "05_search", [claim(), claim()])
    path = record(tmp_path, "nano", "05_search", [claim()])
    record(tmp_path, "nano", "08_scaling", [claim()])
    with pytest.raises(WorkbenchError, match=r"05_search\.jsonl and by 08_scaling\.jsonl"):
        load(tmp_path, "nano")
    path.write_text(path.read_text()[:-9])
    with pytest.raises(WorkbenchError, match=r"05_search\.jsonl line 1"):
        load(tmp_path, "nano")


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("low", math.nan, "nan to 0.3 is not an interval"),
        ("low", 0.5, "0.5 to 0.3 is not an interval"),
        ("value", None, "must be real number"),
        ("value", math.nan, "nan is not inside"),
        ("value", -0.9, "-0.9 is not inside"),
        ("goal", "about 1", "cannot read the goal"),
    ],
)
def test_a_row_whose_numbers_cannot_be_is_named(tmp_path, name, value, reason):
    """Bugs: NaN and reversed intervals were refused without their file and line; a value of null broke the table; a
    value outside its interval was read as a claim that holds."""
    path = record(
        tmp_path, "nano", "05_search", [claim("a"), Claim("b", "me", "it works", "> 0", Estimate(0.2, 0.1, 0.3, 9))]
    )
    first, row = path.read_text().splitlines()
    path.write_text(first + "\n" + json.dumps(json.loads(row) | {name: value}) + "\n")
    with pytest.raises(WorkbenchError, match=rf"05_search\.jsonl line 2 is not a claim \(.*{reason}"):
        load(tmp_path, "nano")


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """Bug: one such row made all claims of a profile unreadable, and its notebook wrote it anew."""
    with pytest.raises(WorkbenchError, match="b: 0.4 is not inside 0.5 to 1"):
        record(tmp_path, "nano", "05", [claim("a"), Claim("b", "me", "it works", "> 0", Estimate(0.4, 0.5, 1.0, 9))])
    assert load(tmp_path, "nano") == []


def test_table_and_json():
    claims = [claim("a", None, None), Claim("long.id", "me", "two\nlines", "in 0..1", Estimate(0.5, 0.25, 0.75, 1319))]
    head, first, second = table(claims).splitlines()
    assert head.index("verdict") == first.index("undecided") == second.index("holds")
    assert "–" in first and "0.25 to 0.75" in second and "two lines" in second
    found = json.loads(to_json(claims))
    assert (found[0]["low"], found[0]["verdict"], found[1]["n"]) == (None, "undecided", 1319)


def test_an_open_ratio_is_decided_written_and_read(tmp_path):
    """Bugs: "at least 4 times" is undecided for want of an upper end; an open end is lost on disk."""
    open_ = Ratio(5.0, 4.2, None, 240, ">=")
    assert [decide(open_, goal) for goal in (">= 4", "<= 4", "< 9")] == ["holds", "fails", "undecided"]
    assert decide(Ratio(3.0, None, 5.0, 240, "<="), ">= 4") == "undecided"
    mine = Claim("scaling.factor", "Snell et al.", "it saves", ">= 4", open_, "2-4")
    record(tmp_path, "nano", "08", [mine])
    assert load(tmp_path, "nano") == [mine] and ">= 5" in table([mine]) and "4.2 to open" in table([mine])


def test_the_page_counts_the_verdicts():
    said = page({0: [claim("a"), claim("b", -1, 1)]}, "nano", "2026-11-01")
    assert "2 claims: 1 holds, 1 undecided" in said and "2026-11-01" in said and said.count("\n| ") == 3
    assert "trained once" in said


def test_other_trainings_are_told_beside_the_first(tmp_path):
    """Bugs: a verdict of one training passes for a law; a claim that was not measured again counts as another verdict;
    the second training's numbers take the first one's place."""
    lost = Claim("c", "me", "it works", "> 0", None)
    record(tmp_path, "nano", "05", [claim("a"), claim("b"), claim("c"), claim("d", -1, 1)])
    record(tmp_path / "seed-1", "nano", "05", [claim("a", -2, 2), claim("b"), lost, claim("e")])
    record(tmp_path / "seed-10", "nano", "05", [claim("d", -1, 1)])
    record(tmp_path / "seed-0", "nano", "05", [claim("x")])
    (tmp_path / "seed-x").mkdir()
    (tmp_path / "seed-2").mkdir()
    found = trainings(tmp_path, "nano")
    assert list(found) == [0, 1, 10] and found[0] == load(tmp_path, "nano")
    assert "seeds 0, 1, 10: other problems" in page(found, "nano", "2026-11-01")
    at = HEADS.index("each training")
    told = {row[0]: row[at] for row in rows(found)}
    value = claim("a").value
    assert told["a"] == f"0: {value} holds; 1: {value} undecided; 10: –"
    assert told["c"] == f"0: {value} holds; 1: –; 10: –"
    assert told["e"] == f"0: –; 1: {value} holds; 10: –", "what the first one lacks is told, too"
    assert told["d"] == f"0: {value} undecided; 1: –; 10: {value} undecided"
    assert f"1: {value} undecided" in table(found)
    read = {row["id"]: row["each"] for row in json.loads(to_json(found))}
    assert read["a"]["1"]["verdict"] == "undecided" and list(read["d"]) == ["0", "10"]
    assert [c for c, _ in summed(found)][:4] == found[0], "two trainings have no interval of their own"
    assert rows({0: [], 2: [claim("a")]})[0][at] == "–", "the only training is the first"
    assert list(trainings(tmp_path / "none", "nano").values()) == [[]]


def test_from_three_trainings_on_the_verdict_is_theirs():
    """Bugs: the verdict of one training, narrow over its problems, stands where others deny it; a mean over those that
    could be measured passes for one over all; a bound is averaged as if it were a number."""

    def of(*values, kind=Estimate, goal="> 0", lost=False):
        found = {s: [Claim("a", "me", "it works", goal, kind(v, v - 0.01, v + 0.01, 240 - s))] for s, v in values}
        return found | ({9: [Claim("a", "me", "it works", goal, None)]} if lost else {})

    [(one, each)] = summed(of((0, 0.2), (1, 0.0), (4, 0.1)))
    t = 4.302652729911275  # Student's, .975, two degrees of freedom
    reach = t * 0.1 / 3**0.5
    assert (one.trainings, one.estimate.n, list(each)) == (3, 236, [0, 1, 4]) and one.verdict == "undecided"
    assert (one.estimate.low, one.estimate.high) == (pytest.approx(0.1 - reach), pytest.approx(0.1 + reach))
    assert each[0].verdict == "holds" and "3 trainings" in table(of((0, 0.2), (1, 0.0), (4, 0.1)))
    said = page(of((0, 0.2), (1, 0.21), (2, 0.19)), "nano", "2026-11-01")
    assert "of 1 that hold there 1 hold over trainings" in said and "1 claims: 1 holds" in said
    [(part, _)] = summed(of((0, 0.2), (1, 0.21), (2, 0.19), lost=True))
    assert part.verdict == "undecided" and part.trainings == 3 and part.value == "0.2"
    [(factor, _)] = summed(of((0, 2.0), (1, 2.2), (2, 1.8), kind=Ratio, goal=">= 1.5"))
    assert factor.verdict == "holds" and factor.estimate.value == pytest.approx((2 * 2.2 * 1.8) ** (1 / 3))
    bound = {s: [Claim("a", "me", "it works", ">= 4", Ratio(5.0 + s, 4.5, None, 9, ">="))] for s in range(3)}
    assert summed(bound)[0][0].verdict == "undecided" and summed(bound)[0][0].interval == "open to open"
    assert summed(bound)[0][0].estimate.bound == ">="
    both = over_trainings([Ratio(4, 4, None, 9, ">="), Ratio(4, 4, None, 9, ">="), Ratio(0.25, None, 0.25, 9, "<=")])
    assert str(both).startswith("? 1.59 [open to open"), "bounds of both kinds have a mean that is no measurement"
    half = {s: [Claim("a", "me", "it works", ">= 4", Ratio(5.0 + s, 4.5, None if s else 9, 9))] for s in range(3)}
    assert summed(half)[0][0].interval.endswith(" to open") and not summed(half)[0][0].interval.startswith("open")
    withheld = {s: [Claim("a", "me", "it works", ">= 1", Ratio(90.0 + s, None, None, 9))] for s in range(3)}
    assert summed(withheld)[0][0].verdict == "undecided", "who had no interval gets none by company"
    [(two, _)] = summed(of((0, 0.2), (1, 0.21), lost=True))
    assert two.verdict == "undecided" and two.trainings == 2 and two.estimate.low is None
    [(one, _)] = summed(of((0, 0.2), lost=True) | {5: [Claim("a", "me", "it works", "> 0", None)]})
    assert one.verdict == "undecided" and one.value == "0.2", "two of three could not: one alone is no finding"
    few = of((0, 0.2), lost=True) | {5: [Claim("a", "me", "it works", "> 0", None)]}
    at = HEADS.index("over")
    assert rows(few)[0][at] == "1 of 3 trainings", 'a dash over "problems" is no interval that one of them gave'
    assert rows(of((0, 0.2), (1, 0.21), lost=True))[0][at] == "2 of 3 trainings"
    assert rows(of((0, 0.2), (1, 0.21)))[0][at] == "problems", "two trainings have no interval of their own"
    [(one, _)] = summed(of((0, 0.2)) | {s: [replace(part, estimate=None, tried=False)] for s in (1, 2)})
    assert one.verdict == "holds" and one.trainings == 1, "two did not try: its own, over problems"
    later = {0: [Claim("a", "me", "it works", "> 0", None)], **of((1, 0.2))}
    assert summed(later)[0][0].value == "0.2", "what the first could not measure"
    older = of((0, 0.2), (1, 0.21)) | {2: [Claim("a", "me", "it works", "> 9", Estimate(5, 4, 6, 9))]}
    assert summed(older)[0][0].trainings == 1, "another goal is another claim"
    for odd in (Ratio(2, 1, 3, 9), Estimate(math.inf, None, None, 9)):
        mixed = of((0, 0.2), (1, 0.3)) | {2: [Claim("a", "me", "it works", "> 0", odd)]}
        assert summed(mixed)[0][0].verdict == "undecided" and summed(mixed)[0][0].trainings == 2, "no number like these"
    below = {s: [Claim("a", "me", "it works", "> 0", Ratio(v, None, 3, 9))] for s, v in enumerate((2.0, -0.5, 3.0))}
    assert summed(below)[0][0].estimate.value == pytest.approx(6**0.5) and "undecided" in to_json(below)
    with pytest.raises(WorkbenchError, match="one kind"):
        over_trainings([Estimate(0.2, 0, 1, 9), Ratio(2, 1, 3, 9)])
    alike = summed(of((0, 0.2), (1, 0.2), (2, 0.2)))[0][0]
    assert alike.verdict == "undecided", "equal numbers would claim certainty"


def test_what_was_not_measured_stays_in_the_table(tmp_path, capsys):
    """Bug: a claim without an estimate was left out, and its absence counted nowhere."""
    assert measured(decide, Estimate(0.2, 0, 1, 9), "about 1") is None
    assert capsys.readouterr().out.startswith("not measured: cannot read the goal 'about 1'")
    lost = Claim("a.lost", "me", "it works", "> 0", None)
    record(tmp_path, "nano", "04_prm", [lost, claim("b")])
    found = load(tmp_path, "nano")
    assert found[0] == lost and [c.verdict for c in found] == ["not measured", "holds"]
    assert "1 holds, 1 not measured" in page({0: found}, "nano", "2026-11-01")
    assert cells(lost)[:7] == ("a.lost", "not measured", "–", "–", "problems", "> 0", "–")
    assert told(None, "> 0", "yes", "no", "open") == "open"
    path = next((tmp_path / "nano" / "claims").iterdir())
    path.write_text(path.read_text().replace('"holds"', '"not measured"'))
    assert load(tmp_path, "nano")[1].verdict == "holds", "a verdict cannot be typed in"
