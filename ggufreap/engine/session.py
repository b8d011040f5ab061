"""One loaded model in llama.cpp, through llama-cpp-python's low-level API."""

import ctypes
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.nodes import FINAL_NORM, RoutingNodes
from ggufreap.engine import log
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.importance_tap import ImportanceTap
from ggufreap.engine.native import TensorReader, bindings
from ggufreap.engine.protocol import Keep, RoutedBatch, Tokens
from ggufreap.engine.taps import MaskTap, NodeHandler, RoutingTap, StopTap, Tap, Together
from ggufreap.errors import EngineError
from ggufreap.interrupts import held


@dataclass(frozen=True)
class EngineSettings:
    """How llama.cpp runs; names and defaults are llama.cpp's own flags (`-c -ub -t -ngl`).

    `n_ctx`: tokens per chunk; `n_ubatch`: tokens computed at once; `n_threads` 0: one per core this process may use;
    `n_gpu_layers` -1: as many as llama.cpp chooses; `exact`: no half precision in attention, for comparisons.
    """

    n_ctx: int = 512
    n_ubatch: int = 512
    n_threads: int = 0
    n_gpu_layers: int = -1
    exact: bool = False


class LlamaSession:
    """Loads `path` (the first shard of a split set) and runs chunks through it; use it in a `with` statement.

    Implements ggufreap.engine.protocol.Engine. Raises EngineError when llama.cpp refuses the model.
    """

    def __init__(self, path: Path, nodes: RoutingNodes, settings: EngineSettings) -> None:
        self._llama = llama = bindings()
        self._nodes = nodes
        self._n_ctx = settings.n_ctx
        self._n_batch = min(settings.n_ubatch, settings.n_ctx) if nodes.causal else settings.n_ctx
        self._reader = TensorReader()
        self._tap: Tap | None = None
        self._handler: NodeHandler | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._model = self._context = self._batch = None
        log.install(llama)
        llama.llama_backend_init()
        self._model = self._load(path, settings)
        self._vocab = llama.llama_model_get_vocab(self._model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.bos: int | None = (
            llama.llama_vocab_bos(self._vocab) if llama.llama_vocab_get_add_bos(self._vocab) else None
        )
        # Kept for the life of the context: llama.cpp holds only the address.
        self._callback = llama.ggml_backend_sched_eval_callback(self._on_node)
        self._context = self._open(path, settings)
        self._batch = llama.llama_batch_init(self._n_batch, 0, 1)

    def _load(self, path: Path, settings: EngineSettings) -> Any:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = settings.n_gpu_layers
        model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            self.close()
            raise EngineError(f"llama.cpp does not load {path}: {log.reason()}")
        return model

    def _open(self, path: Path, settings: EngineSettings) -> Any:
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = self._n_ctx
        parameters.n_batch = parameters.n_ubatch = self._n_batch
        n_threads = settings.n_threads or default_threads()
        parameters.n_threads = parameters.n_threads_batch = n_threads
        parameters.cb_eval = self._callback
        if settings.exact:
            parameters.type_k = parameters.type_v = self._llama.GGML_TYPE_F32
            parameters.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if self._nodes.headless:
            parameters.embeddings, parameters.pooling_type = True, self._llama.LLAMA_POOLING_TYPE_NONE
        context = self._llama.llama_init_from_model(self._model, parameters)
        if not context:
            self.close()
            raise EngineError(f"llama.cpp cannot run {path} with -c {self._n_ctx}: {log.reason()}; lower -c or -ub")
        return context

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the model; further calls do nothing."""
        llama = self._llama
        for handle, free in (
            (self._batch, llama.llama_batch_free),
            (self._context, llama.llama_free),
            (self._model, llama.llama_model_free),
        ):
            if handle is not None:
                free(handle)
        self._batch = self._context = self._model = None

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of `text`, by default as llama-imatrix makes them: special tokens added, none parsed."""
        llama = self._llama
        if llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_NONE or self.n_vocab == 0:
            raise EngineError("this model has no tokenizer; give token ids with --tokens IDS.npy")
        data = text.encode()
        tokens = np.empty(len(data) + 8, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama.llama_tokenize(
            self._vocab, data, len(data), pointer, len(tokens), add_special, parse_special
        )
        if count < 0:
            raise EngineError("llama.cpp cannot tokenise the text with this model's vocabulary; use --tokens IDS.npy")
        return tokens[:count].copy()

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`."""
        pieces = []
        for token in tokens:
            buffer = ctypes.create_string_buffer(256)
            length = self._llama.llama_token_to_piece(self._vocab, int(token), buffer, len(buffer), 0, False)
            pieces.append(buffer.raw[: max(length, 0)])
        return b"".join(pieces).decode(errors="replace")

    def route(self, tokens: Tokens, importance: ImportanceSums | None = None) -> list[RoutedBatch]:
        """What every MoE block did with one chunk, whose squared inputs are added to `importance`.

        The graph ends where nothing more is wanted: without the importance matrix at the last block's experts, with it
        before the output head, unless its input is wanted too.
        """
        routing = RoutingTap(self._nodes, self._reader, stop=importance is None)
        tap: Tap = routing
        if importance is not None:
            end = [] if importance.output else [StopTap(FINAL_NORM)]
            tap = Together((routing, ImportanceTap(importance, self._reader), *end))
        for _ in self._decode(tokens, tap):
            pass
        return routing.batches

    def logits(self, tokens: Tokens, keep: Keep | None = None, scored_from: int = 0) -> npt.NDArray[np.float32]:
        """Logits `[n_tokens - scored_from, n_vocab]` of one chunk, experts outside `keep` masked.

        Rows before `scored_from` are left out, and so is their way through the output head and the last block's
        experts. Of a model without output head: its final hidden states `[n_tokens - scored_from, n_embd]`.
        """
        tap = MaskTap(self._nodes, keep, self._reader) if keep else None
        llama = self._llama
        if self._nodes.headless:
            width, get = llama.llama_model_n_embd(self._model), llama.llama_get_embeddings
        else:
            width, get = self.n_vocab, llama.llama_get_logits
        first = 0 if self._nodes.headless else scored_from  # hidden states come for all tokens or none
        result = np.empty((len(tokens) - scored_from, width), np.float32)
        for start, count in self._decode(tokens, tap, first):
            skipped, wanted = max(first - start, 0), max(scored_from - start, 0)
            if wanted < count:
                rows = np.ctypeslib.as_array(get(self._context), (count - skipped, width))[wanted - skipped :]
                result[start + wanted - scored_from :][: len(rows)] = rows
        return result

    def _decode(self, tokens: Tokens, tap: Tap | None, first_output: int = 0) -> Iterator[tuple[int, int]]:
        """Decode one chunk from an empty memory, micro-batch by micro-batch; yields (start, count) after each.

        Tokens from `first_output` on are outputs: the last block computes only those rows (src/models, inp_out_ids).
        """
        if len(tokens) > self._n_ctx:
            raise EngineError(f"a chunk of {len(tokens)} tokens does not fit -c {self._n_ctx}; raise -c")
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._tap = tap
        try:
            for start in range(0, len(tokens), self._n_batch):
                part = tokens[start : start + self._n_batch]
                self._fill_batch(part, start, first_output)
                if tap is not None:
                    tap.begin()
                # Raised inside the callback, a KeyboardInterrupt would be printed by ctypes and lost.
                with held(notice=self._stop):
                    status = self._llama.llama_decode(self._context, self._batch)
                if self._failure is not None:
                    raise self._failure
                if status != 0:
                    raise EngineError(
                        f"llama.cpp cannot decode a chunk (llama_decode returned {status}); lower -c or -ub"
                    )
                yield start, len(part)
        finally:
            self._tap = self._failure = None
            self._stopping = False

    def _stop(self) -> None:
        self._stopping = True

    def _fill_batch(self, tokens: Tokens, start: int, first_output: int) -> None:
        batch, count = self._batch, len(tokens)
        assert batch is not None  # only None once closed
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.token, (count,))[:] = tokens
        positions = np.arange(start, start + count)
        np.ctypeslib.as_array(batch.pos, (count,))[:] = positions
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (count,))[:] = positions >= first_output
        for index in range(count):
            batch.seq_id[index][0] = 0

    def _on_node(self, pointer: int, ask: bool, _data: int) -> bool:
        """ggml_backend_sched_eval_callback: asked about every node first, called again with each wanted one.

        An exception cannot cross C, so it is kept for `_decode`; the graph then ends at the next node.
        """
        if self._stopping:
            return ask
        if self._tap is None:
            return False
        try:
            if ask:
                self._handler = self._tap.handler_of(pointer)
                return self._handler is not None
            return self._handler is None or self._handler(pointer)
        except BaseException as error:
            self._failure, self._stopping = error, True
            return False


def default_threads() -> int:
    """The cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
