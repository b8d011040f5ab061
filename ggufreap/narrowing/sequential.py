"""Narrowing block by block, each on what the narrowed blocks before it left, so that it makes up for their errors too.

A block is first solved as every other (ggufreap.narrowing.solving), on inputs from the narrowed blocks before it. Then
the columns of down of all its experts are moved together towards what is missing in the residual stream, r = original
stream - narrowed stream: one step of conjugate gradients on Σ ‖r - Σ g D h‖²/‖s‖² + ridge ‖D‖², preconditioned by every
expert's own H. A dozen steps gain little more (tests/benchmarks/README.md). The ridge holds the columns near the
surgeon's: it is the mean of H's diagonal.

Two chains of hidden states wait on disk, those of the original and those of the narrowed model; each block is run once
in the first, three times in the second.
"""

import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggufreap.corpus import Chunk
from ggufreap.engine.graph import Piece
from ggufreap.engine.neuron_tap import FewerNeurons
from ggufreap.engine.observables import ACTIVATIONS, STREAM, STREAM_NORMS, Float32s
from ggufreap.engine.observing import Wanted
from ggufreap.engine.protocol import RoutedBatch
from ggufreap.errors import UnsupportedModel
from ggufreap.files import make_folder
from ggufreap.narrowing.collecting import Run, finished, shares
from ggufreap.narrowing.curvature import Curvature
from ggufreap.narrowing.solving import Solved, down_name, solve
from ggufreap.narrowing.workplace import Solution
from ggufreap.observation.hidden import clear, reading, spill_path, writing
from ggufreap.saliency import expert_scale, expert_weights

STEP = 0.75  # of the preconditioned gradient: what exact line searches found was 0.74 to 0.83
ORIGINAL, NARROWED = "original", "narrowed"
_NEEDS = (ACTIVATIONS, STREAM_NORMS, STREAM)
# A change of the stream is the experts' if it is this close to once as large, and so much like it: arithmetic in the
# types of weights is noise, which may be larger than a small change.
SIZE, ALIKE = 0.1, 0.2
NOTHING = 1e-10  # of ‖stream‖²: below its last bits in F32, as where only dead neurons go


def narrow_sequentially(run: Run, pieces: Sequence[Piece]) -> Solution:
    """As ggufreap.narrowing.collecting.narrow, each block on what the narrowed ones before it left.

    Raises UnsupportedModel where two blocks cannot be computed apart, or where what experts compute does not join the
    residual stream as it is.
    """
    before = pieces[0].first - 1 if pieces else -1
    folders = chains(run.place.folder)
    for folder in folders:
        make_folder(folder)
        clear(folder, but=before)
    for piece in pieces:
        _Block(run, piece, before).solve()
        for folder in folders:
            spill_path(folder, before).unlink(missing_ok=True)
        before = piece.last
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return finished(run)


def chains(folder: Path) -> tuple[Path, ...]:
    """Where hidden states wait."""
    return folder / ORIGINAL, folder / NARROWED


@dataclass
class _Block:
    """One piece of the model, with a block of experts at most."""

    run: Run
    piece: Piece
    before: int

    def solve(self) -> None:
        """Run it in both chains, and solve it."""
        blocks = [each.index for each in self.run.nodes.blocks if each.index in self.piece.blocks]
        if len(blocks) > 1:
            raise UnsupportedModel(
                f"blocks {blocks[0]} to {blocks[-1]} of this model cannot be computed apart, so none can make up for "
                "the one before it; leave out --sequential"
            )
        keep = self.run.place.task.keep
        if not blocks:
            for chain in (ORIGINAL, NARROWED):
                self._pass(chain, Wanted(), stays=True)
            return
        (block,) = blocks
        n_embd = self.run.file.by_name[down_name(block)].shape[1]
        path = self.run.place.folder / f"{block}.streams.npy"
        streams = np.lib.format.open_memmap(path, "w+", np.float32, (self.run.texts.n_tokens, n_embd))
        self._pass(ORIGINAL, Wanted(observables=_NEEDS[1:]), self._stream_to(streams), stays=True)
        curvature = Curvature.empty(block, keep[block], self.run.place.task.source_width)
        first: list[RoutedBatch] = []
        self._pass(NARROWED, Wanted(observables=_NEEDS, keep=keep), self._sum_to(curvature, first))
        curvature.flush()
        found: list[Float32s] = []
        solved = solve(curvature, self.run.file, self.run.place.task.width, found.append)
        downs = np.array(found)
        found.clear()
        narrowed = FewerNeurons(keep[block], solved.neurons, downs)
        self._mend(curvature, solved, narrowed, streams, first)
        self._pass(NARROWED, Wanted(keep=keep, narrowed={block: narrowed}), stays=True)
        del streams
        path.unlink()
        self.run.place.keep(block, n_embd, lambda put: _put(downs, solved, put))

    def _pass(
        self,
        chain: str,
        wanted: Wanted,
        each: Callable[[int, Chunk, Sequence[RoutedBatch]], None] = lambda *_: None,
        stays: bool = False,
    ) -> None:
        """All chunks; `each` is told where in the text a chunk begins, and `stays` whether hidden states are kept."""
        folder, start = self.run.place.folder / chain, 0
        total = self.run.texts.n_tokens * len(self.piece.blocks)
        self.run.engine.begin(self.piece)
        with (
            reading(folder, self.before) as source,
            writing(folder, self.piece) if stays else nullcontext() as sink,
            self.run.progress(f"run {self.piece}, {chain}", total, "tokens x blocks") as bar,
        ):
            for chunk in self.run.texts.chunks:
                each(start, chunk, self.run.engine.observe(chunk.tokens, self.piece, source, sink, wanted))
                start += len(chunk.tokens)
                bar.update(len(chunk.tokens) * len(self.piece.blocks))
        self.run.engine.end(self.piece)

    def _stream_to(self, streams: Float32s) -> Callable[[int, Chunk, Sequence[RoutedBatch]], None]:
        def record(start: int, _chunk: Chunk, batches: Sequence[RoutedBatch]) -> None:
            for batch in batches:
                streams[start : start + len(batch.experts)] = batch[STREAM]
                start += len(batch.experts)

        return record

    def _sum_to(
        self, curvature: Curvature, first: list[RoutedBatch]
    ) -> Callable[[int, Chunk, Sequence[RoutedBatch]], None]:
        counting = shares(self.run.texts)

        def add(start: int, chunk: Chunk, batches: Sequence[RoutedBatch]) -> None:
            if start == 0:
                first.extend(batches)
            for _, batch in _counted(start, chunk, batches):
                curvature.fold(batch, self.run.nodes.weighted_input, counting.get(chunk.domain, 0.0))

        return add

    def _mend(
        self,
        curvature: Curvature,
        solved: Solved,
        narrowed: FewerNeurons,
        streams: Float32s,
        first: Sequence[RoutedBatch],
    ) -> None:
        """Move the columns of all experts, in place."""
        block, counting, downs = curvature.block, shares(self.run.texts), narrowed.downs
        assert downs is not None
        gradient = np.zeros_like(downs)

        def add(start: int, chunk: Chunk, batches: Sequence[RoutedBatch]) -> None:
            if start == 0:
                self._check_joins(block, narrowed, first, batches)
            for rows, batch in _counted(start, chunk, batches):
                share = counting.get(chunk.domain, 0.0)
                _fold(gradient, batch, narrowed, streams[rows], self.run.nodes.weighted_input, share)

        wanted = Wanted(observables=_NEEDS, keep=self.run.place.task.keep, narrowed={block: narrowed})
        self._pass(NARROWED, wanted, add)
        record, width = self.run.file.by_name[down_name(block)], narrowed.neurons.shape[1]
        ridge = np.mean([sums.diagonal().mean() for sums in curvature.sums])
        for row, neurons in enumerate(narrowed.neurons):
            if not solved.alone[row]:
                scale = expert_scale(self.run.file, record, narrowed.experts[row])
                hessian = scale**2 * curvature.sums[row][np.ix_(neurons, neurons)].astype(np.float64)
                change = np.linalg.solve(hessian + ridge * np.eye(width), scale * gradient[row].T).T
                downs[row] += (STEP * change).astype(np.float32)

    def _check_joins(
        self, block: int, narrowed: FewerNeurons, whole: Sequence[RoutedBatch], fewer: Sequence[RoutedBatch]
    ) -> None:
        """Raise UnsupportedModel unless the stream changed by what the experts' outputs did."""
        record = self.run.file.by_name[down_name(block)]
        products, stream = np.zeros((2, 2)), 0.0
        for before, after in zip(whole, fewer, strict=True):
            change = before[STREAM] - after[STREAM]
            outputs = -narrowed.outputs(before.experts, before[ACTIVATIONS])
            for expert in np.unique(before.experts):
                rows = before.experts == expert
                outputs[rows] += before[ACTIVATIONS][rows] @ expert_weights(self.run.file, record, int(expert)).T
                outputs[rows] *= expert_scale(self.run.file, record, int(expert))
            weights = np.ones_like(before.weights) if self.run.nodes.weighted_input else before.weights
            due = (weights[..., None] * outputs).sum(axis=1)
            both = np.stack([change.ravel(), due.ravel()]).astype(np.float64)
            products += both @ both.T
            stream += float((before[STREAM].astype(np.float64) ** 2).sum())
        if products[1, 1] <= NOTHING * stream:
            return
        alike = products[0, 1] / max(np.sqrt(products[0, 0] * products[1, 1]), 1e-30)
        if abs(products[0, 1] / max(products[1, 1], 1e-30) - 1) > SIZE or alike < ALIKE:
            raise UnsupportedModel(
                f"block {block}: what the experts compute is changed before it joins the residual stream, by a norm or "
                "a factor, so what is missing there is not what they should compute; leave out --sequential"
            )


def _counted(start: int, chunk: Chunk, batches: Sequence[RoutedBatch]) -> list[tuple[np.ndarray, RoutedBatch]]:
    """The places in the text of the tokens that count, and what is told of them."""
    found, offset = [], 0
    for batch in batches:
        places = np.arange(offset, offset + len(batch.experts))
        counted = np.ones(len(places), bool) if chunk.counted is None else chunk.counted[places]
        found.append((start + places[counted], batch.only(counted)))
        offset += len(places)
    return found


def _fold(
    gradient: Float32s,
    batch: RoutedBatch,
    narrowed: FewerNeurons,
    original: Float32s,
    weighted_input: bool,
    share: float,
) -> None:
    """Add Σ r (g h)ᵀ/‖s‖² of a micro-batch, for every expert."""
    norms = batch[STREAM_NORMS].copy()
    norms[norms == 0] = np.inf
    missing = (original - batch[STREAM]) * (np.float32(share) / norms**2)[:, None]
    weights = np.ones_like(batch.weights) if weighted_input else batch.weights
    for row, expert in enumerate(narrowed.experts):
        tokens, slots = np.nonzero(batch.experts == expert)
        if tokens.size:
            activations = batch[ACTIVATIONS][tokens, slots][:, narrowed.neurons[row]]
            gradient[row] += missing[tokens].T @ (activations * weights[tokens, slots][:, None])


def _put(downs: Float32s, solved: Solved, put: Callable[[Float32s], object]) -> Solved:
    for columns in downs:
        put(columns)
    return solved
