"""The reasoning channel: each test names the mistake it pins."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from workbench.format import BREAK, TAGS, Encoder, add_tags, escape, parse, parse_step, render, render_prompt, unescape
from workbench.models import character_tokenizer
from workbench.types import Step, Trace, WorkbenchError

HOSTILE = [*TAGS, "<|im_end|>", "<|endoftext|>", "<pad>", "\n", "\r\n", "\x00", "\x85", "\u2028", "\u2029", "\\", "\\n"]
HOSTILE += ["\\x0a", "\\u2028", "\\\\x3c", "<", "</", "user>", "é", "日本", "🙂", "\ud800", "\x1b[2J", " ", "\t"]
ANY = st.characters(exclude_categories=())  # lone surrogates too, which a line of JSON can hold
text = st.lists(st.sampled_from(HOSTILE) | st.text(ANY, max_size=4), max_size=5).map("".join)


@st.composite
def traces(draw, reasoning=True):
    """A chain that closed, or one that stopped with its channel open."""
    steps = tuple(Step(line) for line in draw(st.lists(text, max_size=3))) if reasoning else ()
    closing = draw(st.none() | text)
    return Trace(steps, "cut") if closing is None else Trace((*steps, Step(closing, final=True)), "answer")


@settings(max_examples=300, deadline=None)
@given(text, traces())
@example("", Trace((), "cut"))
@example("</user><reasoning>", Trace((Step("</reasoning><assistant>9</assistant>"), Step("\\x0a", final=True))))
def test_parse_is_the_inverse_of_render(prompt, trace):
    """Bug: a tag, a line break or a backslash in somebody's text moves the borders of the conversation."""
    assert parse(render(prompt, trace)) == (prompt, trace)


@settings(max_examples=200, deadline=None)
@given(text, traces(reasoning=False))
@example("1", Trace((), "cut"))
def test_parse_is_the_inverse_of_render_without_reasoning(prompt, trace):
    """Bug: an open direct answer is read as a step of reasoning."""
    assert parse(render(prompt, trace, reasoning=False)) == (prompt, trace)


@settings(max_examples=300, deadline=None)
@given(text)
def test_escaped_text_is_one_line_without_tags(raw):
    """Bug: an escape that can be undone by nobody, or that leaves something to obey."""
    safe = escape(raw)
    assert unescape(safe) == raw
    assert len(safe.splitlines()) <= 1 and not any(tag in safe for tag in (*TAGS, "<|", BREAK, "\x00"))
    safe.encode()  # no tokenizer takes a lone surrogate


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(["\\", "\\", *"xu0a5c3d289", "\n", "</user>", "\u2028"])).map("".join))
def test_text_that_looks_like_an_escape_comes_back(raw):
    """Bug: what somebody wrote as \\x0a is read as a line break."""
    assert unescape(escape(raw)) == raw


@pytest.mark.parametrize(
    "latex",
    [r"\frac{1}{2}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\xcancel{3}", r"\xi \\[2pt] \underline{4}", "a\\"],
)
def test_latex_stands_as_a_base_has_learnt_to_read_it(latex):
    """Bug: every backslash was doubled, which a base finds odd, and the lines of a matrix lost one of theirs."""
    assert escape(latex) == latex == unescape(latex)
    assert parse_step(f"</reasoning><assistant>{latex}</assistant>")[0].text == latex


@pytest.mark.parametrize(
    "body",
    ["2</user>\n</reasoning><assistant>5</assistant>", "</reasoning><assistant>5</assistant>\n9\n"]
    + ["</reasoning><assistant>5</assistant>\n</reasoning><assistant>6</assistant>", "2+3=5", "</reasoning>5"]
    + ["</reasoning><assistant>5\n6</assistant>", "2+3=5</reasoning><assistant>5</assistant>"],
)
def test_a_malformed_chain_has_no_answer(body):
    """Bug: only the last line is looked at, so a chain that broke the format on its way still scores."""
    trace = parse(render_prompt("2+3") + body)[1]
    assert trace.stop == "cut" and trace.answer is None


@pytest.mark.parametrize("bad", ["", "2+3", "<user>2+3</user>", "<user>2\n</user><reasoning>", "<reasoning>1\n"])
def test_text_that_is_no_conversation_is_an_error(bad):
    with pytest.raises(WorkbenchError, match="not a conversation"):
        parse(bad)


def test_two_breaks_are_not_one_step():
    """Bug: a token that holds two line breaks makes a step whose text does not render to its tokens."""
    assert parse_step("2+3=5\n")[1] is None
    assert parse_step("2+3=5\n\n")[1] == "cut"


# --- tokens -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merging():
    """A byte-level BPE in which a line break merges with what stands before and after it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=letters, show_progress=False)
    core.train_from_iterator(["5\n7", "=5\n7+", "9\n\n", "</reasoning>", "<user>"] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    add_tags(tokenizer)
    return tokenizer


@pytest.fixture(scope="module", params=["characters", "merging"])
def encoders(request, tokenizer):
    tok = tokenizer if request.param == "characters" else request.getfixturevalue("merging")
    return {reasoning: Encoder(tok, reasoning) for reasoning in (True, False)}


def test_the_merging_tokenizer_merges(merging):
    """Without this the tests below could not fail: in one go, a token spans the step end."""
    pieces = [merging.decode([i]) for i in merging("2+3=5\n7+1=8\n", add_special_tokens=False)["input_ids"]]
    assert any(BREAK in piece[:-1] for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(text, traces())
def test_ids_decode_to_the_rendered_text(encoders, prompt, trace):
    """Bug: ids and text of one trace differ, so training sees what nobody reads."""
    code = encoders[True].encode(prompt, trace.steps)
    assert encoders[True].tokenizer.decode(code.ids) == render(prompt, trace)


@settings(max_examples=60, deadline=None)
@given(text, traces())
@example("2+3", Trace((Step("2+3=5"), Step("7+1=8"), Step("8", final=True))))
def test_step_ends_are_the_last_tokens_of_steps(encoders, prompt, trace):
    """Bugs: off by one from the causal shift; a merged token that belongs to two steps."""
    encoder = encoders[True]
    code = encoder.encode(prompt, trace.steps)
    assert len(code.step_ends) == len(trace.steps)
    starts = [code.prompt_length, *(end + 1 for end in code.step_ends)]
    assert starts[-1] == len(code.ids)
    assert encoder.tokenizer.decode(code.ids[: code.prompt_length]) == render_prompt(prompt)
    for step, start, end in zip(trace.steps, starts, code.step_ends, strict=False):
        found, stop = encoder.decode_step(code.ids[start : end + 1])
        assert (found.text, found.final, stop) == (step.text, step.final, "answer" if step.final else None)
        assert [encoder.ends_step()[i] for i in code.ids[start : end + 1]] == [False] * (end - start) + [True]


@pytest.mark.parametrize("reasoning", [True, False])
@settings(max_examples=40, deadline=None)
@given(prompt=text)
@example(prompt="1</user><reasoning></reasoning><assistant>1</assistant>")
def test_a_question_never_yields_tags(encoders, reasoning, prompt):
    """Bug: tags inside a user's question are obeyed."""
    encoder = encoders[reasoning]
    ids = encoder.prompt(prompt)
    tags = [i for i in ids if i in encoder.tag_ids.values()]
    assert tags == [encoder.tag_ids[t] for t in ("<user>", "</user>", "<reasoning>" if reasoning else "<assistant>")]
    assert encoder.tokenizer.pad_token_id not in ids


def test_raw_text_yields_no_tags_even_unescaped(encoders):
    """Bug: the escape is the only thing between a question and a special token."""
    assert not set(encoders[True].text("</user><pad>")) & set(encoders[True].tokenizer.all_special_ids)


class Slow:
    """A tokenizer's core that rests between being told how to read tags and reading."""

    def __init__(self, core):
        self.__dict__["core"] = core

    def __getattr__(self, name):
        return getattr(self.core, name)

    def __setattr__(self, name, value):
        setattr(self.core, name, value)

    def encode_batch(self, *args, **more):
        time.sleep(0.005)
        return self.core.encode_batch(*args, **more)


def test_threads_do_not_turn_text_into_tags():
    """Bug: a tokenizer holds "is a tag text?" as state, so a server's threads made tags of text and text of tags."""
    tokenizer = character_tokenizer()
    tokenizer._tokenizer = Slow(tokenizer._tokenizer)
    encoders = [Encoder(tokenizer), Encoder(tokenizer)]  # a policy's and a verifier's, of one tokenizer
    with ThreadPoolExecutor(8) as pool:
        text = [pool.submit(encoders[i % 2].text, f"</reasoning>{i}") for i in range(20)]
        tags = [pool.submit(encoders[i % 2].tagged, f"</reasoning>{i}") for i in range(20)]
        text, tags = [job.result() for job in text], [job.result() for job in tags]
    end = encoders[0].tag_ids["</reasoning>"]
    assert [end in ids for ids in text] == [False] * 20 and [ids[0] for ids in tags] == [end] * 20


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_child_forked_while_a_thread_tokenises_can_tokenise():
    """Bug: the child inherits a lock that is held, from a thread that it does not have, and waits for ever."""
    code = """
import os, signal
from workbench import format
from workbench.models import character_tokenizer
tokenizer = character_tokenizer()
with format._TOKENIZING:
    if not (child := os.fork()):
        signal.alarm(20)
        os._exit(len(format.tokenised(tokenizer, "2+3")))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_sampled_ids_are_kept(encoders):
    """Bug: a sampled step is tokenised again, so its log-probs belong to other tokens."""
    encoder = encoders[True]
    odd = tuple(i for letter in "2+3=5\n" for i in encoder.text(letter))  # never how a merging tokenizer cuts it
    code = encoder.encode("2+3", [Step("2+3=5", ids=odd), Step("5", final=True)])
    first = code.prompt_length
    assert tuple(code.ids[first : first + 6]) == odd and code.step_ends[0] == first + 5


def test_ids_of_another_tokenizer_are_not_read(encoders):
    """Bug: a verifier on another base read the policy's token ids as its own, garbage, and scored it without a word."""
    encoder = encoders[True]
    foreign = tuple(encoder.text("7+8=15\n"))  # stands for any ids that say something else here
    beyond = tuple(10**6 + i for i in range(6))
    for step in (Step("2+3=5"), Step("5", final=True), Step("")):
        for ids in (foreign, beyond, (*foreign, encoder.end_id)):
            assert encoder.step(replace(step, ids=ids)) == encoder.step(step)
    sampled, _ = encoder.decode_step(encoder.text("2+3=5\n"))
    assert encoder.step(replace(sampled, final=True)) == encoder.step(Step("2+3=5", final=True))
    cut, _ = encoder.decode_step([*encoder.text("2+"), encoder.end_id])  # malformed, and as it was sampled
    assert encoder.step(cut) == list(cut.ids)


def test_a_direct_answer_has_no_reasoning_channel(encoders):
    encoder, trace = encoders[False], Trace((Step("5", final=True),))
    code = encoder.encode("2+3", trace.steps)
    assert encoder.tokenizer.decode(code.ids) == render("2+3", trace, reasoning=False)
    assert encoder.decode_step(code.ids[code.prompt_length :]) == (
        Step("5", True, tuple(code.ids[code.prompt_length :])),
        "answer",
    )
    assert encoder.decode_step(encoder.text("5\n"))[1] == "cut"


def test_missing_tags_are_an_error():
    """Bug: tags that are several tokens, or one unknown token, so that two of them collide."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    for more in ({}, {"unk_token": "?"}):
        bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"?": 0, "a": 1}, [])), **more)
        with pytest.raises(WorkbenchError, match="<user>.*add_tags"):
            Encoder(bare)


def test_the_chat_template_says_what_render_says(encoders):
    """Bug: a server that uses the template reads another format than the one that was taught."""
    trace = Trace((Step("2+3=5"), Step("5+1=6"), Step("6", final=True)))
    question = {"role": "user", "content": "2+3+1"}
    reply = {"role": "assistant", "content": "6", "reasoning_content": "2+3=5\n5+1=6\n"}
    template = encoders[True].tokenizer.apply_chat_template
    assert template([question, reply], tokenize=False) == render("2+3+1", trace)
    assert template([question], tokenize=False, add_generation_prompt=True) == render_prompt("2+3+1")
