"""Opening a model to narrow its experts: how it is run, what fits into memory at a time, what is announced."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ggufreap.activity import doing
from ggufreap.corpus.request import Opened
from ggufreap.engine.fitting import free_memory, insisted
from ggufreap.engine.graph import Piece
from ggufreap.engine.hollow import Weights, hollow
from ggufreap.engine.piecewise import Piecewise
from ggufreap.engine.prefixes import Prefixes
from ggufreap.engine.session import LlamaSession
from ggufreap.errors import InputError
from ggufreap.files import check_space, make_folder, writing
from ggufreap.model import Model
from ggufreap.narrowing.collecting import Run, narrow, through
from ggufreap.narrowing.curvature import curvature_nbytes
from ggufreap.narrowing.sequential import chains, narrow_sequentially
from ggufreap.narrowing.solving import down_name
from ggufreap.narrowing.workplace import Solution, Task, Workplace
from ggufreap.observation import Shard, Texts, spill_nbytes
from ggufreap.options.engine import ALL_BLOCKS, CALIBRATING, EngineSettings
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.units import size
from ggufreap.verbs.blockwise import WEIGHTS_SHARE, goes_blockwise, into_pieces, weights_nbytes

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Driver:
    """A way to narrow the rest of a model, piece by piece, and the folders in which hidden states wait for that."""

    narrow: Callable[[Run, Sequence[Piece]], Solution]
    folders: Callable[[Path], tuple[Path, ...]]


DRIVERS = {False: Driver(narrow, lambda folder: (folder,)), True: Driver(narrow_sequentially, chains)}  # sequential?


def compensated(
    model: Model,
    plan: PruningPlan,
    width: int,
    folder: Path,
    data: Opened,
    *,
    memory: int = 0,
    sequential: bool = False,
    downs: bool = True,
    settings: EngineSettings | None = None,
    progress: Progress = silent,
) -> Solution:
    """The `width` neurons that stay in each expert that `plan` keeps, and the columns of down that make up for others.

    The other experts are masked while `data` run through the model. Solved blocks are kept in `folder`, so that an
    interrupted run goes on when it is called again with the same arguments; the downs of the solution are mapped from
    there. `memory`: bytes for what is summed up at a time, 0: half of what is free. Raises InputError where that is too
    little for one block. `sequential`: block by block, each making up for the errors of those before it too; it takes
    four times as long, on the CPU. Raises UnsupportedModel where that cannot be. Without `downs` no columns are kept,
    only which neurons stay and what that costs.
    """
    settings = _settings(data, settings)
    if sequential:
        settings = replace(settings, blockwise=1)
    layout, task = model.layout, task_of(model, plan, width, data, settings, sequential)
    make_folder(folder)
    with writing():
        place = Workplace(folder, task, downs)
        if place.complete:
            _LOG.info("using the narrowed blocks in %s", folder)
            return place.solution()
        model.check_weights()
        with (
            _engine(model, folder, settings) as (engine, session),
            data.chunks(session, model.file, settings.n_ctx) as chunks,
            doing("narrowing", model.path, kept=folder),
        ):
            texts = Texts.read(chunks, Shard.parse("1/1"))
            pieces = _pieces(model, engine, texts, place, memory, settings)
            solution = DRIVERS[sequential].narrow(Run(engine, layout.nodes, model.file, texts, place, progress), pieces)
            for note in chunks.notes():
                _LOG.info("%s", note)
            return solution


def task_of(
    model: Model, plan: PruningPlan, width: int, data: Opened, settings: EngineSettings | None, sequential: bool = False
) -> Task:
    """All that decides on the solution that `compensated` finds for the same arguments."""
    settings = _settings(data, settings)
    keep = {block.index: tuple(plan.keep[block.index]) for block in model.layout.blocks if block.index in plan.keep}
    source_width = model.file.by_name[down_name(next(iter(keep)))].shape[-1]
    return Task(
        model.identity.fingerprint,
        keep,
        source_width,
        width,
        data.identity,
        data.request.reading.count,
        settings.n_ctx,
        settings.graph_tokens,
        sequential=sequential,
    )


def _settings(data: Opened, settings: EngineSettings | None) -> EngineSettings:
    settings = settings or CALIBRATING
    return replace(settings, n_ctx=data.chunk_length(settings.n_ctx))


@contextmanager
def _engine(
    model: Model, folder: Path, settings: EngineSettings
) -> Iterator[tuple[Piecewise | Prefixes, LlamaSession]]:
    """The model block by block where it does not fit into memory or that was asked for, else loaded as a whole."""
    nodes = model.layout.nodes
    if not goes_blockwise(model.file, settings, folder):
        if settings.blockwise == ALL_BLOCKS:
            settings = insisted(model.path, settings)
        with LlamaSession(model.path, nodes, settings) as session:
            yield Prefixes(session, model.layout.n_trunk), session
        return
    settings = replace(settings, n_gpu_layers=0, device="none", mmap=True, repack=False)
    with hollow(model.file, folder) as path, LlamaSession(path, nodes, settings) as session:
        yield Piecewise(session, nodes, Weights(model.file, path)), session


def _pieces(
    model: Model, engine: Piecewise | Prefixes, texts: Texts, place: Workplace, memory: int, settings: EngineSettings
) -> list[Piece]:
    """The rest of the model, as much at a time as fits into memory; says what that takes."""
    task, nodes = place.task, model.layout.nodes
    folders = DRIVERS[task.sequential].folders(place.folder) if engine.spills else ()
    first = through(place, nodes, folders) + 1
    needed = sums_nbytes(model, place, settings.n_ctx)
    if not needed:
        return []
    most = check_memory(needed, memory, model)
    blockwise = isinstance(engine, Piecewise)
    sizes = Counter(needed) + Counter(weights_nbytes(model.file) if blockwise else {})
    ends = engine.ends(max((chunk.tokens for chunk in texts.chunks), key=len))
    pieces = into_pieces(first, [end for end in ends if end >= first], sizes, settings.blockwise, most)
    spill = spill_nbytes(engine, texts, pieces) if isinstance(engine, Piecewise) else 0
    spill *= len(folders)
    if task.sequential:  # the original's stream behind one block
        spill += 4 * texts.n_tokens * max(model.file.by_name[down_name(block)].shape[1] for block in needed)
    downs = sum(
        4 * len(task.keep[block]) * task.width * model.file.by_name[down_name(block)].shape[1]
        for block in needed
        if place.downs
    )
    check_space(place.folder, downs + spill)
    _LOG.info(
        "narrowing the experts of %s from %d to %d neurons: %s tokens in chunks of %d, %s, "
        "with %s of memory at most for what is summed up%s; %s wait in %s",
        model.path.name,
        task.source_width,
        task.width,
        f"{texts.n_tokens:,}",
        settings.n_ctx,
        "1 pass" if len(pieces) == 1 else f"{len(pieces)} passes, each over some blocks",
        size(max(sum(needed.get(block, 0) for block in piece.blocks) for piece in pieces)),
        f" and {size(max(sum(sizes[block] for block in piece.blocks) for piece in pieces))} with weights"
        if blockwise
        else "",
        size(downs + spill),
        place.folder,
    )
    return pieces


def sums_nbytes(model: Model, place: Workplace, n_ctx: int) -> dict[int, int]:
    """Block that is still to be solved -> the bytes of memory that its sums take."""
    return {
        block.index: curvature_nbytes(len(place.task.keep[block.index]), place.task.source_width, n_ctx, block.n_used)
        for block in model.layout.trunk
        if block.index not in place.solved
    }


def check_memory(needed: Mapping[int, int], memory: int, model: Model) -> int:
    """The bytes that may be taken at a time; raises InputError where no block gets along with them."""
    free = free_memory()
    most = memory or int(WEIGHTS_SHARE * max(0, (free or 0) - model.file.nbytes))
    there = memory or (free if free is not None else max(needed.values()))
    block = max(needed, key=needed.__getitem__)
    if needed[block] > there:
        raise InputError(
            f"block {block} needs {size(needed[block])} of memory to be narrowed and {size(there)} are "
            f"{'allowed' if memory else 'free'}; allow more, end other programs, or keep fewer experts"
        )
    return most
