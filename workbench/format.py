"""The reasoning channel: <user>…</user><reasoning>…</reasoning><assistant>…</assistant>, one step a line.

The step break, the tags and the token positions of step ends are known here and nowhere else.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass

from .types import Step, Stop, Trace, WorkbenchError

BREAK = "\n"
TAGS = ("<user>", "</user>", "<reasoning>", "</reasoning>", "<assistant>", "</assistant>")
USER, END_USER, REASONING, END_REASONING, ASSISTANT, END_ASSISTANT = TAGS
CLOSING = END_REASONING + ASSISTANT
WRITTEN = 2  # how text is written for a model: see `escape`; 1 wrote every backslash twice

# What a reader of the raw text could mistake for structure: our tags, other templates' <|tags|>, control
# characters and line separators, lone surrogates (which no tokenizer takes), and a backslash in front of one of the
# codes that these are written as. Any other backslash stays what it is: LaTeX is full of them, a base has learnt to
# read them so, and writes `\\` where it means a line of a matrix.
_CODE = r"(?:x(?:[01][0-9a-f]|7f|[89][0-9a-f]|3c|5c)|u(?:202[89]|d[89a-f][0-9a-f]{2}))"
_HOSTILE = re.compile(
    rf"\\(?={_CODE})|<(?=/?(?:user|reasoning|assistant)>|\|)|[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
)
_ESCAPED = re.compile(rf"\\({_CODE})")

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user>{{ m.content }}</user>"
    "{% elif m.role == 'assistant' %}<reasoning>{{ m.reasoning_content | default('') }}</reasoning>"
    "<assistant>{{ m.content }}</assistant>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<reasoning>{% endif %}"
)


def escape(text: str) -> str:
    r"""Make any text safe to stand inside a channel: one line, no tag. `unescape` is the exact inverse.

    >>> escape("2<3</user>\n"), escape(r"\frac{1}{2} \\ \x0a")
    ('2<3\\x3c/user>\\x0a', '\\frac{1}{2} \\\\ \\x5cx0a')
    """
    return _HOSTILE.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def unescape(text: str) -> str:
    """The inverse of `escape`. A backslash that escapes nothing (a model may write one) stays as it is."""
    return _ESCAPED.sub(lambda m: chr(int(m[1][1:], 16)), text)


def render_prompt(prompt: str, reasoning: bool = True) -> str:
    """What the policy reads before its first token.

    >>> render_prompt("2+3"), render_prompt("2+3", reasoning=False)
    ('<user>2+3</user><reasoning>', '<user>2+3</user><assistant>')
    """
    return f"{USER}{escape(prompt)}{END_USER}{REASONING if reasoning else ASSISTANT}"


def render_step(step: Step, reasoning: bool = True) -> str:
    if step.final:
        return (CLOSING if reasoning else "") + escape(step.text) + END_ASSISTANT
    return escape(step.text) + BREAK


def render(prompt: str, trace: Trace, reasoning: bool = True) -> str:
    """The whole conversation as text. `reasoning=False` has no reasoning channel (the direct-answer twin).

    A chain that did not finish stays open. `parse` is the inverse.

    >>> render("2+3", Trace((Step("2+3=5"), Step("5", final=True))))
    '<user>2+3</user><reasoning>2+3=5\\n</reasoning><assistant>5</assistant>'
    """
    return render_prompt(prompt, reasoning) + "".join(render_step(step, reasoning) for step in trace.steps)


def parse(text: str) -> tuple[str, Trace]:
    """Text -> (prompt, trace). An open chain has stop `cut`; text that is no conversation is an error.

    >>> parse(render("2+3", Trace((Step("2+3=5"), Step("5", final=True)))))
    ('2+3', Trace(steps=(Step(text='2+3=5', final=False, ids=(), logprobs=(), score=None),\
 Step(text='5', final=True, ids=(), logprobs=(), score=None)), stop='answer'))
    """
    match = re.fullmatch(rf"{USER}([^\n]*?){END_USER}(?:{REASONING}(.*)|{ASSISTANT}(.*))", text, re.DOTALL)
    if not match:
        raise WorkbenchError(f"not a conversation: it must begin with {USER}…{END_USER}{REASONING}, got {text[:60]!r}")
    reasoning = match[2] is not None
    chunks = re.findall(rf"[^{BREAK}]*{BREAK}|[^{BREAK}]+", match[2] if reasoning else match[3])
    read = [parse_step(chunk, reasoning) for chunk in chunks]
    closed = [end for _, end in read] == [None] * (len(read) - 1) + ["answer"]  # nothing malformed on the way
    return unescape(match[1]), Trace(tuple(step for step, _ in read), "answer" if closed else "cut")


def parse_step(chunk: str, reasoning: bool = True) -> tuple[Step, Stop | None]:
    r"""One chunk as the policy wrote it -> (step, stop). Malformed text is a step with stop `cut`.

    >>> parse_step("2+3=5\n")[1], parse_step("</reasoning><assistant>5</assistant>")[1], parse_step("2</user>\n")[1]
    (None, 'answer', 'cut')
    """
    body = chunk
    if chunk.endswith(BREAK):
        body = chunk[: -len(BREAK)]
        if reasoning and BREAK not in body and not any(tag in body for tag in TAGS):
            return Step(unescape(body)), None
    elif chunk.startswith(CLOSING if reasoning else "") and chunk.endswith(END_ASSISTANT):
        answer = chunk[len(CLOSING) if reasoning else 0 : -len(END_ASSISTANT)]
        if not any(tag in answer for tag in TAGS) and BREAK not in answer:
            return Step(unescape(answer), final=True), "answer"
    return Step(unescape(body)), "cut"


def add_tags(tokenizer):
    """Give any tokenizer the six tags as special tokens and the chat template; returns how many are new."""
    new = tokenizer.add_special_tokens({"additional_special_tokens": list(TAGS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return new


@dataclass(frozen=True)
class Encoded:
    """Token ids of prompt + steps; `step_ends[i]` is the position of the last token of step i."""

    ids: list[int]
    step_ends: list[int]
    prompt_length: int


# A fast tokenizer holds "is a tag text?" as state: a second thread could turn the tag in a question into a real one.
_TOKENIZING = threading.Lock()


def tokenised(tokenizer, text: str, tags: bool = True) -> list[int]:
    """The ids of a text in which a tag is a tag, or, without `tags`, text; one thread at a time."""
    with _TOKENIZING:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=not tags)["input_ids"]


def _unlocked() -> None:
    """A child that is forked while a thread tokenises would wait for that thread, which it does not have."""
    global _TOKENIZING
    _TOKENIZING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlocked)


class Encoder:
    """The one way from text to ids: used by the policy, by verifier training and by verifier scoring.

    The prompt and every step are tokenised on their own and concatenated, so a token never spans a step
    end, whatever the tokenizer merges; a sampled step keeps the ids that were sampled, if they are this tokenizer's:
    ids do not say whose they are, so what counts is that they spell the step.
    """

    def __init__(self, tokenizer, reasoning: bool = True):
        self.tokenizer, self.reasoning = tokenizer, reasoning
        self.tag_ids = {tag: tokenizer.convert_tokens_to_ids(tag) for tag in TAGS}
        for tag, i in self.tag_ids.items():
            if i is None or i == tokenizer.unk_token_id:
                raise WorkbenchError(
                    f"the tokenizer has no token {tag}: call workbench.format.add_tags(tokenizer) first"
                )
        self.end_id = self.tag_ids[END_ASSISTANT]
        self._memo: dict[str, list[int]] = {}
        self._told: dict[tuple[int, ...], tuple[str | None, bool, Stop | None]] = {}
        self._ends: list[bool] | None = None

    def text(self, text: str) -> list[int]:
        """Plain text, in which a tag is text."""
        if (ids := self._memo.get(text)) is None:
            if len(self._memo) > 100_000:
                self._memo.clear()
            ids = self._memo[text] = tokenised(self.tokenizer, text, tags=False)
        return ids

    def tagged(self, text: str) -> list[int]:
        """A model's own text, in which a tag is a tag."""
        return tokenised(self.tokenizer, text)

    def prompt(self, prompt: str) -> list[int]:
        tag = self.tag_ids
        last = tag[REASONING if self.reasoning else ASSISTANT]
        return [tag[USER], *self.text(escape(prompt)), tag[END_USER], last]

    def step(self, step: Step) -> list[int]:
        if step.ids and self._read(step.ids)[:2] == (step.text, step.final):
            return list(step.ids)
        if not step.final:
            return self.text(escape(step.text) + BREAK)
        return [*self.closing(), *self.text(escape(step.text)), self.end_id]

    def closing(self) -> list[int]:
        """The tags in front of a closing answer."""
        return [self.tag_ids[END_REASONING], self.tag_ids[ASSISTANT]] if self.reasoning else []

    def encode(self, prompt: str, steps: Iterable[Step]) -> Encoded:
        """Ids and step ends of a prompt and its steps (a Trace's or a Node's)."""
        ids = self.prompt(prompt)
        length, ends = len(ids), []
        for step in steps:
            ids = ids + self.step(step)
            ends.append(len(ids) - 1)
        return Encoded(ids, ends, length)

    def decode_step(self, ids: Iterable[int], logprobs: Iterable[float] = ()) -> tuple[Step, Stop | None]:
        """Sampled ids of one chunk -> (step with its ids, stop)."""
        ids = tuple(ids)
        text, final, stop = self._read(ids)
        return Step(text or "", final, ids, tuple(logprobs)), stop

    def _read(self, ids: tuple[int, ...]) -> tuple[str | None, bool, Stop | None]:
        """(text, final, stop) of a chunk; the text is None where no id is one of this tokenizer, which skips those."""
        if (told := self._told.get(ids)) is None:
            chunk = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            step, stop = parse_step(chunk, self.reasoning)
            if len(self._told) > 100_000:
                self._told.clear()
            told = self._told[ids] = step.text if chunk else None, step.final, stop
        return told

    def ends_step(self) -> list[bool]:
        """For every token id: does it end a step? (A break inside the token, or the end of the answer.)"""
        if self._ends is None:
            pieces = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            self._ends = [BREAK in piece or i == self.end_id for i, piece in enumerate(pieces)]
        return self._ends
