"""One loaded model in llama.cpp, through llama-cpp-python's low-level API."""

import ctypes
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap import activity
from ggufreap.architecture.nodes import FINAL_NORM, RoutingNodes
from ggufreap.container.gguf_file import shards_of
from ggufreap.engine import log
from ggufreap.engine.block_tap import BlockTap, NudgeTap, Recorded
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.importance_tap import ImportanceTap
from ggufreap.engine.machine import Machine, chooses_repack, machine
from ggufreap.engine.native import TensorReader, bindings
from ggufreap.engine.protocol import Keep, RoutedBatch, Tokens
from ggufreap.engine.sequences import Sequences
from ggufreap.engine.taps import MaskTap, NodeHandler, RoutingTap, StopTap, Tap, Together
from ggufreap.errors import EngineError
from ggufreap.interrupts import held

NO_ROOM = 1  # what llama_decode returns when the memory has no free cells (include/llama.h)


@dataclass(frozen=True)
class EngineSettings:
    """How llama.cpp runs; names and defaults are llama.cpp's own flags (`-c -ub -t -ngl -np`).

    `n_ctx`: tokens per chunk, or of all sequences together; `n_ubatch`: tokens computed at once; `n_threads` 0: one per
    core this process may use; `n_gpu_layers` -1: as many as llama.cpp chooses; `exact`: no half precision in attention,
    for comparisons; `n_parallel`: sequences in memory at once; `watched`: whether taps may look into the graph, which
    costs a call from C to Python per node; `repack`: whether weights are copied into buffers that suit the CPU better,
    None: as ggufreap.engine.machine.chooses_repack says.
    """

    n_ctx: int = 512
    n_ubatch: int = 512
    n_threads: int = 0
    n_gpu_layers: int = -1
    exact: bool = False
    n_parallel: int = 1
    watched: bool = True
    repack: bool | None = None


class LlamaSession:
    """Loads `path` (the first shard of a split set) and runs chunks through it; use it in a `with` statement.

    Implements ggufreap.engine.protocol.Engine. Raises EngineError when llama.cpp refuses the model. `known`: what works
    on this machine, for whoever is about to find that out.
    """

    def __init__(self, path: Path, nodes: RoutingNodes, settings: EngineSettings, known: Machine | None = None) -> None:
        self._llama = llama = bindings()
        self._nodes = nodes
        self.n_ctx, self.n_parallel, self._watched = settings.n_ctx, settings.n_parallel, settings.watched
        self.n_batch = min(settings.n_ubatch, settings.n_ctx) if nodes.causal else settings.n_ctx
        self._reader = TensorReader()
        self._tap: Tap | None = None
        self._handler: NodeHandler | None = None
        self._failure: BaseException | None = None
        self._stopping = False
        self._model = self._context = self._batch = None
        self._running: int | None = None
        with activity.doing(activity.LOADING, path):
            log.install(llama)
            llama.llama_backend_init()
            self._model = self._load(path, settings, known or machine())
            self._vocab = llama.llama_model_get_vocab(self._model)
            self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
            bos: int = llama.llama_vocab_bos(self._vocab)
            self.bos = bos if llama.llama_vocab_get_add_bos(self._vocab) else None
            self.opening = bos if bos >= 0 else int(llama.llama_vocab_eos(self._vocab))  # the token before any text
            # Kept for the life of the context: llama.cpp holds only the address.
            self._callback = llama.ggml_backend_sched_eval_callback(self._on_node)
            self._context = self._open(path, settings)
            self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
        self._running = activity.begin("running", path)

    def _load(self, path: Path, settings: EngineSettings, known: Machine) -> Any:
        parameters = self._llama.llama_model_default_params()
        parameters.n_gpu_layers = settings.n_gpu_layers
        parameters.use_extra_bufts = chooses_repack(sum(map(os.path.getsize, shards_of(path))), settings.repack, known)
        none = (ctypes.c_void_p * 1)()
        if known.devices and not known.offload:
            if settings.n_gpu_layers > 0:
                raise EngineError(
                    f"llama.cpp does not compute on {', '.join(known.devices)}: it {known.reason}; use -ngl 0"
                )
            parameters.n_gpu_layers, parameters.devices = 0, ctypes.cast(none, ctypes.c_void_p)
        model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            self.close()
            raise EngineError(f"llama.cpp does not load {path}: {log.reason()}")
        return model

    def _open(self, path: Path, settings: EngineSettings) -> Any:
        parameters = self._llama.llama_context_default_params()
        parameters.n_ctx = self.n_ctx
        parameters.n_batch = parameters.n_ubatch = self.n_batch
        n_threads = settings.n_threads or default_threads()
        parameters.n_threads = parameters.n_threads_batch = n_threads
        parameters.n_seq_max, parameters.kv_unified = self.n_parallel, self.n_parallel > 1
        if self._watched:
            parameters.cb_eval = self._callback
        if settings.exact:
            parameters.type_k = parameters.type_v = self._llama.GGML_TYPE_F32
            parameters.flash_attn_type = self._llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if self._nodes.headless:
            parameters.embeddings, parameters.pooling_type = True, self._llama.LLAMA_POOLING_TYPE_NONE
        context = self._llama.llama_init_from_model(self._model, parameters)
        if not context:
            self.close()
            raise EngineError(f"llama.cpp cannot run {path} with -c {self.n_ctx}: {log.reason()}; lower -c or -ub")
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
        if self._running is not None:
            activity.end(self._running)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> Tokens:
        """Tokens of `text`, by default as llama-imatrix makes them: special tokens added, none parsed."""
        llama = self._llama
        if llama.llama_vocab_type(self._vocab) == llama.LLAMA_VOCAB_TYPE_NONE or self.n_vocab == 0:
            raise EngineError("this model has no tokenizer; give token ids with --tokens IDS.npy")
        data = text.encode()
        tokens = np.empty(len(data) + 8, np.int32)
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        count = llama.llama_tokenize(self._vocab, data, len(data), pointer, len(tokens), add_special, parse_special)
        if count < 0:
            raise EngineError("llama.cpp cannot tokenise the text with this model's vocabulary; use --tokens IDS.npy")
        return tokens[:count].copy()

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`."""
        pieces = []
        for token in tokens:
            buffer = ctypes.create_string_buffer(256)
            length = self._llama.llama_token_to_piece(self._vocab, int(token), buffer, len(buffer), 0, False)
            if length < 0:  # the buffer is too small: a long run of spaces, in some vocabularies
                buffer = ctypes.create_string_buffer(-length)
                length = self._llama.llama_token_to_piece(self._vocab, int(token), buffer, len(buffer), 0, False)
            pieces.append(buffer.raw[:length])
        return b"".join(pieces).decode(errors="replace")

    def route(
        self, tokens: Tokens, importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> list[RoutedBatch]:
        """What every MoE block did with one chunk, whose squared inputs are added to `importance`.

        The graph ends where nothing more is wanted: without the importance matrix at the last block's experts, with it
        before the output head, unless its input is wanted too.
        """
        routing = RoutingTap(self._nodes, self._reader, observables, stop=importance is None)
        tap: Tap = routing
        if importance is not None:
            end = [] if importance.output else [StopTap(FINAL_NORM)]
            tap = Together((routing, ImportanceTap(importance, self._reader), *end))
        for _ in self._decode(tokens, tap):
            pass
        return routing.batches

    def blocks(
        self, tokens: Tokens, keep: Keep | None = None, given: Recorded | None = None
    ) -> tuple[npt.NDArray[np.float32], Recorded]:
        """Logits of one micro-batch as `logits` gives them, and what its blocks computed (see BlockTap)."""
        recording = BlockTap(self._nodes, self._reader, keep, given)
        return self._logits(tokens, self._masked(recording, keep), 0), recording.found

    def nudged(self, tokens: Tokens, keep: Keep) -> npt.NDArray[np.float32]:
        """Logits as `logits` gives them, with the last bits of the residual stream changed once (see NudgeTap)."""
        return self._logits(tokens, self._masked(NudgeTap(self._nodes, self._reader), keep), 0)

    def _masked(self, tap: Tap, keep: Keep | None) -> Tap:
        return tap if keep is None else Together((tap, MaskTap(self._nodes, keep, self._reader)))

    def logits(self, tokens: Tokens, keep: Keep | None = None, scored_from: int = 0) -> npt.NDArray[np.float32]:
        """Logits `[n_tokens - scored_from, n_vocab]` of one chunk, experts outside `keep` masked.

        Rows before `scored_from` are left out, and so is their way through the output head and the last block's
        experts. Of a model without output head: its final hidden states `[n_tokens - scored_from, n_embd]`.
        """
        return self._logits(tokens, MaskTap(self._nodes, keep, self._reader) if keep else None, scored_from)

    def _logits(self, tokens: Tokens, tap: Tap | None, scored_from: int) -> npt.NDArray[np.float32]:
        first = 0 if self._nodes.headless else scored_from  # hidden states come for all tokens or none
        result = np.empty((len(tokens) - scored_from, self._width), np.float32)
        for start, count in self._decode(tokens, tap, first):
            skipped, wanted = max(first - start, 0), max(scored_from - start, 0)
            if wanted < count:
                rows = self.outputs(count - skipped)[wanted - skipped :]
                result[start + wanted - scored_from :][: len(rows)] = rows
        return result

    def is_end(self, token: int) -> bool:
        """Whether `token` ends what a model writes, as llama.cpp's programs see it."""
        return bool(self._llama.llama_vocab_is_eog(self._vocab, token))

    def sequences(self, keep: Keep | None = None) -> Sequences:
        """An empty memory for `n_parallel` texts that grow, experts outside `keep` masked; ends the previous one."""
        if self._nodes.headless or not self._nodes.causal:
            raise EngineError("this model reads text but writes none: it has no output head, or looks ahead")
        tap = MaskTap(self._nodes, keep, self._reader) if keep else None
        return Sequences(self, self._memory(), tap)

    def _memory(self) -> Any:
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_clear(memory, True)
        return memory

    def _decode(self, tokens: Tokens, tap: Tap | None, first_output: int = 0) -> Iterator[tuple[int, int]]:
        """Decode one chunk from an empty memory, micro-batch by micro-batch; yields (start, count) after each.

        Tokens from `first_output` on are outputs: the last block computes only those rows (src/models, inp_out_ids).
        """
        if len(tokens) > self.n_ctx:
            raise EngineError(f"a chunk of {len(tokens)} tokens does not fit -c {self.n_ctx}; raise -c")
        self._memory()
        for start in range(0, len(tokens), self.n_batch):
            part = tokens[start : start + self.n_batch]
            positions = np.arange(start, start + len(part))
            self.decode(part, positions, sequences=0, outputs=positions >= first_output, tap=tap)
            yield start, len(part)

    def decode(
        self,
        tokens: Tokens,
        positions: npt.ArrayLike,
        sequences: npt.ArrayLike,
        outputs: npt.ArrayLike,
        tap: Tap | None = None,
    ) -> None:
        """Run `[n]` tokens, `n_batch` at most, at their positions in their sequences; `outputs`: whose logits count."""
        if tap is not None and not self._watched:
            raise EngineError("this session was opened unwatched: no tap can look into its graph")
        self._fill_batch(tokens, positions, sequences, outputs)
        self._tap = tap
        try:
            if tap is not None:
                tap.begin()
            # Raised inside the callback, a KeyboardInterrupt would be printed by ctypes and lost.
            with held(notice=self._stop):
                status = self._llama.llama_decode(self._context, self._batch)
            if self._failure is not None:
                raise self._failure
            if status == NO_ROOM:
                raise EngineError(f"the texts in memory do not fit -c {self.n_ctx} together; raise -c or lower -np")
            if status != 0:
                raise EngineError(f"llama.cpp cannot decode a chunk (llama_decode returned {status}); lower -c or -ub")
        finally:
            self._tap = self._failure = None
            self._stopping = False

    def outputs(self, count: int) -> npt.NDArray[np.float32]:
        """The logits `[count, n_vocab]` that `decode` just computed, or hidden states; llama.cpp's own memory."""
        llama = self._llama
        get = llama.llama_get_embeddings if self._nodes.headless else llama.llama_get_logits
        return np.ctypeslib.as_array(get(self._context), (count, self._width))

    @property
    def _width(self) -> int:
        return int(self._llama.llama_model_n_embd(self._model)) if self._nodes.headless else self.n_vocab

    def _stop(self) -> None:
        self._stopping = True

    def _fill_batch(
        self, tokens: Tokens, positions: npt.ArrayLike, sequences: npt.ArrayLike, outputs: npt.ArrayLike
    ) -> None:
        batch, count = self._batch, len(tokens)
        assert batch is not None  # only None once closed
        batch.n_tokens = count
        np.ctypeslib.as_array(batch.token, (count,))[:] = tokens
        np.ctypeslib.as_array(batch.pos, (count,))[:] = positions
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[:] = 1
        np.ctypeslib.as_array(batch.logits, (count,))[:] = outputs
        for index, sequence in enumerate(np.broadcast_to(np.asarray(sequences), count).tolist()):
            batch.seq_id[index][0] = sequence

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
