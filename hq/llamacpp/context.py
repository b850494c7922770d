"""A llama.cpp context: the keys and values of some sequences, and decoding with them."""

import ctypes
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.llamacpp.attention import EXACT, Attention
from hq.llamacpp.library import load_library
from hq.llamacpp.observer import ActiveFactors, GraphObserver

if TYPE_CHECKING:
    from hq.llamacpp.model import LlamaModel

_INT32_MAX = 2**31 - 1
_CACHE_INTACT = (0, 1, -1)  # llama_decode's codes after which all sequences are still defined


class Context:
    """Keys and values of up to 256 sequences, and the observer that reads and scales in them.

    By default arithmetic is as exact as the weights allow: keys and values are F32, and flash
    attention is off. Every operation runs on the device of its layer's weights, whatever the number
    of tokens.

    Args:
        model: The model, whose handles own the context.
        observer: Reads and scales activations, in this context only.
        tokens: Number of tokens that fit, over all sequences.
        batch: Number of tokens that one decode may have.
        sequences: Number of sequences.
        threads: Number of CPU threads.
        callback: An eval callback in place of an observer.
        attention: Flash attention or not, and the types of keys and values.
        unified: Whether sequences share the cells. If not, each has tokens ÷ sequences of its own
            (a multiple of 256) and attends to no others' cells, which is faster; a decode then
            takes as many tokens of each of several consecutive sequences, sorted by sequence.
    """

    def __init__(
        self,
        model: "LlamaModel",
        observer: GraphObserver | None,
        *,
        tokens: int = 4096,
        batch: int = 2048,
        sequences: int = 1,
        threads: int = 1,
        callback: Any = None,
        attention: Attention = EXACT,
        unified: bool = True,
    ) -> None:
        llama = load_library().llama
        batch = min(batch, tokens)  # as llama.cpp does
        for what, number in (("tokens", tokens), ("batch", batch), ("threads", threads)):
            _require_range(what, number, 1, _INT32_MAX)
        _require_range("sequences", sequences, 1, llama.llama_max_parallel_sequences())
        settings = llama.llama_context_default_params()
        settings.n_ctx = tokens
        settings.n_batch = settings.n_ubatch = batch
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = (  # never AUTO, which lets llama.cpp choose
            llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if attention.flash
            else llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
        settings.type_k, settings.type_v = (
            getattr(llama, f"GGML_TYPE_{kind.upper()}")
            for kind in (attention.keys, attention.values)
        )
        settings.kv_unified = unified  # shared: a prefix is stored once, and batches keep order
        settings.swa_full = True
        settings.op_offload = False  # otherwise 32 tokens and more would be computed on a GPU
        settings.offload_kqv = not model.on_host
        if observer is not None:
            from hq.llamacpp.callback import address  # compiles, so only when it is needed

            _require_range("batch", batch, 1, observer.capacity)
            callback = llama.ggml_backend_sched_eval_callback(address())
            settings.cb_eval_user_data = observer.attach()
        if callback is not None:
            settings.cb_eval = callback
        self._observer = observer
        self.model, self.capacity, self.batch, self.sequences = model, tokens, batch, sequences
        load_library().errors.clear()
        context = llama.llama_init_from_model(model.handle, settings)
        if not context:
            raise HQError(
                f"llama.cpp cannot create a context of {tokens} tokens with {model.path}: "
                f"{load_library().reason()}."
            )
        self._key = model.handles.adopt(context, keep_alive=(observer, callback))
        self._free = weakref.finalize(self, model.handles.free_context, self._key)
        self._batch = TokenBatch(llama, batch, model.vocabulary, sequences)
        self.is_valid = True  # whether its sequences are defined; False from a failure to `clear`

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free it; a second call has no effect."""
        self._free()

    @property
    def factors(self) -> ActiveFactors:
        """The factors that scale activations now."""
        return [] if self._observer is None else self._observer.factors

    def decode(
        self,
        tokens: Sequence[int] | Int[np.ndarray, " n"],
        positions: Sequence[int] | Int[np.ndarray, " n"],
        sequences: Sequence[int] | Int[np.ndarray, " n"],
        wanted: ArrayLike,
    ) -> Float[np.ndarray, "output vocab"]:
        """Compute tokens, each at a position of a sequence; return the logits after some of them.

        Args:
            tokens: Token ids.
            positions: The position of each token in its sequence.
            sequences: The sequence of each token.
            wanted: For each token, whether its logits are returned.

        Returns:
            A view that is valid until the next decode or `close`: copy what must outlive it.

        Raises HQError if the arrays do not fit, if llama.cpp fails, or if activations could not be
        read. After the last two, call `clear` before the next decode.
        """
        handle, llama = self._handle, load_library().llama
        if not self.is_valid:
            raise HQError(f"A decode with {self.model.path} failed: clear its context first.")
        batch, outputs = self._batch.filled(tokens, positions, sequences, wanted)
        if self._observer is not None:
            self._observer.begin(len(tokens), outputs)
        load_library().errors.clear()
        self.is_valid = False
        code = llama.llama_decode(handle, batch)
        self.is_valid = code in _CACHE_INTACT
        if code != 0:
            reason = "its cache is full" if code == 1 else f"code {code}, {load_library().reason()}"
            raise HQError(
                f"llama.cpp could not decode {len(tokens)} tokens of {self.model.path}: {reason}."
            )
        if self._observer is not None and not self._observer.idle:
            llama.llama_synchronize(handle)
            self.is_valid = False
            self._observer.end()
            self.is_valid = True
        shape = (len(outputs), self.model.vocabulary)
        if not len(outputs):
            return np.empty(shape, dtype=np.float32)
        address = ctypes.cast(llama.llama_get_logits(handle), ctypes.c_void_p).value
        logits: Any = (ctypes.c_float * (shape[0] * shape[1])).from_address(address or 0)
        logits.context = self  # keeps the context, and so this memory, as long as the view lives
        return np.frombuffer(logits, dtype=np.float32).reshape(shape)

    def adapt(self, adapter: Any, scale: float) -> None:
        """Apply a LoRA adapter of the model, times `scale`, in this context; it replaces others."""
        handle, llama = self._handle, load_library().llama
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama.llama_set_adapters_lora(handle, adapters, 1, (ctypes.c_float * 1)(scale)):
            raise HQError(f"llama.cpp could not set an adapter of {self.model.path}.")

    def clear(self) -> None:
        """Remove every sequence."""
        load_library().llama.llama_memory_clear(self._memory, False)
        self.is_valid = True

    def copy(self, source: int, target: int) -> None:
        """Let `target` continue the sequence `source`; the two share its cells."""
        for sequence in (source, target):
            _require_range("sequence", sequence, 0, self.sequences - 1)
        load_library().llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int, keep: int = 0) -> bool:
        """Remove a sequence after its first `keep` tokens; a closed context has none to remove.

        Returns False, and removes nothing, if the model cannot keep a part of a sequence.
        """
        _require_range("sequence", sequence, 0, self.sequences - 1)
        if self._key not in self.model.handles.contexts:
            return True
        memory, llama = self._memory, load_library().llama
        return bool(llama.llama_memory_seq_rm(memory, sequence, keep or -1, -1))

    @property
    def _handle(self) -> Any:
        """llama.cpp's context. Raises HQError if it or its model is closed."""
        context = self.model.handles.contexts.get(self._key)
        if context is None:
            raise HQError(f"A context of {self.model.path} is closed: open another.")
        return context

    @property
    def _memory(self) -> Any:
        return load_library().llama.llama_get_memory(self._handle)


class TokenBatch:
    """A llama_batch over arrays that Python owns, filled without a Python loop.

    llama.cpp does not check positions and sequences, and NumPy shortens int64 to int32 silently,
    so every value is checked here.
    """

    def __init__(self, llama: Any, capacity: int, vocabulary: int, sequences: int) -> None:
        limits = (vocabulary, _INT32_MAX, sequences)
        self._limits = np.array(limits)[:, None]
        self._ranges = tuple(zip(("token ids", "positions", "sequences"), limits, strict=True))
        self._numbers = np.zeros((3, capacity), dtype=np.int32)  # tokens, positions, sequences
        self._counts = np.ones(capacity, dtype=np.int32)
        self._wanted = np.zeros(capacity, dtype=np.int8)
        # llama.cpp takes one pointer per token to its sequences; here every token has one sequence.
        addresses = self._numbers[2].ctypes.data + 4 * np.arange(capacity)
        self._pointers = addresses.astype(np.uintp)
        self._struct = llama.llama_batch()
        for field, array in (
            ("token", self._numbers[0]),
            ("pos", self._numbers[1]),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            kind = dict(llama.llama_batch._fields_)[field]
            setattr(self._struct, field, ctypes.cast(array.ctypes.data, kind))

    def filled(
        self, tokens: ArrayLike, positions: ArrayLike, sequences: ArrayLike, wanted: ArrayLike
    ) -> tuple[Any, Int[np.ndarray, " output"]]:
        """Return the struct with these values, and the indices of the tokens with logits.

        Raises HQError if the arrays differ in length or exceed the capacity, or if a token,
        position or sequence is out of range.
        """
        outputs: Bool[np.ndarray, " token"] = np.asarray(wanted) != 0
        count, capacity = outputs.size, len(self._counts)
        shapes = {np.shape(numbers) for numbers in (tokens, positions, sequences)}
        if shapes != {(count,)} or outputs.ndim != 1 or not 0 < count <= capacity:
            raise HQError(
                f"A decode takes 1 to {capacity} tokens, with a position, a sequence and a flag "
                f"each: pass arrays of one length, not of the shapes {shapes | {outputs.shape}}."
            )
        numbers = np.array((tokens, positions, sequences))
        with np.errstate(invalid="ignore"):  # NaN becomes a number, which differs from NaN below
            integers = numbers.astype(np.int64)
        if (integers != numbers).any() or integers.min() < 0 or (integers >= self._limits).any():
            ranges = " and ".join(f"{what} below {limit}" for what, limit in self._ranges)
            raise HQError(
                f"A decode takes {ranges}, as integers from 0: use ids of this model and context."
            )
        self._numbers[:, :count] = integers
        self._wanted[:count] = outputs
        self._struct.n_tokens = count
        return self._struct, np.flatnonzero(outputs)


def _require_range(what: str, number: int, low: int, high: int) -> None:
    """Raises HQError for a number that llama.cpp would misread or abort at."""
    if not low <= number <= high:
        raise HQError(f"A context takes {what} from {low} to {high}, not {number}.")
