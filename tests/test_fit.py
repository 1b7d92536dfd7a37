"""The training loop and teaching: each test names the mistake it pins."""

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from workbench import fit, sft, tasks
from workbench.fit import Fit, Muon, Ordered, orthogonalise
from workbench.format import Encoder
from workbench.models import character_tokenizer, flops, new_model
from workbench.policies import Sampling, Want
from workbench.policies.local import LocalPolicy
from workbench.types import Node, Step, Trace, WorkbenchError
from workbench.verifiers.prm import from_policy


@pytest.fixture(scope="module")
def pairs():
    task = tasks.get("arithmetic")
    return [(p, task.demonstration(p)) for p in task.load("train", 24, seed=2)]


@pytest.fixture(scope="module")
def rows(pairs, encoder):
    return sft.rows(pairs, encoder)


def teach(model, rows, config, folder, **more):
    more = {"collate": lambda batch: sft.collate(batch, model.config.pad_token_id), "loss": sft.loss, **more}
    history = []
    cost = fit.fit(model, rows, config=config, folder=folder, log=history.append, progress=False, **more)
    return cost, history


# --- teaching -----------------------------------------------------------------------------------------------------


def test_loss_on_the_response_only(micro, pairs, rows, encoder):
    """Bugs: the prompt is learnt too; a padding token is; the shift is done twice."""
    few = rows[:3]
    assert len({len(row.ids) for row in few}) > 1, "the batch must need padding"
    total, count = 0.0, 0
    for (p, trace), row in zip(pairs, few, strict=False):
        start = len(encoder.prompt(p.prompt))
        response = [i for step in trace.steps for i in encoder.step(step)]
        assert row.ids[start:] == row.labels[start:] == response and set(row.labels[:start]) == {-100}
        with torch.no_grad():
            logits = micro(torch.tensor([row.ids])).logits[0].log_softmax(-1)
        total -= sum(logits[start - 1 + k, token].item() for k, token in enumerate(response))
        count += len(response)
    with torch.no_grad():
        assert sft.loss(micro, sft.collate(few, 257)).item() == pytest.approx(total / count, rel=1e-4)


def test_a_direct_row_has_no_chain(tokenizer, pairs):
    """Bug: the direct twin is shown the chain that it should do without."""
    encoder = Encoder(tokenizer, reasoning=False)
    [row] = sft.rows([(pairs[5][0], sft.direct(pairs[5][1]))], encoder)
    answer = pairs[5][0].answer
    assert tokenizer.decode(row.ids) == f"<user>{pairs[5][0].prompt}</user><assistant>{answer}</assistant>"
    assert tokenizer.decode([i for i in row.labels if i >= 0]) == f"{answer}</assistant>"


def test_accuracy_is_greedy_decoding(micro, tokenizer, encoder):
    """Bug: teacher-forced accuracy that counts tokens, or an off-by-one that no decoding would forgive."""
    task = tasks.get("arithmetic")
    problems = task.load("train", 60, seed=3, level=1)
    chains = LocalPolicy(micro, tokenizer).extend([Want(p, Node(), 1, to_end=True) for p in problems], 0, Sampling(0.0))
    own = [(p, chain[-1].trace) for p, [chain] in zip(problems, chains, strict=True)]
    own = [(p, trace) for p, trace in own if trace.stop == "answer"]
    assert len(own) > 5
    rows = sft.rows(own, encoder)
    assert sft.accuracy(micro, rows, 257, batch=7) == 1.0
    # Change one digit in a third of them: exactly these are wrong, whatever they are batched with.
    changed = [
        (p, Trace((*t.steps[:-1], Step(t.steps[-1].text + "7", True))) if i % 3 == 0 else t)
        for i, (p, t) in enumerate(own)
    ]
    want = sum(i % 3 > 0 for i in range(len(own))) / len(own)
    assert sft.accuracy(micro, sft.rows(changed, encoder), 257, batch=7) == pytest.approx(want)


def test_a_tiny_model_memorises_four_rows(tokenizer, rows, tmp_path):
    """Bug: gradients that do not reach the weights, or a schedule that never lets them move. Both optimisers."""
    for muon_lr in (0.0, 0.02):
        model, four = new_model("micro", tokenizer), rows[1:5]
        config = Fit(steps=240, batch=4, lr=1e-2, muon_lr=muon_lr, warmup=5, check_every=20)
        _, history = teach(model, four, config, tmp_path)
        assert history[-1]["loss"] < 0.1 and sft.accuracy(model, four, 257) == 1.0


# --- the loop -----------------------------------------------------------------------------------------------------


def test_the_target_stops_and_only_it(tokenizer, rows, tmp_path):
    """Bug: an early stop on another number, or none: later stages need something left to gain."""
    found = iter([0.1, 0.5, 0.9])
    config = Fit(steps=40, batch=8, warmup=2, check_every=3, target=0.5)
    cost, history = teach(
        new_model("micro", tokenizer), rows, config, tmp_path, check=lambda: {"accuracy": next(found)}
    )
    assert [(row["step"], row["accuracy"]) for row in history] == [(3, 0.1), (6, 0.5)]
    cost, history = teach(new_model("micro", tokenizer), rows, Fit(7, 8, warmup=2, check_every=3), tmp_path)
    assert [row["step"] for row in history] == [3, 6, 7], "the last step has a row whatever check_every is"


def test_what_training_costs(tokenizer, rows, tmp_path):
    """Bug: batches that were collated ahead and never trained on are billed."""
    sizes = []

    def loss(model, batch):
        sizes.append(tuple(batch["input_ids"].shape))
        return sft.loss(model, batch)

    model = new_model("micro", tokenizer)
    cost, _ = teach(
        model, rows, Fit(9, 8, warmup=1, check_every=2, target=0.0), tmp_path, loss=loss, check=lambda: {"accuracy": 1}
    )
    assert len(sizes) == 2 and cost.trained == sum(r * c for r, c in sizes)
    passes = sum(flops(model.config, r * c, (c + 1) / 2) for r, c in sizes)
    assert cost.training_flops == pytest.approx(3 * passes) and cost.training_seconds > 0
    assert cost.policy_flops == cost.sampled == 0


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_an_error(tokenizer, rows, tmp_path, wrong):
    """Bug: the loop logs a loss of 0 in place of NaN and goes on to ruin the weights."""
    config = Fit(6, 8, warmup=1, check_every=2)
    with pytest.raises(WorkbenchError, match="the gradient is (nan|inf) at step 1"):
        teach(new_model("micro", tokenizer), rows, config, tmp_path, loss=lambda m, b: sft.loss(m, b) * wrong)
    with pytest.raises(WorkbenchError, match="the loss is (nan|inf) at step 2"):  # its gradient is a number
        teach(new_model("micro", tokenizer), rows, config, tmp_path, loss=lambda m, b: sft.loss(m, b) + wrong)


def test_a_gradient_that_is_no_number_ruins_nothing(tokenizer, rows, tmp_path):
    """Bug: the loss that is watched is finite, one step's gradient is not, and good weights and checkpoint are lost."""
    calls = []

    def bursts(m, b):
        calls.append(1)
        loss = sft.loss(m, b)
        return loss + (0 * next(m.parameters()).sum()).sqrt() if len(calls) == 4 else loss  # d sqrt(0) is infinite

    model, config = new_model("micro", tokenizer), Fit(6, 8, warmup=1, check_every=2, save=True)
    with pytest.raises(WorkbenchError, match="the gradient is nan at step 4.*saved before stays"):
        teach(model, rows, config, tmp_path, loss=bursts)
    assert all(torch.isfinite(p).all() for p in model.parameters()) and fit.reached(tmp_path) == 2
    assert all(torch.isfinite(v).all() for v in load_file(tmp_path / fit.STATE).values() if v.is_floating_point())


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"steps": 0}, "steps=0: at least 1"),  # Bug: no steps read as three epochs
        ({"batch": 0}, "batch=0: at least 1"),
        ({"check_every": -1}, "check_every=-1: at least 1"),
        ({"lr": 0.0}, "lr=0.0: above 0"),
        ({"lr": float("nan")}, "lr=nan: above 0"),
        ({"lr": float("inf")}, "lr=inf: above 0"),
        ({"muon_lr": -1e-3}, "muon_lr=-0.001: at least 0"),
        ({"warmup": -1}, "warmup=-1: at least 0"),
    ],
)
def test_settings_outside_their_range_are_refused_where_they_are_made(setting, said):
    """Bug: a negative rate is taken, and unlearns; no batch is refused deep inside a loop."""
    with pytest.raises(WorkbenchError, match=said):
        Fit(**setting)
    assert Fit(steps=1, batch=1, warmup=0, weight_decay=0.0, lr=1e-9).patience == 0


def test_what_cannot_be_trained_is_refused(tokenizer, rows, tmp_path):
    """Bugs: a target that nothing is compared with."""
    model = new_model("micro", tokenizer)
    for config, data, message in (
        (Fit(4), [], "no training rows"),
        (Fit(4, target=0.5), rows, "needs a check"),
    ):
        with pytest.raises(WorkbenchError, match=message):
            teach(model, data, config, tmp_path)


def test_the_same_seed_trains_the_same_weights(tokenizer, rows, tmp_path):
    """Bug: a stage that cannot be repeated."""
    models = [new_model("micro", tokenizer) for _ in range(2)]
    for model in models:
        torch.rand(3)  # whatever happened before
        teach(model, rows, Fit(4, 8, warmup=1, muon_lr=0.01, check_every=4), tmp_path)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows, batch", [(1000, 8), (130, 64), (7, 16), (128, 4)])
def test_ordered_batches_hold_every_row_once(rows, batch):
    """Bugs: rows lost at a window's end; another order in another process; batches of unlike length."""
    lengths = [(i * 7919) % 97 + 3 for i in range(rows)]
    order = list(Ordered(lengths, batch, seed=3))
    assert sorted(order) == list(range(rows)) and len(Ordered(lengths, batch, 3)) == rows
    assert order == list(Ordered(lengths, batch, seed=3))
    window = 16 * batch
    assert all(index // window == place // window for place, index in enumerate(order)), "easy rows first stay first"

    def padding(order):
        parts = [[lengths[i] for i in order[s : s + batch]] for s in range(0, rows, batch)]
        return sum(len(part) * max(part) - sum(part) for part in parts)

    if rows > 4 * batch:
        assert order != list(Ordered(lengths, batch, seed=4))
        assert padding(order) < 0.5 * padding(range(rows))


# --- several batches a step ---------------------------------------------------------------------------------------


def counting(batch):
    """A collate that says how many tokens the loss is the mean of."""
    made = sft.collate(batch, 257)
    return made | {"items": (made["labels"][:, 1:] != sft.IGNORE).sum()}


def plain(model, batch):
    return sft.loss(model, {k: v for k, v in batch.items() if k != "items"})


def same(model, other, **tolerance):
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    if tolerance:
        return all(torch.allclose(a, b, **tolerance) for a, b in pairs)
    return all(torch.equal(a, b) for a, b in pairs)


def test_several_batches_are_one(tokenizer, rows, tmp_path):
    """Bugs: the mean of means in place of the mean over all tokens; a gradient scaled by the number of parts."""
    eight = sorted(rows, key=lambda row: len(row.ids))[::3]
    assert len(eight) == 8
    runs = []
    for batch, accumulate, items in ((8, 1, True), (2, 4, True), (3, 3, True), (2, 4, False), (8, 1, False)):
        model = new_model("micro", tokenizer)
        config = Fit(3, batch, lr=1e-3, warmup=0, check_every=1, accumulate=accumulate)
        more = {} if not items else {"collate": counting}
        _, history = teach(model, eight, config, tmp_path, loss=plain, **more)
        runs.append((model, [row["loss"] for row in history]))
    (whole, losses), *parts, means, bare = runs
    for model, found in parts:
        assert same(model, whole, atol=1e-5) and found == pytest.approx(losses, abs=1e-5)
    assert not same(means[0], whole, atol=1e-4) and abs(means[1][0] - losses[0]) > 1e-4, "else this shows nothing"
    assert same(bare[0], whole) and bare[1] == losses, "one batch is its own mean, to the last bit"


# --- a run that was killed ----------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


# the loss falls, so the weights that `-held out` likes best are the first
LONG = Fit(10, 4, 5e-3, 0.02, warmup=2, check_every=3, accumulate=2, save=True, patience=9, watch="-held out")


def wobbly(tokenizer):
    """A model with dropout, so that the random state matters."""
    model = new_model("micro", tokenizer)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model


def long(tokenizer, rows, folder, history, die_at=None, die_in_row=None, config=LONG):
    """One attempt: teach, or die in the given call of the loss, or as the row of a step is written."""
    model, calls = wobbly(tokenizer), [0]

    def loss(model, batch):
        calls[0] += 1
        if calls[0] == die_at:
            raise Killed
        return plain(model, batch)

    def log(row):
        history.append(row)
        if row["step"] == die_in_row:
            raise Killed

    def check():
        torch.rand(3)  # a check that draws must not change what is learnt
        with torch.no_grad():
            return {"held out": sft.loss(model.eval(), sft.collate(rows[20:], 257)).item()}

    cost = fit.fit(model, rows[:19], counting, loss, config, folder, check=check, log=log, progress=False)
    return model, cost, calls[0]


@pytest.fixture(scope="module")
def straight(tokenizer, rows, tmp_path_factory):
    folder, history = tmp_path_factory.mktemp("fit"), []
    return *long(tokenizer, rows, folder, history), history, load_file(folder / fit.STATE)


def resumed(straight, tokenizer, rows, folder, history, reached):
    """The second attempt ends as the undisturbed run did: weights, best weights, moments, history and cost."""
    assert fit.reached(folder) == reached
    history = [row for row in history if row["step"] <= reached]
    model, cost, calls = long(tokenizer, rows, folder, history)
    assert calls == straight[2] - LONG.accumulate * reached + (reached > 2) + (reached > 5) + (reached > 8), (
        "begun anew"
    )
    assert history == straight[3]
    assert same(model, straight[0])
    state = load_file(folder / fit.STATE)
    assert state.keys() == straight[4].keys() and all(torch.equal(state[k], v) for k, v in straight[4].items())
    assert (cost.trained, cost.training_flops) == (straight[1].trained, straight[1].training_flops)


@pytest.mark.parametrize("die_at, reached", [(1, 0), (5, 0), (6, 3), (11, 6), (17, 9)])
def test_a_killed_run_ends_as_if_nothing_had_been(straight, tokenizer, rows, tmp_path, die_at, reached):
    """Bugs: a checkpoint without optimiser, schedule, random state, place in the data, best weights, or tokens seen."""
    history = []
    with pytest.raises(Killed):
        long(tokenizer, rows, tmp_path, history, die_at=die_at)
    resumed(straight, tokenizer, rows, tmp_path, history, reached)
    assert not {path.suffix for path in tmp_path.rglob("*") if path.is_file()} - {".safetensors", ".tmp"}


def test_killed_twice_and_behind_a_row(straight, tokenizer, rows, tmp_path):
    """Bug: a row twice, because the history ran ahead of the checkpoint that was lost."""
    history = []
    for die in ({"die_in_row": 3}, {"die_at": 14}, {"die_in_row": 9}):
        with pytest.raises(Killed):
            long(tokenizer, rows, tmp_path, history, **die)
        history = [row for row in history if row["step"] <= fit.reached(tmp_path)]
    resumed(straight, tokenizer, rows, tmp_path, history, 6)


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_killed_while_a_checkpoint_is_written(straight, tokenizer, rows, tmp_path, monkeypatch, writes):
    """Bug: half a checkpoint in the place of the old one. The first write is of the best weights."""
    history, done = [], [0]

    def half(tensors, path, metadata):
        save_file(tensors, path, metadata=metadata)
        done[0] += 1
        if done[0] == writes:
            with open(path, "r+b") as file:
                file.truncate(1000)
            raise Killed

    monkeypatch.setattr(fit, "save_file", half)
    with pytest.raises(Killed):
        long(tokenizer, rows, tmp_path, history)
    monkeypatch.undo()
    resumed(straight, tokenizer, rows, tmp_path, history, 3 if writes == 3 else 0)


def test_a_finished_run_is_only_read(straight, tokenizer, rows, tmp_path):
    """Bug: a run that its target or its patience ended goes on when it is asked for again."""
    for config, steps in ((LONG, 10), (replace(LONG, patience=1), 6), (replace(LONG, patience=0, target=0.5), 3)):
        folder, history = tmp_path / str(steps), []
        made = []
        for _ in range(2):
            model = wobbly(tokenizer)
            check = lambda: {"held out": -len(history), "accuracy": 1.0}  # noqa: E731, B023
            cost = fit.fit(model, rows[:19], counting, plain, config, folder, check, history.append, progress=False)
            made.append((model, cost.trained, len(history)))
        assert history[-1]["step"] == steps and made[0][1:] == made[1][1:] and same(made[0][0], made[1][0])


@pytest.mark.parametrize("damage", [b"", b"no checkpoint", "cut", "other"])
def test_a_damaged_checkpoint_is_named(tokenizer, rows, tmp_path, damage):
    """Bug: a traceback out of a library, or a run that quietly begins anew over weights somebody waited for."""
    with pytest.raises(Killed):
        long(tokenizer, rows, tmp_path, [], die_at=9)
    path = tmp_path / fit.STATE
    if damage == "other":
        about = fit._about(tmp_path)
        fit.save_state(path, new_model("nano", tokenizer), **about)
    else:
        path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else damage)
    with pytest.raises(WorkbenchError, match=f"{fit.STATE} is no checkpoint of this run .*: delete"):
        long(tokenizer, rows, tmp_path, [])


def test_a_checkpoint_of_another_run_is_refused(tokenizer, rows, tmp_path):
    """Bug: half a run with one learning rate, half with another."""
    with pytest.raises(Killed):
        long(tokenizer, rows, tmp_path, [], die_at=9)
    with pytest.raises(WorkbenchError, match=r"another run \(lr was 0.005, is 0.1\): delete"):
        long(tokenizer, rows, tmp_path, [], config=replace(LONG, lr=0.1))


def test_other_data_or_a_setting_of_the_callers_is_another_run(tokenizer, rows, tmp_path):
    """Bugs: half a run on other rows, as many as these; a checkpoint that an older release left is thrown away, or is
    gone on from with a rate that it had not."""
    config = Fit(4, 4, warmup=1, check_every=2, save=True)
    teach(new_model("micro", tokenizer), rows, config, tmp_path, of={"rows' hash": "ab", "head": "linear"})
    for of, said in (({"rows' hash": "cd"}, "rows' hash was ab, is cd"), ({"head": "verdict"}, "head was linear, is")):
        with pytest.raises(WorkbenchError, match=f"of another run .{said}.*: delete"):
            teach(new_model("micro", tokenizer), rows, config, tmp_path, of=of)
    _, history = teach(new_model("micro", tokenizer), rows, config, tmp_path, of={"new": 1, "head": "linear"})
    assert not history, "a finished run is only read, though its checkpoint says nothing of `new`"
    with safe_open(tmp_path / fit.STATE, "pt") as file:
        older = file.metadata()
    about = json.loads(older["about"])
    del about["run"]["head_lr"]
    save_file(load_file(tmp_path / fit.STATE), tmp_path / fit.STATE, older | {"about": json.dumps(about)})
    with pytest.raises(WorkbenchError, match="head_lr was 0.0, is 0.0001"):
        teach(new_model("micro", tokenizer), rows, replace(config, head_lr=1e-4), tmp_path)


def optimisers():
    from bitsandbytes import optim

    return {
        "AdamW": torch.optim.AdamW,
        "8-bit": optim.AdamW8bit,
        "paged": optim.PagedAdamW,
        "Both": lambda params: fit.Both(Muon(params[:1]), torch.optim.AdamW(params[1:])),
    }


@pytest.mark.parametrize("name", ["AdamW", "8-bit", "paged", "Both"])
@pytest.mark.filterwarnings("ignore:Paged optimizers")
def test_every_optimiser_comes_back(tmp_path, name):
    """Bugs: a moment left out; a count that became a tensor; the table that 8-bit moments share refused by the file."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(80, 90), torch.nn.Linear(90, 80))
    model[1].bias.requires_grad_(False)
    kind, grads = optimisers()[name], [[torch.randn_like(p) for p in model.parameters()] for _ in range(4)]

    def go(model, optimizer, steps):
        for step in steps:
            for p, g in zip(model.parameters(), step, strict=True):
                p.grad = g.clone() if p.requires_grad else None
            optimizer.step()

    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = kind(learns)
    go(model, optimizer, grads[:2])
    fit.save_state(tmp_path / "x.safetensors", model, optimizer, step=2)
    assert "model.1.bias" not in load_file(tmp_path / "x.safetensors"), "only what learns is kept"
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.parameters():
            if p.requires_grad:
                p.zero_()
    again = kind([p for p in twin.parameters() if p.requires_grad])
    assert fit.load_state(tmp_path / "x.safetensors", twin, again) == {"step": 2}
    for part, other in zip(fit._parts(optimizer), fit._parts(again), strict=True):
        kinds = [
            [{k: type(v) for k, v in o.state[p].items()} for p in o.param_groups[0]["params"]] for o in (part, other)
        ]
        assert kinds[0] == kinds[1] and all(kinds[0])
    go(model, optimizer, grads[2:])
    go(twin, again, grads[2:])
    assert same(model, twin)


# --- patience, memory, long data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["", "-"])
def test_patience_ends_with_the_best_weights(tokenizer, rows, tmp_path, sign):
    """Bugs: the last weights in place of the best; the wrong direction; an unknown number taken for a good one."""
    values = iter([3.0, None, 2.0, math.nan, 2.5, 1.0])
    model, seen = new_model("micro", tokenizer), {}

    def check():
        seen[len(seen) + 1] = copy.deepcopy(model)
        value = next(values)
        return {"x": -value if sign and value is not None else value}

    config = Fit(40, 8, warmup=1, check_every=1, patience=2, watch=f"{sign}x")
    _, history = teach(model, rows, config, tmp_path, check=check)
    assert [(row["step"], row["best"]) for row in history] == [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)]
    assert same(model, seen[3]) and not same(model, seen[5])
    with pytest.raises(WorkbenchError, match="no 'y' to watch, only step, loss, x"):
        teach(model, rows, replace(config, watch="y"), tmp_path, check=lambda: {"x": 1})
    with pytest.raises(WorkbenchError, match="patience needs a check"):
        teach(model, rows, config, tmp_path)


def test_every_kind_of_weight_has_its_rate(micro):
    """Bugs: a rate that is read and not used; a weight that no group has, or two."""
    judge = from_policy(micro)
    both = fit.optimiser(judge, Fit(lr=1e-3, muon_lr=2e-3, gain_lr=3e-3, head_lr=4e-3))
    rate = {id(p): group["lr"] for group in both.param_groups for p in group["params"]}
    kinds = {"proj": 2e-3, "norm": 3e-3, "score": 4e-3, "embed": 1e-3}
    for name, p in judge.named_parameters():
        assert rate.pop(id(p)) == next(lr for kind, lr in kinds.items() if kind in name), name
    assert not rate
    assert {group["lr"] for group in fit.optimiser(judge, Fit(lr=1e-3)).param_groups} == {1e-3}


def test_computing_again_changes_memory_only(tokenizer, rows, tmp_path):
    """Bugs: nothing is computed again, since the weights underneath are frozen; or something else comes out."""
    from peft import LoraConfig, get_peft_model

    models, passes = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        wanted = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.2)
        model, count = get_peft_model(new_model("micro", tokenizer), wanted), [0]
        for layer in model.base_model.model.model.layers:
            layer.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
            layer.mlp.register_forward_pre_hook(lambda *_, count=count: count.__setitem__(0, count[0] + 1))
        config = Fit(3, 8, 1e-2, warmup=0, check_every=3, checkpointing=checkpointing)
        teach(model, rows, config, tmp_path)
        models.append(model)
        passes.append(count[0])
    assert passes[1] > passes[0] and same(*models)
    assert any("lora_B" in n and p.abs().max() > 0 for n, p in models[1].named_parameters()), "nothing was learnt"


@pytest.mark.skipif(torch.cuda.is_available(), reason="moments are paged on a GPU")
def test_a_paged_optimiser_says_where_there_is_none(tokenizer, rows, tmp_path):
    """Bug: an option that is silently ignored."""
    _, history = teach(new_model("micro", tokenizer), rows, Fit(1, 8, paged=True), tmp_path)
    assert [list(row) for row in history] == [["note"], ["step", "loss"]] and "no NVIDIA GPU" in history[0]["note"]


def test_data_on_disk_is_read_row_by_row(tokenizer, rows, tmp_path):
    """Bug: a data set that does not fit into memory is read as a whole to learn how long its rows are."""
    many = rows * 40

    class Data:
        lengths = [len(row.ids) for row in many]
        read = 0

        def __len__(self):
            return len(many)

        def __getitem__(self, i):
            Data.read += 1
            return many[i]

    models = [new_model("micro", tokenizer) for _ in range(2)]
    config = Fit(3, 4, warmup=1)
    teach(models[0], Data(), config, tmp_path)
    assert Data.read <= (config.steps + 2) * config.batch
    teach(models[1], many, config, tmp_path)
    assert same(*models)


# --- Muon ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12), (3, 12, 40)])
def test_orthogonalise(shape):
    """Bugs: a transposed case that is not turned back; an iteration that runs away."""
    torch.manual_seed(0)
    x = torch.randn(shape)
    values = torch.linalg.svdvals(orthogonalise(x))
    assert 0.6 < values.min() and values.max() < 1.3
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    nearest = u @ vh
    cosine = (orthogonalise(x) * nearest).sum() / orthogonalise(x).norm() / nearest.norm()
    assert cosine > 0.97
    assert torch.allclose(orthogonalise(x * 1000), orthogonalise(x), atol=1e-4)


def test_muon_against_torch():
    """Against torch.optim.Muon, which works in bfloat16: the same way, nearly as far, over several steps."""
    torch.manual_seed(0)
    start = [torch.randn(16, 48), torch.randn(48, 16)]
    grads = [[torch.randn_like(x) for x in start] for _ in range(4)]
    ends = []
    for kind in (Muon, lambda p, lr: torch.optim.Muon(p, lr, weight_decay=0.0, momentum=0.95)):
        params = [torch.nn.Parameter(x.clone()) for x in start]
        optimizer = kind(params, lr=0.02)
        for step in grads:
            for p, g in zip(params, step, strict=True):
                p.grad = g.clone()
            optimizer.step()
        ends.append([p.detach() - x for p, x in zip(params, start, strict=True)])
    for ours, theirs in zip(*ends, strict=True):
        assert (ours * theirs).sum() / ours.norm() / theirs.norm() > 0.995
        assert ours.norm() / theirs.norm() == pytest.approx(1.0, abs=0.05)


def test_both_optimisers_follow_the_schedule_and_share_nothing(micro, rows):
    """Bugs: a matrix stepped twice or never; the rate of one that stays where it began."""
    model = copy.deepcopy(micro).train()
    both = fit.optimiser(model, Fit(lr=1e-3, muon_lr=0.02))
    held = [id(p) for group in both.param_groups for p in group["params"]]
    assert sorted(held) == sorted({id(p) for p in model.parameters()})
    muon = {id(p) for group in both.parts[0].param_groups for p in group["params"]}
    assert muon == {id(p) for n, p in model.named_parameters() if "proj" in n}
    before = copy.deepcopy(model.state_dict())
    sft.loss(model, sft.collate(rows[:4], 257)).backward()
    for group in both.param_groups:
        group["lr"] = 0.0
    both.step()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert math.isclose(fit.optimiser(model, Fit(lr=1e-3)).param_groups[0]["lr"], 1e-3)


# --- several processes --------------------------------------------------------------------------------------------


def shared(folder, accumulate):
    """Killed once and gone on, with one process or several: (history, weights, tokens seen)."""
    task, encoder = tasks.get("arithmetic"), Encoder(character_tokenizer())
    rows = sft.rows([(p, task.demonstration(p)) for p in task.load("train", 24, seed=2)], encoder)
    config = Fit(7, 3, 3e-3, 0.02, warmup=1, check_every=2, accumulate=accumulate, save=True, patience=5, watch="x")
    history = []
    for die_at in (5 * accumulate, None):
        model, calls, done = new_model("micro", encoder.tokenizer), [0], []

        def loss(model, batch, calls=calls, die_at=die_at):
            calls[0] += 1
            if calls[0] == die_at:
                raise Killed
            return plain(model, batch)

        try:
            history = [row for row in history if row["step"] <= fit.reached(folder)]
            check = lambda done=done: done.append(1) or {"x": -len(done)}  # noqa: E731
            cost = fit.fit(model, rows, counting, loss, config, folder, check, history.append, progress=False)
        except Killed:
            assert die_at
    return history, model.state_dict(), cost.trained


@pytest.mark.slow
def test_two_processes_are_one_of_twice_the_batch(tmp_path):
    """Bugs: halves with unlike counts of tokens weigh alike; gradients that are not shared; both write the files; a
    run that goes on elsewhere in the data; tokens of one process billed for both."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    launch = [sys.executable, *"-m torch.distributed.run --standalone --nproc_per_node 2".split()]
    command = [*launch, __file__, str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    history, weights, trained = shared(tmp_path / "one", 2)
    told = json.loads((tmp_path / "two.json").read_text())
    assert [row["step"] for row in told["history"]] == [row["step"] for row in history] == [2, 4, 6, 7]
    for one, two in zip(history, told["history"], strict=True):
        assert two == pytest.approx(one, abs=1e-5)
    theirs = load_file(tmp_path / "two.safetensors")
    assert all(torch.allclose(theirs[k], v, atol=1e-5) for k, v in weights.items() if k in theirs)
    assert len(theirs) > 10 and told["trained"] == trained


if __name__ == "__main__":  # as one of the two processes
    out, first = Path(sys.argv[1]), os.environ["RANK"] == "0"
    if not first:
        fit.save_state = None  # whoever calls it here fails
    history, weights, trained = shared(out, 1)
    assert first or not history
    if first:
        save_file({k: v.clone() for k, v in weights.items()}, out.with_suffix(".safetensors"))
        out.with_suffix(".json").write_text(json.dumps({"history": history, "trained": trained}))
