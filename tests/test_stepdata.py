"""Step labels from outside: each test names the mistake that it keeps out."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from workbench import stepdata
from workbench.packing import UNKNOWN, judged, pack
from workbench.stepdata import Rows
from workbench.types import WorkbenchError

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
shared = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data beside the project")


def write(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def completion(text, rating, **more):
    return {"text": text, "rating": rating, "flagged": None, **more}


def raw(steps, problem="What is 2+3?", **more):
    return {
        "labeler": "a",
        "is_quality_control_question": False,
        "is_initial_screening_question": False,
        "question": {"problem": problem, "ground_truth_answer": "5"},
        "label": {"steps": steps, "finish_reason": "found_error", **more},
    }


def step(*completions, chosen=None, human=None):
    return {"completions": list(completions), "human_completion": human, "chosen_completion": chosen}


def texts(chain):
    return [s.text for s in chain.trace.steps]


def test_prm800k_by_hand(tmp_path):
    """Bugs: the next step follows the first completion and not the chosen one; neutral taken for wrong; a flagged
    completion kept; an unrated one given 0; the answer not split off."""
    row = raw(
        [
            step(completion("2+3 is 6", -1), completion("2+3\nis 5", 0), completion("5?", 1, flagged=True), chosen=1),
            step(completion("So 5.\n\n# Answer\n\n5", 1), completion("So 6.\n\n# Answer\n\n6", -1), chosen=0),
        ]
    )
    rows = Rows(write(tmp_path, [row]))
    found = {tuple(texts(chain)): chain.labels for chain in rows}
    assert found == {
        ("2+3 is 6",): (0.0,),
        ("2+3 is 5", "So 5.", "5"): (1.0, 1.0, 1.0),
        ("2+3 is 5", "So 6.", "6"): (1.0, None, 0.0),
    }
    assert rows.reasons() == [("a flagged completion", 1)] and rows.rejected == [
        ("rows.jsonl:1", "a flagged completion")
    ]
    assert [chain.trace.answer for chain in rows] == [None, "5", "6"]
    assert {chain.problem.answer for chain in rows} == {"5"}


def test_a_labellers_own_step_is_context(tmp_path):
    """Bugs: a human completion taken for rated; the chain behind it lost."""
    row = raw([step(completion("2+3=6", -1), human={"text": "2+3=5"}), step(completion("so 5", 1), chosen=0)])
    assert {tuple(texts(c)): c.labels for c in Rows(write(tmp_path, [row]))} == {
        ("2+3=6",): (0.0,),
        ("2+3=5", "so 5"): (None, 1.0),
    }


def table(before, new, rating, answer=None, problem="What is 2+3?"):
    return {"instruction": problem, "responses": before, "next_response": new, "rating": rating, "answer": answer}


def test_the_table_is_the_same_tree(tmp_path):
    """Bugs: one chain a row, so that a shared step counts as often as it has successors; a step that two people rated
    differently counted twice."""
    rows = [table([], "a", 1), table([], "b", -1), table(["a"], "c", 0), table(["a"], "d", 1), table(["a"], "d", -1)]
    found = {tuple(texts(c)): c.labels for c in Rows(write(tmp_path, rows))}
    assert found == {("b",): (0.0,), ("a", "c"): (1.0, 1.0), ("a", "d"): (1.0, 0.5)}


DIFFER = "ratings of one step that differ: the mean was taken"


def test_people_who_differ_are_averaged_in_both_formats_alike(tmp_path):
    """Bugs: the first row wins in one format and the mean in the other; a step counts once a row; what was said of
    another problem, or of the same words behind another step, taken for the same; contradictions go unmentioned."""
    said = [(["a", "b"], [1, 1]), (["a", "b"], [0, -1]), (["a", "c"], [-1, 1]), (["z", "b"], [1, -1])]
    given, lines = [], []
    for steps, marks in said:
        lines.append(raw([step(completion(s, x), chosen=0) for s, x in zip(steps, marks, strict=True)]))
        given += [table(steps[:i], steps[i], marks[i]) for i in range(2)]
    other = [raw([step(completion("a", -1))], problem="else")], [table([], "a", -1, problem="else")]
    again = [lines[0]], given[:2]  # not behind the others, so not averaged with them
    for name, rows, places in (
        ("raw", lines + other[0] + again[0], [2, 3]),
        ("table", given + other[1] + again[1], [4, 5]),
    ):
        rows = Rows(write(tmp_path, rows, f"{name}.jsonl"))
        found = [(c.problem.prompt, tuple(texts(c)), c.labels) for c in rows]
        mean = 2 / 3  # right, neutral, wrong
        assert found == [
            ("What is 2+3?", ("a", "b"), (mean, 0.5)),
            ("What is 2+3?", ("a", "c"), (mean, 1.0)),
            ("What is 2+3?", ("z", "b"), (1.0, 0.0)),
            ("else", ("a",), (0.0,)),
            ("What is 2+3?", ("a", "b"), (1.0, 1.0)),
        ], name
        assert rows.reasons() == [(DIFFER, 2)] and rows.counts["labels"] == 9
        assert [place for place, _ in rows.rejected] == [f"{name}.jsonl:{n}" for n in places]


def test_a_bad_row_of_a_problem_costs_no_other_row(tmp_path):
    """Bug: rows of one problem are read together, and lost together."""
    bad = raw([step(completion("a", 1), chosen=0), 7])
    lines = [raw([step(completion("a", 1))]), bad, raw([step(completion("b", -1))])]
    rows = Rows(write(tmp_path, lines))
    assert [c.labels for c in rows] == [(1.0,), (0.0,)]
    assert rows.rejected == [("rows.jsonl:2", "not as the format has it (AttributeError)")]
    rows = Rows(write(tmp_path, [table([], "a", 1), {**table([], "b", 1), "responses": 7}, table([], "c", -1)]))
    assert [c.labels for c in rows] == [(1.0,), (0.0,)] and rows.reasons() == [("the steps are no list", 1)]
    lines[1] = raw([step(completion("a", 1), chosen=0), step(completion("x </reasoning>", 1))])
    rows = Rows(write(tmp_path, lines))
    assert [c.labels for c in rows] == [(0.0,)], "a step that cannot be read takes along what leads to it alone"
    assert rows.rejected == [("rows.jsonl:1 to rows.jsonl:3", "a tag of the reasoning channel in a text")]


@pytest.mark.parametrize("build", ["raw", "table"])
def test_nothing_below_a_wrong_step_is_learnt(tmp_path, encoder, build):
    """Bug: a labeller went on behind a wrong step, and what he said there is trained on as if it meant something."""
    texts_, marks = ["right", "wrong", "below", "end"], [1, -1, 1, -1]
    if build == "raw":
        rows = [raw([step(completion(s, x), chosen=0) for s, x in zip(texts_, marks, strict=True)])]
    else:
        rows = [table(texts_[:i], texts_[i], marks[i]) for i in range(4)]
    [chain] = Rows(write(tmp_path, rows))
    assert chain.labels == (1.0, 0.0, 1.0, 0.0), "else this shows nothing"
    assert judged(*chain, encoder).labels == [1.0, 0.0, UNKNOWN, UNKNOWN]
    for chains in ([chain], [chain, chain]):
        [row] = pack(chains, encoder, 400)
        assert [x for x in row.labels if x != UNKNOWN] == [1.0, 0.0]


def test_math_shepherd_by_hand(tmp_path):
    """Bugs: the tag left in a step; + and − swapped; "The answer is" left in the last step; a question that has steps
    of its own was cut off at them."""
    head = "What is 2+3? "
    row = {
        "input": head + "Step 1: 2+3=6 ки\nStep 2: So 6. The answer is: 6 ки",
        "label": head + "Step 1: 2+3=6 +\nStep 2: So 6. The answer is: 6 -",
        "task": "GSM8K",
    }
    [chain] = Rows(write(tmp_path, [row]))
    assert (texts(chain), chain.labels) == (["2+3=6", "So 6.", "6"], (1.0, None, 0.0))
    assert chain.problem.prompt == "What is 2+3?" and chain.trace.answer == "6"
    recipe = "Follow this. Step 1: take 2 eggs. Step 2: take 3. How many? "
    [chain] = Rows(write(tmp_path, [{k: v.replace(head, recipe) for k, v in row.items()}]))
    assert chain.problem.prompt == recipe.strip() and texts(chain) == ["2+3=6", "So 6.", "6"]
    bad = {**row, "label": row["label"].replace("6 -", "6 ?")}
    rows = Rows(write(tmp_path, [bad, row]))
    assert len(list(rows)) == 1 and rows.reasons() == [("labels and steps differ in number", 1)]


def test_processbench_by_hand(tmp_path):
    """Bugs: off by one at the first error; steps after it labelled."""
    row = {"problem": "p", "steps": ["a", "b", "c"], "label": 1, "final_answer_correct": False}
    rows = Rows(write(tmp_path, [row, {**row, "label": -1}, {**row, "label": 3}, {**row, "label": True}]))
    assert [chain.labels for chain in rows] == [(1.0, 0.0, None), (1.0, 1.0, 1.0)]
    assert rows.reasons() == [("a first error outside the steps", 2)]


def test_a_file_is_an_array_of_rows(tmp_path, monkeypatch):
    """Bugs: ProcessBench as it is published, gsm8k.json and the others, was refused; one broken row, or a file that
    was cut off, ended the pass."""
    row = {"problem": "p", "steps": ["a", "b \u2028 ]},{"], "label": 1, "final_answer_correct": False}
    for shape in ({"indent": 1}, {"separators": (",", ":")}, {"ensure_ascii": False}):
        for piece in (1, 7, 1 << 20):
            monkeypatch.setattr(stepdata, "PIECE", piece)
            (tmp_path / "gsm8k.json").write_text(json.dumps([row, 7, {**row, "label": 5}, row], **shape) + "\n")
            rows = Rows(tmp_path / "gsm8k.json")
            assert [chain.labels for chain in rows] == [(1.0, 0.0)] * 2 and rows.counts["rows"] == 4
            assert rows.rejected[0] == ("gsm8k.json:2", "not an object") and len(rows.rejected) == 2
    whole = json.dumps([row] * 3)
    write(tmp_path, [GOOD])
    for text, n in ((whole[:-9], 2), (whole[:-1], 3), (whole.replace("}, {", "}; {", 1), 1)):
        (tmp_path / "gsm8k.json").write_text(text)
        rows = Rows(tmp_path, "processbench")  # its folder
        assert sum(1 for _ in rows) == n and ("no JSON from here on", 1) in rows.reasons()
    (tmp_path / "gsm8k.json").write_text(json.dumps(row) + "\n" + json.dumps(row))
    with pytest.raises(WorkbenchError, match="no array of rows, and JSON lines end in .jsonl"):
        Rows(tmp_path / "gsm8k.json")
    assert [path.suffix for path in Rows(tmp_path).files] == [".jsonl"], "a folder's other .json is about the data"


def test_omegaprm_trees_and_prefixes(tmp_path):
    """Bugs: a prefix hung under the wrong parent; a value of the prefix given to its parent."""
    tree = {"children": [{"text": "a", "mc_value": 0.5, "children": [{"text": "b", "mc_value": 0.0, "children": []}]}]}
    flat = [
        {"solution_prefix": "Q", "mc_value": 0.9},
        {"solution_prefix": "Q a", "mc_value": 0.5},
        {"solution_prefix": "Q a b", "mc_value": 0.0},
    ]
    for given in (tree, flat):
        rows = Rows(write(tmp_path, [{"question": "Q", "final_answer": "1", "reasoning_steps": given}]))
        assert [(texts(c), c.labels) for c in rows] == [(["a", "b"], (0.5, 0.0))]


def test_a_node_that_nobody_rolled_out_from_costs_no_other(tmp_path):
    """Bugs: one value that is missing, or an answer that is a number, and the whole problem is lost."""

    def read(*given):
        rows = [{"question": f"{i}?", "final_answer": 3, "reasoning_steps": some} for i, some in enumerate(given)]
        found = list(Rows(write(tmp_path, rows)))
        assert all(chain.problem.answer == "3" for chain in found)
        return [(texts(chain), chain.labels) for chain in found]

    leaf = {"text": "b", "mc_value": 1.0}
    for value in ({}, {"mc_value": None}, {"mc_value": float("nan")}):
        assert read({"children": [{"text": "a", **value, "children": [leaf]}]}) == [(["a", "b"], (None, 1.0))]
        flat = [{"solution_prefix": "0?\na", **value}, {"solution_prefix": "0?\na\nb", "mc_value": 1.0}]
        assert read(flat) == [(["a", "b"], (None, 1.0))]


def test_a_prefix_goes_on_from_one_that_ends_where_a_step_does(tmp_path):
    """Bug: `x = 12` was the step `2` behind the step `x = 1`."""
    values = {"q?": 0.5, "q?\nx = 1": 0.0, "q?\nx = 12": 1.0, "q?\nx = 12 \nso 3": 0.8, "q?\nx = 1 + 2": 0.7}
    flat = [{"solution_prefix": prefix, "mc_value": value} for prefix, value in values.items()]
    rows = Rows(write(tmp_path, [{"question": "q?", "final_answer": "3", "reasoning_steps": flat}]))
    assert [(texts(c), c.labels) for c in rows] == [
        (["x = 1"], (0.0,)),
        (["x = 12", "so 3"], (1.0, 0.8)),
        (["x = 1 + 2"], (0.7,)),
    ]


BAD = {
    "a rating outside -1, 0, +1": raw([step(completion("a", 2))]),
    "empty step": raw([step(completion(" \n", 1))]),
    "a tag of the reasoning channel in a text": raw([step(completion("x </reasoning> y", 1), chosen=0)]),
    "a text of more than 20000 characters": raw([step(completion("x" * 1_000_000, 1), chosen=0)]),
    "no rating": raw([step(completion("a", None), chosen=0)]),
    "a quality-control question": {**raw([]), "is_quality_control_question": True},
    "a bad problem": raw([step(completion("a", 1))], **{"finish_reason": "bad_problem"}),
    "an answer mark without an answer": raw([step(completion("so # Answer\n", 1))]),
    "no field label": {k: v for k, v in raw([]).items() if k != "label"},
    "not as the format has it (AttributeError)": {**raw([]), "label": 7},
    "the problem is no text": {**raw([step(completion("a", 1))]), "question": {"problem": 3}},
    "the steps are no list": raw("a" * 100_000),
    "more than 1000 steps": raw([step(completion("a", 1), chosen=0)] * 100_000),
    "half of a surrogate pair in a text": raw([step(completion("a \ud800", 1), chosen=0)]),
    "a tree of more than 1000000 steps, prefix by prefix": raw([step(*[completion("a", 1)] * 50, chosen=0)] * 1000),
    "no JSON": '{"labeler": "a", "question": ',
    "not an object": "[1, 2]",
}
GOOD, MORE = (raw([step(completion("2+3=5", 1), chosen=0)], problem=p) for p in ("First, 2+3?", "Then, 2+3?"))


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_listed_with_its_reason_and_the_rest_goes_on(tmp_path, reason):
    """Bug: one bad row ends the run, or goes unmentioned, or becomes a label of 0."""
    rows = Rows(write(tmp_path, [GOOD, BAD[reason], MORE]))
    chains = list(rows)
    assert [c.labels for c in chains] == [(1.0,), (1.0,)]
    assert reason in dict(rows.reasons()) and rows.rejected[0][0] == "rows.jsonl:2", rows.rejected
    assert rows.counts["rows"] == 3


def test_nothing_hangs_and_nothing_is_fatal(tmp_path):
    """Fuzz: every field of a good row replaced by every nasty value, within a time limit."""
    nasty = [
        None,
        0,
        -1,
        1e308,
        10**400,
        "\ud800",
        float("nan"),
        "",
        "x",
        "９**9**9**9",
        "\\frac{" * 5000,
        "\x00",
        [],
        [[]],
        {},
        {"a": 1},
        True,
    ]

    def mutate(value, put):
        yield put
        if isinstance(value, dict):
            for key in value:
                yield from ({**value, key: new} for new in mutate(value[key], put))
        if isinstance(value, list):
            for i in range(len(value)):
                yield from ([*value[:i], new, *value[i + 1 :]] for new in mutate(value[i], put))

    good = [
        GOOD,
        table(["a"], "c", 0),
        {"problem": "p", "steps": ["a", "b"], "label": 1, "final_answer_correct": False},
        {"input": "Q Step 1: a ки", "label": "Q Step 1: a +", "task": "t"},
        {"question": "Q", "final_answer": "1", "reasoning_steps": [{"solution_prefix": "Q a", "mc_value": 0.5}]},
    ]
    began = time.monotonic()
    for row in good:
        lines = [new for put in nasty for new in mutate(row, put)]
        rows = Rows(write(tmp_path, map(json.dumps, [row, *lines, row])))
        chains = list(rows)
        assert len(chains) >= 2 and rows.counts["rows"] == len(lines) + 2
        assert all(x is None or 0 <= x <= 1 for chain in chains for x in chain.labels)
    assert time.monotonic() - began < 60


def test_a_deep_tree_is_read_in_time(tmp_path):
    """Bug: a row of 100 kB takes seven seconds, since every leaf looks up all of its prefixes."""
    deep = raw([step(*(completion(f"{i} {j}", 1) for j in range(6)), chosen=0) for i in range(300)])
    began = time.monotonic()
    chains = list(Rows(write(tmp_path, [deep])))
    assert time.monotonic() - began < 3
    assert len(chains) == 1501 and [len(c.labels) for c in chains[-6:]] == [300] * 6
    wide = {"text": "a", "mc_value": 1.0, "children": [{"text": "b", "mc_value": 1.0, "children": []}] * 1001}
    rows = Rows(write(tmp_path, [tree_row(wide), tree_row({**wide, "children": wide["children"][:2]})]))
    assert len(list(rows)) == 1 and dict(rows.reasons()) == {"more than 1000 steps": 1}


def tree_row(node):
    return {"question": "Q", "final_answer": "1", "reasoning_steps": {"children": [node]}}


def test_a_damaged_archive_is_named(tmp_path):
    """Bug: some damage is an error of zlib's own, which ends in a traceback."""
    whole = gzip.compress(b"".join((json.dumps({**GOOD, "labeler": i}) + "\n").encode() for i in range(200)))
    path = tmp_path / "rows.jsonl.gz"
    for at in range(20, len(whole), len(whole) // 25):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        with pytest.raises(WorkbenchError, match="cannot be read to its end|of a known format|is empty|holds no chain"):
            list(Rows(path))


def test_a_source_that_is_none(tmp_path):
    """Bugs: an empty file is an empty data set, or of an unknown format; what a row of no format is stays unsaid."""
    empty, known = gzip.compress(b""), "is of a known format .math_shepherd, .*; the first"
    (tmp_path / "packed.jsonl.gz").write_bytes(empty)
    for source, text in [
        (tmp_path / "no.jsonl", "there is no file or folder .*no.jsonl"),
        (write(tmp_path, ["", " "], "empty.jsonl"), "empty.jsonl is empty"),
        (tmp_path / "packed.jsonl.gz", "packed.jsonl.gz is empty"),
        (write(tmp_path, [{"a": 1, "b": 2}, "x"], "else.jsonl"), f"{known} has the fields a, b$"),
        (write(tmp_path, ["<html>" * 40, GOOD["label"]], "page.jsonl"), f"{known} is no JSON: '{'<html>' * 13}<h'$"),
        (write(tmp_path, ["[1, 2]", {}], "list.jsonl"), f"{known} is not an object: '.1, 2.'$"),
        (write(tmp_path, [{}] * 100 + [GOOD], "late.jsonl"), f"no row of the first 100 {known} has the fields none$"),
        (write(tmp_path, [], "rows.csv"), "step labels come as"),
        (tmp_path, "is of a known format"),
    ]:
        with pytest.raises(WorkbenchError, match=text):
            list(Rows(source))
    with pytest.raises(WorkbenchError, match="holds no chain that can be used .1 x no rating"):
        list(Rows(write(tmp_path, [BAD["no rating"]])))
    with pytest.raises(WorkbenchError, match="unknown step-label format 'x': Known: math_shepherd"):
        Rows(write(tmp_path, [GOOD]), format="x")


def test_a_bad_beginning_costs_no_good_row(tmp_path):
    """Bug: the format is that of the first row, whatever it is, and the good rows behind it are not read."""
    before = ["half a", "[1]", {"a": 1}, *[""] * 200, *['{"labeler": '] * 96]  # an empty line is no row
    rows = Rows(write(tmp_path, [*before, GOOD, {"a": 1}, MORE]))
    assert rows.format.__name__.endswith("prm800k") and [c.labels for c in rows] == [(1.0,), (1.0,)]
    assert rows.counts["rows"] == 102 and rows.reasons()[0] == ("no JSON", 97)
    assert dict(rows.reasons()[1:]) == {"no field labeler": 2, "not an object": 1}
    assert [place for place, _ in rows.rejected[:3]] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]


def test_a_mistyped_path_is_no_hub_id(tmp_path, monkeypatch):
    """Bug: `data/rows.jsonl` is taken for owner/name, and the hub is asked for it for a minute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stepdata, "_hub", lambda name, *_: iter([{"asked": name}]))
    monkeypatch.setattr(stepdata, "_commit", str)
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", [GOOD], "rows.jsonl")
    for source, text in [
        ("data/row.jsonl", "no file or folder data/row.jsonl .*: did you mean data/rows.jsonl.$"),
        ("data/other", f"no file or folder data/other .*: the nearest folder is {tmp_path}/data$"),
        ("dat/rows.jsonl", "no file or folder dat/rows.jsonl .*: did you mean data.$"),
        ("a/b.jsonl", f"no file or folder a/b.jsonl .*: the nearest folder is {tmp_path}$"),
        ("data/deep/er/rows", f"no file or folder data/deep/er/rows .*: the nearest folder is {tmp_path}/data$"),
        ("owner/name/rows", "no file or folder owner/name/rows"),
        *((f"owner/name{end}", f"no file or folder owner/name{end}") for end in (".json", ".PARQUET", ".jsonl.zst")),
    ]:
        for read in (Rows, stepdata.responses):
            with pytest.raises(WorkbenchError, match=text):
                read(source)
    for hub in ("owner/name", "owner/name-2.5"):
        with pytest.raises(WorkbenchError, match="has the fields asked"):
            Rows(hub)


def test_the_hash_is_of_the_content(tmp_path):
    one = Rows(write(tmp_path, [GOOD])).hash
    assert one == Rows(write(tmp_path, [GOOD])).hash != Rows(write(tmp_path, [GOOD, GOOD])).hash


def test_gzip_and_folders(tmp_path):
    packed = tmp_path / "more" / "rows.jsonl.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress((json.dumps(GOOD) + "\n").encode()))
    write(tmp_path, [MORE])
    assert len(list(Rows(tmp_path))) == 2


def test_odd_entries_of_a_folder_are_passed_over(tmp_path):
    """Bugs: a folder that is called like a file, or a link to nothing, ended the pass with a traceback; a notebook's
    hidden copies were read beside what they are copies of."""
    write(tmp_path, [GOOD])
    (tmp_path / "more.jsonl").mkdir()
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    write(tmp_path / ".ipynb_checkpoints", [GOOD])
    assert len(list(Rows(tmp_path))) == 1


def test_a_cell_that_cannot_be_read_costs_its_row_alone(tmp_path):
    """Bugs: text that is no UTF-8, or a time out of range in a column that nobody reads, ended the pass raw."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = [b"1+1", b"a\xff\xfe", b"2+2"]
    ends = b"".join(sum(map(len, texts[:i])).to_bytes(4, "little") for i in range(4))
    bad = pa.Array.from_buffers(pa.string(), 3, [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))])
    rows = {"steps": [["x"]] * 3, "label": [-1] * 3, "final_answer_correct": [True] * 3}
    rows["when"] = pa.array([0, 0, 9 * 10**18], pa.timestamp("us"))
    parquet.write_table(pa.table({"problem": bad, **rows}), tmp_path / "rows.parquet")
    found = Rows(tmp_path / "rows.parquet")
    assert [chain.problem.prompt for chain in found] == ["1+1", "2+2"]
    assert found.rejected == [("rows.parquet:2", "a cell that cannot be read")]


def test_a_hub_set_is_asked_through_datasets(tmp_path, monkeypatch):
    """Bugs: the whole set is downloaded before the first row; a failure is a bare traceback; the hash of a hub set did
    not depend on its content, so a run on newer rows was taken for finished."""
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    asked, now = {}, SimpleNamespace(sha="c0ffee")

    def load_dataset(name, split, streaming, revision):
        asked.update(name=name, split=split, streaming=streaming, revision=revision)
        return iter([GOOD])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "dataset_info", lambda name: now)
    rows = Rows("owner/name", split="test")
    assert len(list(rows)) == 1
    assert asked == {"name": "owner/name", "split": "test", "streaming": True, "revision": "c0ffee"}
    assert rows.hash == Rows("owner/name", split="test").hash != Rows("owner/name", split="train").hash
    now.sha = "beef"
    assert Rows("owner/name", split="test").hash != rows.hash, "other content had the same hash, for nothing was asked"
    monkeypatch.setattr(hub, "dataset_info", lambda name: 1 / 0)
    with pytest.raises(WorkbenchError, match="could not be had from the hub .ZeroDivisionError"):
        Rows("owner/name")


STREAM = """
import resource, sys
from workbench.stepdata import Rows
rows = Rows(sys.argv[1])
labels = sum(x is not None for chain in rows for x in chain.labels)
print(labels, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_long_file_streams_in_bounded_memory(tmp_path):
    """Bug: rows, or what is known of them, pile up. Twenty times the rows: the same memory."""
    peaks = {}
    for n in (2_000, 40_000):
        path = tmp_path / f"{n}.jsonl"
        with path.open("w") as file:
            for i in range(n):
                file.write(
                    json.dumps(table(["a"] * 3, f"step {i}", i % 3 - 1 if i % 50 else 9, problem=f"p{i // 5}")) + "\n"
                )
        out = subprocess.run([sys.executable, "-c", STREAM, str(path)], capture_output=True, text=True, check=True)
        labels, peaks[n] = map(int, out.stdout.split())
        assert labels == n - len(range(0, n, 50))
    assert peaks[40_000] < peaks[2_000] * 1.1, peaks


@shared
def test_real_prm800k():
    """The figures of the files as they are."""
    rows = Rows(SHARED / "prm800k" / "phase1_test.stepwise-critic.parquet")
    chains = list(rows)
    assert rows.counts["rows"] == 5449 and len({c.problem.id for c in chains}) == 98  # three of 101 have no rating
    marks = {(c.problem.id, c.trace.steps[: i + 1]): x for c in chains for i, x in enumerate(c.labels) if x is not None}
    assert 0.1 < sum(x == 0 for x in marks.values()) / len(marks) < 0.5
    raw_rows = Rows(SHARED / "prm800k" / "raw_schema_samples.jsonl")
    assert len(list(raw_rows)) > 10 and raw_rows.format.__name__.endswith("prm800k")


@shared
@pytest.mark.parametrize(
    "name", ["samples_math-aps-tree.jsonl", "samples_math-aps.jsonl", "samples_math-shepherd.jsonl"]
)
def test_real_samples(name):
    rows = Rows(SHARED / "prm-formats" / name)
    assert len(list(rows)) >= 3 and not rows.rejected
