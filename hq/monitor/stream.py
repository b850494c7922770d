"""Text and steps of an answer, as transformers generates it in another thread."""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from hq.errors import HQError
from hq.monitor.recorder import Recorder, Recording
from hq.monitor.step import Step

_Item = tuple[str, Step | None] | BaseException | None  # None ends the answer


class StepStreamer(BaseStreamer):  # type: ignore[misc]  # transformers is not followed
    """Iterates over (text, Step), one pair per token, of one answer; pass it to `generate`.

    A pair comes when the model has read its token: one token after its choice. The text is empty
    while a character is incomplete. The model never reads the last token of an answer that was cut
    off: its text comes with None. Iterating raises what `generate` raised.
    """

    def __init__(self, monitor: Recording, tokenizer: Any) -> None:
        self._monitor = monitor
        self._tokenizer = tokenizer
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._ids: list[int] | None = None  # None until the prompt was put
        self._given = 0  # tokens that are in the queue
        self._shown = ""

    def __iter__(self) -> Iterator[tuple[str, Step | None]]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def put(self, value: Int[Tensor, "..."]) -> None:
        """Take the prompt, then each token. Raises HQError for a batch, or outside the monitor."""
        rows = self._recorder().rows
        if self._ids is None:
            if value.ndim != 2 or len(value) != 1:
                raise HQError(
                    "A stream is of one answer: generate without a batch, or read `rows`."
                )
            self._ids, self._given, self._shown = [], 0, ""
            return
        self._ids += value.tolist()
        self._give_read(rows)

    def end(self) -> None:
        """End the answer."""
        recorder, ids = self._recorder(), self._ids or []
        self._give_read(recorder.rows)
        if self._given < len(ids) and ids[self._given] not in (recorder.ends or ()):
            self._give(None)
        self._queue.put(None)
        self._ids = None

    def fail(self, error: BaseException) -> None:
        """End the iteration with this error."""
        self._queue.put(error)
        self._ids = None

    def _recorder(self) -> Recorder:
        try:
            return self._monitor.live()
        except HQError as error:  # for the thread that iterates: no monitor watches this `generate`
            self.fail(error)
            raise

    def _give_read(self, rows: Sequence[Sequence[Step]]) -> None:
        known = len(self._ids or [])  # on Apple's GPUs, tokens come later than their steps
        for step in rows[0][self._given : known] if rows else ():
            self._give(step)

    def _give(self, step: Step | None) -> None:
        assert self._ids is not None
        self._given += 1
        text = self._tokenizer.decode(self._ids[: self._given], skip_special_tokens=True)
        piece = "" if text.endswith("\ufffd") else text[len(self._shown) :]
        self._shown += piece
        self._queue.put((piece, step))
