"""One loaded model in llama.cpp, through llama-cpp-python's low-level API."""

import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap import activity
from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.engine import log, placement
from ggufreap.engine.block_tap import BlockTap, NudgeTap, Recorded
from ggufreap.engine.context import fill, open_context
from ggufreap.engine.fitting import checked_nbytes
from ggufreap.engine.importance import ImportanceSums
from ggufreap.engine.importance_tap import MIN_TOKENS
from ggufreap.engine.machine import Machine, chooses_repack, machine, offloading
from ggufreap.engine.native import TensorReader, bindings
from ggufreap.engine.neuron_mask import Fewer, narrowing_taps
from ggufreap.engine.observing import Observing, Wanted
from ggufreap.engine.protocol import Keep, RoutedBatch, Tokens
from ggufreap.engine.sequences import Sequences
from ggufreap.engine.taps import MaskTap, Tap, Together, check_rows
from ggufreap.engine.vocabulary import Vocabulary
from ggufreap.engine.watch import Watch
from ggufreap.errors import EngineError
from ggufreap.interrupts import held
from ggufreap.options.engine import EngineSettings

NO_ROOM = 1  # what llama_decode returns when the memory has no free cells (include/llama.h)


class LlamaSession:
    """Loads `path` (the first shard of a split set) and runs chunks through it; use it in a `with` statement.

    Implements ggufreap.engine.protocol.Engine. Raises EngineError when llama.cpp refuses the model. `known`: what works
    on this machine, for whoever is about to find that out. `together`: how many texts at once there is work for, of
    which `settings.n_together` are run.
    """

    def __init__(
        self,
        path: Path,
        nodes: RoutingNodes,
        settings: EngineSettings,
        known: Machine | None = None,
        *,
        together: int = 1,
    ) -> None:
        self._llama = llama = bindings()
        self._nodes = nodes
        self.n_ctx, self.n_parallel, self._watched = settings.n_ctx, settings.n_parallel, settings.watched
        self.n_batch, self._n_ubatch = settings.batches(nodes.causal)
        self._reader = TensorReader()
        self._watch = Watch(self._stop)
        self._model = self._context = self._batch = None
        self._streamless: set[int] = set()  # the blocks of which it was said
        self._running: int | None = None
        with activity.doing(activity.LOADING, path):
            log.install(llama)
            llama.llama_backend_init()
            self._model = self._load(path, settings, known or machine())
            self._vocabulary = Vocabulary(llama, self._model)
            self.n_vocab, self.bos = self._vocabulary.n_vocab, self._vocabulary.bos
            self.opening = self._vocabulary.opening
            # Kept for the life of the context: llama.cpp holds only the address.
            self._callback = llama.ggml_backend_sched_eval_callback(self._watch.on_node)
            self._aborting = llama.ggml_abort_callback(lambda _data: True)
            callback = self._callback if self._watched else None
            try:
                opened = open_context(llama, self._model, path, nodes, settings, callback, together)
            except EngineError:
                self.close()
                raise
            self._context, self.n_together = opened
            self._batch = llama.llama_batch_init(self.n_together * self.n_batch, 0, 1)
        self._running = activity.begin("running", path)

    def _load(self, path: Path, settings: EngineSettings, known: Machine) -> Any:
        parameters = self._llama.llama_model_default_params()
        repack = chooses_repack(checked_nbytes(path, settings), settings.repack, known)
        self._placed = placement.place(parameters, offloading(settings, known), repack)  # kept as long as the model
        model = self._llama.llama_model_load_from_file(os.fsencode(path), parameters)
        if not model:
            self.close()
            raise EngineError(f"llama.cpp does not load {path}: {log.reason()}")
        placement.tell(path, settings, log.placement())
        return model

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
        return self._vocabulary.tokenize(text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of `tokens`."""
        return self._vocabulary.detokenize(tokens)

    def route(
        self, tokens: Tokens, importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> Sequence[RoutedBatch]:
        """What every MoE block did with one chunk, whose squared inputs are added to `importance`.

        The graph ends where nothing more is wanted: without the importance matrix at the last block's experts, with it
        before the output head, unless its input is wanted too.
        """
        return self.observe(tokens, Wanted(importance, observables))

    def observe(self, tokens: Tokens, wanted: Wanted) -> Sequence[RoutedBatch]:
        """What `route` tells of one chunk `[n]`, or of several `[n_texts, n]` in one graph, as `wanted`."""
        tap = Observing(self._nodes, self._reader, wanted, self._streamless, stop=True)
        list(self._decode(np.atleast_2d(tokens), tap))
        return tap.batches

    def route_together(
        self, chunks: Sequence[Tokens], importance: ImportanceSums | None = None, observables: Collection[str] = ()
    ) -> list[Sequence[RoutedBatch]]:
        """What `route` tells of each of `n_together` chunks at most, all of one length, which run in the same graphs.

        Raises EngineError where llama.cpp does not put them into one graph.
        """
        rest, count = len(chunks[0]) % self.n_batch, len(chunks)
        if count == 1 or (importance is not None and 0 < rest < MIN_TOKENS):  # left out of a graph of one chunk
            return [self.route(chunk, importance, observables) for chunk in chunks]
        batches = self.observe(np.stack(chunks), Wanted(importance, observables))
        check_rows(batches, count * len(chunks[0]))
        return [[batch.part(index, count) for batch in batches] for index in range(count)]

    def blocks(
        self, tokens: Tokens, keep: Keep | None = None, given: Recorded | None = None, fewer: Fewer | None = None
    ) -> tuple[npt.NDArray[np.float32], Recorded]:
        """Logits of one micro-batch as `logits` gives them, and what its blocks computed (see BlockTap)."""
        recording = BlockTap(self._nodes, self._reader, keep, given)
        return self._logits_alone(tokens, self._virtual(keep, fewer, recording)), recording.arrays

    def nudged(self, tokens: Tokens, keep: Keep, fewer: Fewer | None = None) -> npt.NDArray[np.float32]:
        """Logits as `logits` gives them, with the last bits of the residual stream changed once (see NudgeTap)."""
        return self._logits_alone(tokens, self._virtual(keep, fewer, NudgeTap(self._nodes, self._reader)))

    def _virtual(self, keep: Keep | None, fewer: Fewer | None, *others: Tap) -> Tap | None:
        """What makes the loaded model a smaller one, and the `others` that look on."""
        masks = [MaskTap(self._nodes, [keep], self._reader)] if keep else []
        taps = (*masks, *narrowing_taps(self._nodes.n_expert, self._reader, fewer or {}), *others)
        return Together(taps) if taps else None

    def logits(
        self, tokens: Tokens, keep: Keep | None = None, scored_from: int = 0, fewer: Fewer | None = None
    ) -> npt.NDArray[np.float32]:
        """Logits `[n_tokens - scored_from, n_vocab]` of one chunk, experts outside `keep` masked, with `fewer` neurons
        in others.

        Rows before `scored_from` are left out, and so is their way through the output head and the last block's
        experts. Of a model without output head: its final hidden states `[n_tokens - scored_from, n_embd]`.
        """
        return self._logits_alone(tokens, self._virtual(keep, fewer), scored_from)

    def _logits_alone(self, tokens: Tokens, tap: Tap | None, scored_from: int = 0) -> npt.NDArray[np.float32]:
        result: npt.NDArray[np.float32] = self._logits(tokens[None], tap, scored_from)[0]
        return result

    def logits_together(
        self, tokens: Tokens, keeps: Sequence[Keep | None], scored_from: int = 0
    ) -> npt.NDArray[np.float32]:
        """`[n_keeps, n_tokens - scored_from, n_vocab]`: `logits` with each of `n_together` keep-sets at most.

        Where the chunk is one micro-batch, it is llama.cpp's own memory, until the next run.
        """
        tap = MaskTap(self._nodes, keeps, self._reader)
        return self._logits(np.tile(tokens, (len(keeps), 1)), tap, scored_from, own=False)

    def _logits(self, texts: Tokens, tap: Tap | None, scored_from: int, own: bool = True) -> npt.NDArray[np.float32]:
        n_texts, length = texts.shape
        first = 0 if self._nodes.headless else scored_from  # hidden states come for all tokens or none
        n_copied = length - scored_from if own or length > self.n_batch else 0
        result = np.empty((n_texts, n_copied, self._width), np.float32)
        for start, count in self._decode(texts, tap, first):
            skipped, wanted = max(first - start, 0), max(scored_from - start, 0)
            if wanted < count:
                rows = self.outputs(n_texts * (count - skipped)).reshape(n_texts, -1, self._width)
                rows = rows[:, wanted - skipped :]
                if not n_copied:
                    return rows
                result[:, start + wanted - scored_from :][:, : rows.shape[1]] = rows
        return result

    def is_end(self, token: int) -> bool:
        """Whether `token` ends what a model writes, as llama.cpp's programs see it."""
        return self._vocabulary.is_end(token)

    def sequences(self, keep: Keep | None = None, fewer: Fewer | None = None) -> Sequences:
        """An empty memory for `n_parallel` texts that grow, masked as for `logits`; ends the previous one."""
        if self._nodes.headless or not self._nodes.causal:
            raise EngineError("this model reads text but writes none: it has no output head, or looks ahead")
        return Sequences(self, self.memory(), self._virtual(keep, fewer))

    def memory(self) -> Any:
        """llama.cpp's memory, emptied."""
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_clear(memory, True)
        return memory

    def _decode(self, texts: Tokens, tap: Tap | None, first_output: int = 0) -> Iterator[tuple[int, int]]:
        """Decode `[n_texts, n]` from an empty memory, micro-batch by micro-batch; yields (start, count) after each.

        A micro-batch holds `count` tokens of every text, text by text. Tokens from `first_output` on are outputs: the
        last block computes only those rows (src/models, inp_out_ids).
        """
        n_texts, length = texts.shape
        if length > self.n_ctx:
            raise EngineError(f"a chunk of {length} tokens does not fit -c {self.n_ctx}; raise -c")
        if n_texts > self.n_together:
            raise EngineError(f"{n_texts} chunks at once, there is room for {self.n_together}; raise -np")
        self.memory()
        for start in range(0, length, self.n_batch):
            part = texts[:, start : start + self.n_batch]
            positions = np.tile(np.arange(start, start + part.shape[1]), n_texts)
            sequences = np.repeat(np.arange(n_texts), part.shape[1])
            self.decode(part.ravel(), positions, sequences, outputs=positions >= first_output, tap=tap)
            yield start, part.shape[1]

    def decode(
        self,
        tokens: Tokens,
        positions: npt.ArrayLike,
        sequences: npt.ArrayLike,
        outputs: npt.ArrayLike,
        tap: Tap | None = None,
    ) -> None:
        """Run `[n]` tokens, `n_batch` of a text at most, at their positions in their sequences.

        `outputs`: whose logits count.
        """
        if tap is not None and not self._watched:
            raise EngineError("this session was opened unwatched: no tap can look into its graph")
        if tap is not None and self.n_batch > self._n_ubatch:  # node addresses of one graph mean nothing in the next
            asked = f"-b {self.n_batch} with -ub {self._n_ubatch}: what is watched runs one graph per call"
            raise EngineError(f"{asked}; raise -ub, or leave out -b")
        assert self._batch is not None  # only None once closed
        fill(self._batch, tokens, positions, sequences, outputs)
        try:
            self._watch.begin(tap)
            # Raised inside the callback, a KeyboardInterrupt would be printed by ctypes and lost.
            with held(notice=self._stop):
                status = self._llama.llama_decode(self._context, self._batch)
            self._watch.check()
            if status == NO_ROOM:
                raise EngineError(f"the texts in memory do not fit -c {self.n_ctx} together; raise -c or lower -np")
            if status != 0:
                raise EngineError(f"llama.cpp cannot decode a chunk (llama_decode returned {status}); lower -c or -ub")
        finally:
            if self._watch.stopping:
                self._llama.llama_set_abort_callback(self._context, self._llama.ggml_abort_callback(), None)
            self._watch.end()

    def outputs(self, count: int) -> npt.NDArray[np.float32]:
        """The logits `[count, n_vocab]` that `decode` just computed, or hidden states; llama.cpp's own memory."""
        llama = self._llama
        get = llama.llama_get_embeddings if self._nodes.headless else llama.llama_get_logits
        return np.ctypeslib.as_array(get(self._context), (count, self._width))

    @property
    def _width(self) -> int:
        return int(self._llama.llama_model_n_embd(self._model)) if self._nodes.headless else self.n_vocab

    def _stop(self) -> None:
        """End the graph: the CPU at the next node, other devices when they are done.

        Were nodes skipped, further splits would run on what was never computed, and an expert's number from there ends
        the process (ggml-cpu.c, ggml_compute_forward_mul_mat_id).
        """
        self._watch.stopping = True
        self._llama.llama_set_abort_callback(self._context, self._aborting, None)
