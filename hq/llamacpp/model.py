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
from hq.llamacpp.batch import TokenBatch
from hq.llamacpp.graph import GraphNodeFinder, GraphNodes
from hq.llamacpp.library import library
from hq.llamacpp.memory import Allocated
from hq.llamacpp.observer import Factors, GraphObserver

_F32 = 0  # GGML_TYPE_F32
_FLASH_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
_MOST = 2**31 - 1
_RESTORED = (0, 1, -1)  # codes after which all sequences are as they should be


class LlamaModel:
    """The weights. A context manager; `close` frees them, and every context made of them first.

    What is not closed is freed when Python collects it. `paths` are the parts of the file, in
    order. `n_gpu_layers` counts from the last layer, the output's included; 0 keeps everything on
    the CPU, -1 puts everything on the GPU.

    Raises HQError for a file that llama.cpp does not load, and for GPU layers without a GPU.
    """

    def __init__(self, *paths: Path, n_gpu_layers: int = 0) -> None:
        self.path = paths[0]
        self.on_host = n_gpu_layers == 0
        _require_gpu(n_gpu_layers)
        llama = library().llama
        settings = llama.llama_model_default_params()
        settings.n_gpu_layers = n_gpu_layers
        none = (ctypes.c_void_p * 1)()  # a list of devices that ends at once
        if self.on_host:
            settings.devices = ctypes.addressof(none)
        library().errors.clear()
        names = (ctypes.c_char_p * len(paths))(*map(bytes, paths))
        model = llama.llama_model_load_from_splits(names, len(paths), settings)
        if not model:
            raise HQError(f"llama.cpp cannot load {self.path}: {library().why()}.")
        self.allocated = Allocated(llama, model)
        self._free = weakref.finalize(self, self.allocated.free)
        self._vocabulary = llama.llama_model_get_vocab(model)
        self.vocabulary: int = llama.llama_vocab_n_tokens(self._vocabulary)

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees contexts and weights; the second call has no effect."""
        self._free()

    def context(self, tap: GraphObserver | None, **settings: int) -> "Context":
        """A new context; see Context for its settings."""
        return Context(self, tap, **settings)

    @property
    def handle(self) -> Any:
        """llama.cpp's own. Raises HQError once the model is closed."""
        if self.allocated.model is None:
            raise HQError(f"{self.path} is closed: open it again.")
        return self.allocated.model

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

    def products(self, layers: int, d_ff: int) -> GraphNodes:
        """Where the FFN products are in the graph, asked of a decode of one token."""
        llama = library().llama
        finder = GraphNodeFinder(self.path.name)
        callback = llama.ggml_backend_sched_eval_callback(finder)
        with Context(self, None, tokens=32, batch=8, callback=callback) as context:
            context.decode([0], [0], [0], [True])
        return finder.products(layers, d_ff)

    def tokenize(
        self, text: str, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text. Raises HQError for a text that is not Unicode."""
        vocabulary = self._open_vocabulary
        try:
            raw = text.encode()
        except UnicodeEncodeError as error:
            raise HQError(
                f"A text has half of a surrogate pair at character {error.start}, which is no "
                "Unicode: correct it where it was written."
            ) from error
        size = len(raw) + 8
        while True:
            room = (ctypes.c_int32 * size)()
            count = library().llama.llama_tokenize(
                vocabulary, raw, len(raw), room, size, add_special, parse_special
            )
            if count >= 0:
                return list(room[:count])
            size = -count  # what it takes

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of a token, which need not be whole characters.

        Raises HQError for a token that the model lacks.
        """
        vocabulary = self._open_vocabulary
        if not 0 <= token < self.vocabulary:
            raise HQError(f"{self.path} has no token {token}: it has {self.vocabulary}.")
        size = 256
        while True:
            room = ctypes.create_string_buffer(size)
            count = library().llama.llama_token_to_piece(vocabulary, token, room, size, 0, special)
            if count >= 0:
                return room.raw[:count]
            size = -count

    @cached_property
    def ends(self) -> frozenset[int]:
        """Tokens that end a generation."""
        llama, vocabulary = library().llama, self._open_vocabulary
        return frozenset(
            token for token in range(self.vocabulary) if llama.llama_vocab_is_eog(vocabulary, token)
        )

    @property
    def _open_vocabulary(self) -> Any:
        """llama.cpp's vocabulary, which is freed with the model."""
        return self.handle and self._vocabulary


def _require_gpu(layers: int) -> None:
    """Raises HQError for GPU layers where llama.cpp has no GPU, and for counts below -1."""
    if layers < -1:
        raise HQError(f"n_gpu_layers is {layers}: use -1 for all layers, 0 for the CPU, or more.")
    if layers != 0 and not library().gpus:
        raise HQError(
            f"n_gpu_layers = {layers} needs a GPU, and this build of llama-cpp-python has none "
            "here: rebuild it with CMAKE_ARGS=-DGGML_CUDA=on, or set n_gpu_layers to 0."
        )


class Context:
    """Keys and values of up to 256 sequences, and the callback that reads and scales.

    `tokens` is how many of them fit, over all sequences; `batch` how many one decode may have.
    Arithmetic is as exact as the weights allow: keys and values in F32, no flash attention. Every
    operation runs where the weights of its layer lie, whatever the number of tokens.
    """

    def __init__(
        self,
        model: LlamaModel,
        tap: GraphObserver | None,
        *,
        tokens: int = 4096,
        batch: int = 2048,
        sequences: int = 1,
        threads: int = 1,
        callback: Any = None,
    ) -> None:
        llama = library().llama
        batch = min(batch, tokens)  # as llama.cpp does
        for what, number in (("tokens", tokens), ("batch", batch), ("threads", threads)):
            _require_range(what, number, 1, _MOST)
        _require_range("sequences", sequences, 1, llama.llama_max_parallel_sequences())
        settings = llama.llama_context_default_params()
        settings.n_ctx = tokens
        settings.n_batch = settings.n_ubatch = batch
        settings.n_seq_max = sequences
        settings.n_threads = settings.n_threads_batch = threads
        settings.flash_attn_type = _FLASH_OFF
        settings.type_k = settings.type_v = _F32
        settings.kv_unified = True  # sequences share the cells of a prefix, and batches keep order
        settings.swa_full = True
        settings.op_offload = False  # else 32 tokens and more would be computed on a GPU
        settings.offload_kqv = not model.on_host
        if tap is not None:
            from hq.llamacpp.callback import address  # compiles, so only when it is needed

            _require_range("batch", batch, 1, tap.capacity)
            callback = llama.ggml_backend_sched_eval_callback(address())
            settings.cb_eval_user_data = tap.attach()
        if callback is not None:
            settings.cb_eval = callback
        self._tap = tap
        self.model, self.capacity, self.batch, self.sequences = model, tokens, batch, sequences
        library().errors.clear()
        context = llama.llama_init_from_model(model.handle, settings)
        if not context:
            raise HQError(
                f"llama.cpp cannot make a context of {tokens} tokens with {model.path}: "
                f"{library().why()}."
            )
        self._key = model.allocated.adopt(context, alive=(tap, callback))
        self._free = weakref.finalize(self, model.allocated.free_context, self._key)
        self._batch = TokenBatch(llama, batch, model.vocabulary, sequences)
        self.whole = True  # whether its sequences are defined: until `clear`, not after a failure

    def __enter__(self) -> "Context":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees it; the second call has no effect."""
        self._free()

    @property
    def factors(self) -> Factors:
        """What is scaled in it at present."""
        return [] if self._tap is None else self._tap.factors

    def decode(
        self,
        tokens: Sequence[int] | Int[np.ndarray, " n"],
        positions: Sequence[int] | Int[np.ndarray, " n"],
        sequences: Sequence[int] | Int[np.ndarray, " n"],
        wanted: ArrayLike,
    ) -> Float[np.ndarray, "output vocab"]:
        """Computes tokens, each of a sequence at a position; the logits after the wanted ones.

        The logits are a view that is valid until the next decode, or `close`: copy what is kept.
        Raises HQError for arrays that do not fit, if llama.cpp fails, and if the FFN products could
        not be read; after the latter two nothing can be decoded before `clear`.
        """
        handle, llama = self._handle, library().llama
        if not self.whole:
            raise HQError(f"A decode with {self.model.path} failed: clear its context first.")
        batch, outputs = self._batch.filled(tokens, positions, sequences, wanted)
        if self._tap is not None:
            self._tap.begin(len(tokens), outputs)
        library().errors.clear()
        self.whole = False
        code = llama.llama_decode(handle, batch)
        self.whole = code in _RESTORED
        if code != 0:
            reason = "its cache is full" if code == 1 else f"code {code}, {library().why()}"
            raise HQError(
                f"llama.cpp could not decode {len(tokens)} tokens of {self.model.path}: {reason}."
            )
        if self._tap is not None and not self._tap.idle:
            llama.llama_synchronize(handle)
            self.whole = False
            self._tap.end()
            self.whole = True
        shape = (len(outputs), self.model.vocabulary)
        if not len(outputs):
            return np.empty(shape, dtype=np.float32)
        at = ctypes.cast(llama.llama_get_logits(handle), ctypes.c_void_p).value
        found: Any = (ctypes.c_float * (shape[0] * shape[1])).from_address(at or 0)
        found.context = self  # lives as long as the view, which would else be of freed memory
        return np.frombuffer(found, dtype=np.float32).reshape(shape)

    def adapt(self, adapter: Any, scale: float) -> None:
        """Adds a LoRA of the model, times `scale`, to its weights in this context: it alone."""
        handle, llama = self._handle, library().llama
        adapters = (llama.llama_adapter_lora_p_ctypes * 1)(adapter)
        if llama.llama_set_adapters_lora(handle, adapters, 1, (ctypes.c_float * 1)(scale)):
            raise HQError(f"llama.cpp could not set an adapter of {self.model.path}.")

    def clear(self) -> None:
        """Forgets every sequence."""
        library().llama.llama_memory_clear(self._memory, False)
        self.whole = True

    def copy(self, source: int, target: int) -> None:
        """Lets `target` continue all of `source`, whose cells they then share."""
        for sequence in (source, target):
            _require_range("sequence", sequence, 0, self.sequences - 1)
        library().llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def forget(self, sequence: int) -> None:
        """Removes a sequence; a closed context has none."""
        _require_range("sequence", sequence, 0, self.sequences - 1)
        if self._key in self.model.allocated.contexts:
            library().llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    @property
    def _handle(self) -> Any:
        """llama.cpp's own. Raises HQError once it is closed, or its model is."""
        context = self.model.allocated.contexts.get(self._key)
        if context is None:
            raise HQError(f"A context of {self.model.path} is closed: open another.")
        return context

    @property
    def _memory(self) -> Any:
        return library().llama.llama_get_memory(self._handle)


def _require_range(what: str, number: int, low: int, high: int) -> None:
    """Raises HQError for a number that llama.cpp would take for another one, or abort at."""
    if not low <= number <= high:
        raise HQError(f"A context takes {what} from {low} to {high}, not {number}.")
