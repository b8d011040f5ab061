"""Calibrating a model that does not fit into memory: when that is so, and how it is cut."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.container import GgufFile
from ggufreap.corpus.request import Opened
from ggufreap.engine import log
from ggufreap.engine.fitting import fits, free_memory, moved
from ggufreap.engine.graph import Piece
from ggufreap.engine.hollow import Weights, block_of, hollow
from ggufreap.engine.piecewise import Piecewise
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.files import check_space, kept_folder
from ggufreap.interrupts import Stopped
from ggufreap.model import Model
from ggufreap.observation import (
    Importance,
    Provenance,
    Shard,
    Stored,
    Texts,
    checkpoint_path,
    hidden_path,
    observe_blockwise,
    resume,
    spill_nbytes,
)
from ggufreap.options.engine import ALL_BLOCKS, AUTO_BLOCKS, EngineSettings
from ggufreap.progress import Progress
from ggufreap.units import size

# Of the memory that is free. The rest is for activations, and for the system to write hidden states behind our back.
WEIGHTS_SHARE = 0.5
_LOG = logging.getLogger(__name__)


def goes_blockwise(source: GgufFile, settings: EngineSettings, out: Path) -> bool:
    """Whether the model is computed block by block.

    Where nobody says, as an unfinished run does, or else if it does not fit into memory, there is no GPU to take a part
    of it, and no flag says where its weights go. Raises InputError where such a flag contradicts --blockwise.
    """
    asked = None if settings.blockwise == AUTO_BLOCKS else settings.blockwise != ALL_BLOCKS
    who, begun = "--blockwise", checkpoint_path(out)
    if asked is None and begun.exists():
        asked, who = Stored.open(begun).through is not None, f"the unfinished run in {begun.name}"
    if asked and (elsewhere := moved(settings)):
        raise InputError(f"{who} maps the file and computes on the CPU; leave out {', '.join(elsewhere)}")
    if asked is not None:
        return asked
    if fits(source.nbytes, settings):
        return False
    _LOG.info(
        "%s has %s and %s of memory are free: it is calibrated block by block; with --blockwise off it would be read "
        "anew for every chunk",
        source.path.name,
        size(source.nbytes),
        size(free_memory() or 0),
    )
    return True


def calibrate_blockwise(
    model: Model,
    out: Path,
    data: Opened,
    provenance: Provenance,
    importance: Importance | None,
    settings: EngineSettings,
    progress: Progress,
) -> None:
    """Save what an ordinary calibration would, with every weight read from disk once."""
    source, nodes = model.file, model.layout.nodes
    if settings.n_together > 1:
        _LOG.warning("-np %d is not used: block by block, chunks are run one by one", settings.n_together)
    settings = replace(settings, n_gpu_layers=0, device="none", mmap=True, repack=False)
    with (
        kept_folder(hidden_path(out)),
        hollow(source, hidden_path(out)) as path,
        LlamaSession(path, nodes, settings) as session,
        data.chunks(session, source, settings.n_ctx) as chunks,
        doing("calibrating with", source.path, kept=checkpoint_path(out)),
        _telling_what_is_kept(checkpoint_path(out)),
    ):
        texts = Texts.read(chunks, Shard.parse(provenance.shard))
        engine = Piecewise(session, nodes, Weights(source, path))
        ends = engine.ends(max((chunk.tokens for chunk in texts.chunks), key=len))
        sizes = weights_nbytes(source)
        run = resume(out, nodes, chunks, texts, provenance, importance)
        ends = [end for end in ends if end > run.through]
        pieces = into_pieces(
            run.through + 1, ends, sizes, settings.blockwise, int(WEIGHTS_SHARE * (free_memory() or 0))
        )
        largest = max(sum(sizes.get(block, 0) for block in piece.blocks) for piece in pieces)
        spill = spill_nbytes(engine, texts, pieces)
        check_space(out.parent, spill)
        _LOG.info(
            "calibrating with %s: %s tokens in chunks of %d, in %d pieces of the model with %s of weights at most and "
            "%s besides; hidden states take %s in %s",
            provenance.source,
            f"{texts.n_tokens:,}",
            settings.n_ctx,
            len(pieces),
            size(largest),
            size(log.context_nbytes() + 4 * session.n_batch * session.n_vocab),  # logits are F32
            size(spill),
            hidden_path(out),
        )
        observe_blockwise(
            engine,
            run,
            pieces,
            nodes,
            chunks,
            texts,
            provenance,
            out,
            importance=importance,
            progress=progress,
        )


@contextmanager
def _telling_what_is_kept(checkpoint: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        kept = "the same command begins anew, since no piece of the model was finished"
        if checkpoint.exists():
            block = Stored.open(checkpoint).through
            kept = f"the same command goes on behind block {block}; the blocks after it are computed again"
        raise Stopped(kept) from None


def into_pieces(first: int, ends: Sequence[int], sizes: dict[int, int], n_blocks: int, budget: int) -> list[Piece]:
    """The blocks from `first` on in pieces that end where the graph can be cut, `ends`.

    Each has `n_blocks`, or else as many as `budget` bytes hold of their weights `sizes`; more where no cut is possible.
    """
    pieces: list[Piece] = []
    for number, end in enumerate(ends):
        following = ends[number + 1] if number + 1 < len(ends) else None
        if following is not None:
            n_more = following - first + 1
            nbytes = sum(sizes.get(block, 0) for block in range(first, following + 1))
            if n_more <= n_blocks if n_blocks > 0 else nbytes <= budget:
                continue
        pieces.append(Piece(first, end, following is None))
        first = end + 1
    return pieces


def weights_nbytes(source: GgufFile) -> dict[int, int]:
    """Block -> bytes of its weights."""
    sizes: dict[int, int] = {}
    for record in source.tensors:
        if (block := block_of(record.name)) is not None:
            sizes[block] = sizes.get(block, 0) + record.nbytes
    return sizes
