"""What a model's linear layers gave for the tokens that it wrote, so that learning from them reads nothing twice.

A chain that was sampled has been through the model once. If the weights have not moved since, the forward pass that
training begins with would multiply the same matrices by the same states again, a third of the whole update. A `Tape`
keeps the products; `replayed` puts them in the layers' place, whose gradients are what they always are. Norms,
attention and activations, which are cheap, are computed again.

>>> tape = Tape(policy.model)                                                  # doctest: +SKIP
>>> with tape.running(policy.rows):                                            # doctest: +SKIP
...     chains = policy.extend(wants)
>>> with tape.replayed(tape.chains[tokens]):                                   # doctest: +SKIP
...     hidden = policy.model.base_model(torch.tensor([tokens[:-1]])).last_hidden_state
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import Linear

from .kv import core, version
from .types import WorkbenchError


class Tape:
    """The outputs of the linear layers of `model`, its head left out, one slot for each token read.

    `room` is how many tokens it has memory for at first. `Rows` tells what it reads and copies; `keep` names a chain
    that stands in a row. Layers that are no plain `torch.nn.Linear`, such as 4-bit ones, are not taped, and computed
    again. Left out: prefixes that were read before the tape ran; a chain with one is not kept.
    """

    def __init__(self, model, room: int = 1024):
        self.model, self.version = core(model), version(core(model))
        linear = [layer for layer in self.model.base_model.modules() if type(layer) is Linear]
        self.layers = {layer: layer.weight.new_empty((room, layer.out_features)) for layer in linear}
        self.heard = dict.fromkeys(linear, 0)  # how many tokens each was told of
        self.room = room  # how many slots there are
        self.begin, self.count, self.shape = 0, 0, (0, 0)  # those of the tokens that are being read, and their shape
        self.slots = np.full((1, 1), -1)  # of the tokens in a row, by column
        self.chains: dict[tuple[int, ...], np.ndarray] = {}

    @contextmanager
    def running(self, rows) -> Iterator[None]:
        """Tape what `rows` (a `kv.Rows`) reads."""
        hooks = [layer.register_forward_hook(self._heard) for layer in self.layers]
        rows.tape = self
        try:
            yield
        finally:
            rows.tape = None
            for hook in hooks:
                hook.remove()

    def _heard(self, layer, inputs, output) -> None:
        if self.heard[layer] == self.begin and output.shape[:-1] == self.shape:
            self.layers[layer][self.begin : self.count] = output.flatten(0, -2)
            self.heard[layer] = self.count
        else:  # run twice, or not for all tokens, as experts are
            self.heard[layer] = -1

    # --- what rows tell ---

    def wrote(self, first: int, at: np.ndarray) -> None:
        """Tokens will now be read into columns `at` (rows, new) of rows first, first + 1, …"""
        self._stretch(first + len(at), int(at.max()) + 1)
        where = np.arange(first, first + len(at))[:, None]
        self.slots[where, at] = self.count + np.arange(at.size).reshape(at.shape)
        self.begin, self.count, self.shape = self.count, self.count + at.size, at.shape
        if self.count > self.room:
            self.room = 2 * self.count
            for layer, old in self.layers.items():
                self.layers[layer] = old.new_empty((self.room, old.shape[1]))
                self.layers[layer][: len(old)] = old

    def copied(self, sources: np.ndarray, targets: np.ndarray, columns: int) -> None:
        self._stretch(int(max(targets)) + 1, columns)
        self.slots[targets, :columns] = self.slots[sources, :columns]

    def loaded(self, first: int, rows: int, columns: int) -> None:
        self._stretch(first + rows, columns)
        self.slots[first : first + rows, :columns] = -1

    def _stretch(self, rows: int, columns: int) -> None:
        grow = [(0, max(0, want - have)) for want, have in zip((rows, columns), self.slots.shape, strict=True)]
        if any(more for _, more in grow):
            self.slots = np.pad(self.slots, grow, constant_values=-1)

    def keep(self, tokens: Sequence[int], row: int) -> None:
        """`row` holds this chain; its last token is not read."""
        slots = self.slots[row, : len(tokens) - 1]
        if (slots >= 0).all():
            self.chains[tuple(tokens)] = slots.copy()

    # --- what learning asks ---

    def clear(self) -> None:
        """Give the memory back."""
        self.layers, self.heard, self.chains = {}, {}, {}

    @contextmanager
    def replayed(self, slots: np.ndarray) -> Iterator[None]:
        """The layers give, as one row, what they gave for the tokens at `slots` (tokens,).

        Errors: weights that have moved since.
        """
        if version(self.model) != self.version:
            raise WorkbenchError("the weights have moved since the chains were sampled: compute them again")
        whole = [layer for layer, n in self.heard.items() if n == self.count]
        where = torch.from_numpy(slots)
        try:
            for layer in whole:
                layer.forward = lambda x, layer=layer, given=self.layers[layer]: _Given.apply(
                    x, layer.weight, layer.bias, given[None, where.to(given.device)]
                )
            yield
        finally:
            for layer in whole:
                del layer.forward  # the class's own again


def taped_bytes(model) -> int:
    """What a tape takes for one token."""
    linear = (layer for layer in core(model).base_model.modules() if type(layer) is Linear)
    return sum(layer.out_features * layer.weight.itemsize for layer in linear)


class _Given(torch.autograd.Function):
    """A linear layer whose output is known."""

    @staticmethod
    def forward(ctx, x, weight, bias, given):
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return given

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        flat = grad.flatten(0, -2)
        return (
            grad @ weight if ctx.needs_input_grad[0] else None,
            flat.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None,
            flat.sum(0) if ctx.biased and ctx.needs_input_grad[2] else None,
            None,
        )
