"""A live monitor of llama.cpp that generates several answers together.

Each step reads one token of every running answer, and a part of the prompts that wait. An answer
depends on its neighbours by rounding only: llama.cpp sums in another order if a decode has another
number of tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby

import numpy as np
from jaxtyping import Float, Int

from hq.backends.llamacpp.backend import LlamaBackend
from hq.errors import HQError
from hq.monitor.combination import Combination, TokenUncertainty, uncertainty_of
from hq.monitor.llamacpp import require_watchable
from hq.monitor.slots import Slot, SlotPool
from hq.monitor.step import Running, Step
from hq.neurons.cett import Span
from hq.neurons.factors import check_factors
from hq.neurons.neuron_set import NeuronSet

_PROMPT_TOKENS = 512  # that one step reads while no answer is generated
_SHARED_PROMPT_TOKENS = 64  # and while answers are generated, which wait for them


class BatchAnswer:
    """One answer of a `BatchMonitor`.

    Wait until it is not `waiting`; then choose a token from `logits`, `append` it, wait, take its
    `step`, and so on.
    """

    def __init__(
        self, prompt: Sequence[int], alpha: float, span: Span, combination: Combination | None
    ) -> None:
        self.prompt, self.alpha = tuple(prompt), alpha
        self._span, self._combination = span, combination
        self.writer: Slot | None = None  # reads with neurons scaled by alpha
        self.reader: Slot | None = None  # reads unscaled: the same slot if alpha is 1
        self.token: int | None = None  # that was appended last; None while the prompt is read
        self.is_complete = False
        self.step: Step | None = None  # of `token`, once it was read
        self.fault: HQError | None = None
        self._uncertainty: TokenUncertainty | None = None  # of `token`
        self._prompt_decisions: list[float] = []
        self._running: Running | None = None

    @property
    def waiting(self) -> bool:
        """Whether a step of the batch has to come first.

        Raises HQError if the answer cannot be continued.
        """
        if self.fault is not None:
            raise self.fault
        return any(slot is None or slot.pending for slot in (self.writer, self.reader))

    @property
    def logits(self) -> Float[np.ndarray, " vocab"]:
        """The logits of the next token, valid until the next step of the batch."""
        assert self.writer is not None
        return self.writer.logits

    def append(self, token: int, is_last: bool = False) -> None:
        """Let the next step read a token; after the last one there are no logits."""
        reader, writer = self.reader, self.writer
        assert reader is not None
        assert writer is not None
        assert not self.waiting
        if self._combination is not None:
            self._uncertainty = uncertainty_of(reader.logits, token)
        self.token, self.step, self.is_complete = token, None, is_last
        if reader is writer or not is_last:
            writer.pending.append(token)
        if reader is not writer:
            reader.pending.append(token)

    def needs_reading(self, slot: Slot, count: int) -> list[bool]:
        """Which of a slot's next tokens the probe reads."""
        if slot is not self.reader:
            return [False] * count
        if self.token is not None or self._span == "other":
            return [True] * count
        ends_prompt = self._span == "prompt" and count == len(slot.pending)
        return [False] * (count - 1) + [ends_prompt]

    def add_reading(self, cett: Float[np.ndarray, " k"], decision: float) -> None:
        """Add the reading of the next token that needs one."""
        if self.token is None:
            self._prompt_decisions.append(decision)
            return
        if self._combination is not None and self._uncertainty is not None:
            decision = self._combination.decide(decision, self._uncertainty)
        if self._running is None:
            self._running = Running(self._span, np.array(self._prompt_decisions))
        self.step = Step(self.token, cett, decision, self._running.add(decision))


class BatchMonitor:
    """Watches a NeuronSet while a model generates several answers together.

    Answers may have factors of their own: an answer with α ≠ 1 takes two sequences, one that reads
    it with the H-Neurons scaled, and one that reads the same tokens unscaled. Scores come from the
    second, as thresholds are set on unscaled scores. Answers that find no free sequence wait in
    order. A monitor belongs to one thread, and is closed with its backend.

    Args:
        backend: The model.
        neurons: The neurons to watch.
        sequences: Sequences that are read together, at least 2. Each takes the memory of `tokens`
            keys and values, in the types of the backend's precision.
        tokens: Tokens that a prompt and its answer may have together.
        combination: Scores are those of H-Neurons and token probabilities together.

    Raises HQError for a set of another model, for an empty set, and for a combination with a set
    that reads other tokens than the answer's.
    """

    def __init__(
        self,
        backend: LlamaBackend,
        neurons: NeuronSet,
        sequences: int,
        tokens: int = 2048,
        combination: Combination | None = None,
    ) -> None:
        require_watchable(backend, neurons, combination)
        if sequences < 2:
            raise HQError(
                f"{sequences} sequence is too few: an answer with scaled neurons takes two."
            )
        self.neurons, self.sequences = neurons, sequences
        self._backend, self._combination, self._capacity = backend, combination, tokens
        self._context, observer = backend.context(
            sequences * tokens,
            sequences,
            max(sequences, min(tokens, _PROMPT_TOKENS)),
            unified=False,
        )
        # The last layer computes h of outputs only.
        self._reads_last = any(n.layer == neurons.model.n_layers - 1 for n in neurons.neurons)
        self._slots = SlotPool(self._context, reuse=neurons.tokens != "other")
        self._owners: dict[Slot, BatchAnswer] = {}
        self._unplaced: list[BatchAnswer] = []
        self._stack = ExitStack()
        positions = [(n.layer, n.index) for n in neurons.neurons]
        self._readings = self._stack.enter_context(observer.watched(positions, neurons.cett))
        scaled = [(n.layer, n.index) for n in neurons.positive]
        self._factors = self._stack.enter_context(observer.scaled_by_token(scaled))

    @property
    def reused_tokens(self) -> int:
        """Tokens of prompts that were not read, because a sequence held them already."""
        return self._slots.reused_tokens

    @contextmanager
    def answer(
        self, prompt: Sequence[int], max_new_tokens: int, alpha: float = 1.0
    ) -> Iterator[BatchAnswer]:
        """Add an answer to the batch until the context ends.

        Raises HQError if the prompt is empty or leaves no room for the answer, or if α is negative
        or not a number.
        """
        length = len(prompt) + max_new_tokens
        if not prompt or length > self._capacity:
            raise HQError(
                f"A prompt of {len(prompt)} tokens and {max_new_tokens} new ones do not fit into "
                f"{self._capacity}: shorten them, or open the monitor with more tokens."
            )
        self._backend.require_length(length)
        check_factors(
            {n.position: alpha for n in self.neurons.positive}, self._backend.identity.space
        )
        answer = BatchAnswer(prompt, alpha, self.neurons.tokens, self._combination)
        self._unplaced.append(answer)
        try:
            yield answer
        finally:
            if answer in self._unplaced:
                self._unplaced.remove(answer)
            for slot in [slot for slot, owner in self._owners.items() if owner is answer]:
                del self._owners[slot]
                self._slots.give_back(slot)

    def step(self) -> None:
        """Read the next tokens of the answers.

        If llama.cpp fails, every answer that is being read is lost: its `waiting` raises the error.
        """
        self._place()
        try:
            budget = _PROMPT_TOKENS
            for run in _runs(slot for slot in self._slots.all if len(slot.pending) == 1):
                self._decode(run, 1)
                budget = _SHARED_PROMPT_TOKENS
            prompts, count = self._prompts(budget)
            while prompts:
                self._decode(prompts, count)
                budget -= count * len(prompts)
                prompts, count = self._prompts(budget)
        except HQError as fault:
            self._slots.clear()
            for answer in self._owners.values():
                answer.fault = fault

    def _place(self) -> None:
        """Give answers their sequences, in the order of arrival."""
        while self._unplaced:
            answer = self._unplaced[0]
            is_scaled = answer.alpha != 1
            if self._slots.free < 1 + is_scaled:
                return
            del self._unplaced[0]
            answer.reader = answer.writer = self._slots.take(answer.prompt, 1.0)
            self._owners[answer.reader] = answer
            if is_scaled:
                answer.writer = self._slots.take(answer.prompt, answer.alpha)
                self._owners[answer.writer] = answer

    def _prompts(self, budget: int) -> tuple[list[Slot], int]:
        """Slots whose prompts are read next, and how many tokens of each, within the budget.

        The first prompt in order is one of them. Slots beside it join its decode if they have about
        as many tokens to read: one decode of many tokens is faster than several of few.
        """
        unread = [slot for slot in self._slots.all if len(slot.pending) > 1]
        if not unread or not budget:
            return [], 0
        first = min(unread, key=lambda slot: slot.taken)
        budget = min(budget, self._context.batch)
        count = min(len(first.pending), budget)
        similar = (slot for slot in unread if len(slot.pending) >= count / 2)
        run = next(run for run in _runs(similar) if first in run)
        count = min(count, *(len(slot.pending) for slot in run))
        room = budget // count
        begin = max(0, run.index(first) + 1 - room)
        return run[begin : begin + room], count

    def _decode(self, slots: Sequence[Slot], count: int) -> None:
        """Read the next `count` tokens of each slot in one decode."""
        flags = [self._flags(slot, count) for slot in slots]
        read = np.array([is_read for reads, _ in flags for is_read in reads])
        wanted = np.array([is_output for _, outputs in flags for is_output in outputs])
        begins = [len(slot.held) for slot in slots]
        self._factors[: len(read)] = np.repeat([slot.alpha for slot in slots], count)
        logits = self._context.decode(
            [token for slot in slots for token in slot.pending[:count]],
            (np.array(begins)[:, None] + np.arange(count)).ravel(),
            np.repeat([slot.number for slot in slots], count),
            wanted,
        )
        for slot in slots:
            slot.read(count)
            if self._needs_logits(slot) and not slot.pending:
                row = count * (slots.index(slot) + 1) - 1
                # The next decode of this step overwrites llama.cpp's buffer.
                np.copyto(slot.logits, logits[np.count_nonzero(wanted[:row])])
        rows = np.flatnonzero(read)
        if len(rows):
            self._add_readings([slots[row // count] for row in rows.tolist()], rows, len(read))

    def _add_readings(
        self, slots: Sequence[Slot], rows: Int[np.ndarray, " read"], tokens: int
    ) -> None:
        """Evaluate the probe at rows of the last decode, each of which belongs to a slot."""
        cett = self._readings.cett(tokens)[rows]
        is_finite = np.isfinite(cett).all(axis=1)
        decisions = self.neurons.score_unchecked(np.where(is_finite[:, None], cett, 0))
        for slot, of_token, decision, finite in zip(
            slots, cett, decisions.tolist(), is_finite, strict=True
        ):
            answer = self._owners[slot]
            if not finite:
                answer.fault = HQError("The activations are not finite: the weights are damaged.")
            answer.add_reading(of_token, decision)

    def _flags(self, slot: Slot, count: int) -> tuple[list[bool], list[bool]]:
        """Which of the next tokens are read by the probe, and which are outputs of the decode."""
        read = self._owners[slot].needs_reading(slot, count)
        outputs = list(read) if self._reads_last else [False] * count
        outputs[-1] |= self._needs_logits(slot) and count == len(slot.pending)
        return read, outputs

    def _needs_logits(self, slot: Slot) -> bool:
        """Whether logits after the last pending token are used."""
        answer = self._owners[slot]
        is_used = slot is answer.writer or self._combination is not None
        return is_used and not answer.is_complete


def _runs(slots: Iterable[Slot]) -> list[list[Slot]]:
    """Split slots into runs of consecutive numbers: the sequences that one decode takes."""
    runs = groupby(enumerate(slots), lambda pair: pair[1].number - pair[0])
    return [[slot for _, slot in run] for _, run in runs]
