"""A GGUF file loaded by llama.cpp, and contexts that decode with it."""

import ctypes
import weakref
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from hq.errors import HQError
from hq.llama.library import library
from hq.llama.products import ProductFinder, Products
from hq.llama.tap import Tap

_F32 = 0  # GGML_TYPE_F32
_FLASH_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED


class LlamaModel:
    """The weights. A context manager; `close` frees them, and every context made of them first.

    Raises HQError for a file that llama.cpp does not load.
    """

    def __init__(self, path: Path, n_gpu_layers: int = 0) -> None:
        self.path = path
        llama = library().llama
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = n_gpu_layers
        library().errors.clear()
        self._model = llama.llama_model_load_from_file(str(path).encode(), settings)
        if not self._model:
            raise HQError(f"llama.cpp cannot load {path}: {library().why()}.")
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._vocabulary = llama.llama_model_get_vocab(self._model)
        self.vocabulary: int = llama.llama_vocab_n_tokens(self._vocabulary)

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees contexts and weights; nothing happens the second time."""
        for context in list(self._contexts):
            context.close()
        if self._model:
            library().llama.llama_model_free(self._model)
            self._model = None

    def context(self, tap: Tap | None, **settings: int) -> "Context":
        """A new context; see Context for its settings."""
        context = Context(self, tap, **settings)
        self._contexts.add(context)
        return context

    @property
    def handle(self) -> Any:
        """llama.cpp's own. Raises HQError once the model is closed."""
        if not self._model:
            raise HQError(f"{self.path} is closed: open it again.")
        return self._model

    def adapter(self, path: Path) -> Any:
        """A LoRA read from a GGUF file, for `Context.adapt`; it lives as long as the model.

        Raises HQError for a file that llama.cpp does not load, or made for another architecture.
        """
        llama = library().llama
        library().errors.clear()
        adapter = llama.llama_adapter_lora_init(self.handle, bytes(path))
        if not adapter:
            raise HQError(f"llama.cpp cannot load the adapter {path}: {library().why()}.")
        return adapter

    def products(self, layers: int, d_ff: int) -> Products:
        """Where the FFN products are in the graph, asked of a decode of one token."""
        llama = library().llama
        finder = ProductFinder(self.path.name)
        callback = llama.ggml_backend_sched_eval_callback(finder)
        with Context(self, None, tokens=32, batch=8, callback=callback) as context:
            context.decode([0], [0], [0], [True])
        return finder.products(layers, d_ff)

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text."""
        raw = text.encode()
        room = (ctypes.c_int32 * (len(raw) + 8))()
        count = library().llama.llama_tokenize(
            self._vocabulary, raw, len(raw), room, len(room), add_special, parse_special
        )
        return list(room[:count])

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token, which need not be whole characters."""
        room = ctypes.create_string_buffer(256)
        count = library().llama.llama_token_to_piece(
            self._vocabulary, token, room, len(room), 0, special
        )
        return room.raw[: max(count, 0)]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generation."""
        llama = library().llama
        return frozenset(
            token
            for token in range(self.vocabulary)
            if llama.llama_vocab_is_eog(self._vocabulary, token)
        )


class Context:
    """Keys and values of up to 256 sequences, and the callback that reads and scales. Close it.

    `tokens` is how many of them fit, over all sequences; `batch` how many one decode may have.
    Arithmetic is as exact as the weights allow: keys and values in F32, no flash attention.
    """

    def __init__(
        self,
        model: LlamaModel,
        tap: Tap | None,
        *,
        tokens: int = 4096,
        batch: int = 2048,
        sequences: int = 1,
        threads: int = 1,
        callback: Any = None,
    ) -> None:
        llama = library().llama
        settings = llama.llama_context_default_params()
        settings.n_ctx = tokens
        settings.n_batch = settings.n_ubatch = batch
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = _FLASH_OFF
        settings.type_k = settings.type_v = _F32
        settings.kv_unified = True  # sequences share the cells of a prefix, and batches keep order
        settings.swa_full = True
        if tap is not None:
            from hq.llama.native import address  # compiles, so only when it is needed

            callback = llama.ggml_backend_sched_eval_callback(address())
            settings.cb_eval_user_data = tap.address
        if callback is not None:
            settings.cb_eval = callback
        self._alive = (model, tap, callback)  # what llama.cpp has pointers to
        self._tap = tap
        self.model, self.capacity, self.batch, self.sequences = model, tokens, batch, sequences
        library().errors.clear()
        self._context = llama.llama_init_from_model(model.handle, settings)
        if not self._context:
            raise HQError(
                f"llama.cpp cannot make a context of {tokens} tokens with {model.path}: "
                f"{library().why()}."
            )
        self._memory = llama.llama_get_memory(self._context)
        self._batch = _Batch(llama, batch)

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees it; nothing happens the second time."""
        if self._context:
            library().llama.llama_free(self._context)
            self._context = None

    def decode(
        self,
        tokens: Sequence[int] | Int[np.ndarray, " n"],
        positions: Sequence[int] | Int[np.ndarray, " n"],
        sequences: Sequence[int] | Int[np.ndarray, " n"],
        wanted: ArrayLike,
    ) -> Float[np.ndarray, "output vocab"]:
        """Computes tokens, each of a sequence at a position; the logits after the wanted ones.

        The logits are a view that the next decode overwrites. Raises HQError where llama.cpp fails,
        or the FFN products could not be read; the context's sequences are then undefined.
        """
        self._require_open()
        llama, count = library().llama, len(tokens)
        outputs = np.flatnonzero(wanted).astype(np.int64)
        if self._tap is not None:
            self._tap.begin(count, outputs)
        code = llama.llama_decode(
            self._context, self._batch.filled(tokens, positions, sequences, wanted)
        )
        if code != 0:
            reason = "its cache is full" if code == 1 else f"code {code}, {library().why()}"
            raise HQError(
                f"llama.cpp could not decode {count} tokens of {self.model.path}: {reason}."
            )
        if self._tap is not None and not self._tap.idle:
            llama.llama_synchronize(self._context)
            self._tap.end()
        shape = (len(outputs), self.model.vocabulary)
        if not len(outputs):
            return np.empty(shape, dtype=np.float32)
        return np.ctypeslib.as_array(llama.llama_get_logits(self._context), shape)

    def adapt(self, adapter: Any, scale: float) -> None:
        """Adds a LoRA of the model, times `scale`, to its weights in this context: it alone."""
        self._require_open()
        llama = library().llama
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama.llama_set_adapters_lora(self._context, adapters, 1, (ctypes.c_float * 1)(scale)):
            raise HQError(f"llama.cpp could not set an adapter of {self.model.path}.")

    def clear(self) -> None:
        """Forgets every sequence."""
        self._require_open()
        library().llama.llama_memory_clear(self._memory, False)

    def copy(self, source: int, target: int) -> None:
        """Lets `target` go on from all of `source`, whose cells they then share."""
        self._require_open()
        library().llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int) -> None:
        """Removes a sequence; a closed context has none."""
        if self._context:
            library().llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def _require_open(self) -> None:
        if not self._context:
            raise HQError(f"A context of {self.model.path} is closed: open another.")


class _Batch:
    """A llama_batch over arrays of ours, filled without a Python loop."""

    def __init__(self, llama: Any, capacity: int) -> None:
        self._token, self._position, self._sequence, self._count = np.zeros(
            (4, capacity), dtype=np.int32
        )
        self._count[:] = 1
        self._wanted = np.zeros(capacity, dtype=np.int8)
        # llama.cpp takes a pointer a token to its sequences; every token here has one.
        addresses = self._sequence.ctypes.data + 4 * np.arange(capacity)
        self._pointers = addresses.astype(np.uintp)
        self._struct = llama.llama_batch()
        for field, array in (
            ("token", self._token),
            ("pos", self._position),
            ("n_seq_id", self._count),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            kind = dict(llama.llama_batch._fields_)[field]
            setattr(self._struct, field, ctypes.cast(array.ctypes.data, kind))

    def filled(self, tokens: Any, positions: Any, sequences: Any, wanted: Any) -> Any:
        """The struct, with these values in it."""
        count = len(tokens)
        self._struct.n_tokens = count
        self._token[:count] = tokens
        self._position[:count] = positions
        self._sequence[:count] = sequences
        self._wanted[:count] = wanted
        return self._struct
