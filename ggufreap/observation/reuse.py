"""Whether what lies on disk is already what is wanted: told from headers and hashes, before a model is loaded."""

import logging
from pathlib import Path

from ggufreap.architecture.nodes import RoutingNodes
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import forced
from ggufreap.observation.provenance import Provenance
from ggufreap.observation.statistics import Importance
from ggufreap.observation.store import Stored

_LOG = logging.getLogger(__name__)


def checkpoint_path(out: Path) -> Path:
    """Where an unfinished calibration of `out` waits."""
    return out.parent / f"{out.name}.checkpoint"


def finished(
    out: Path, nodes: RoutingNodes, provenance: Provenance, importance: Importance | None, blockwise: bool = False
) -> Stored | None:
    """The finished file at `out` where it holds all that is wanted, None where there is something to do.

    Raises MismatchError when what is there, finished or not, belongs to other work; where the run may `force`, that
    is None. `blockwise` as in `unfinished`.
    """
    try:
        return _finished(out, nodes, provenance, importance, blockwise)
    except InputError:
        if not forced():
            raise
        return None


def _finished(
    out: Path, nodes: RoutingNodes, provenance: Provenance, importance: Importance | None, blockwise: bool
) -> Stored | None:
    if out.exists():
        stored = _of_same_work(out, nodes, provenance, "statistics")
        if not lacking(stored, importance):
            _LOG.info("using the statistics in %s", out)
            return stored
    unfinished(out, nodes, provenance, importance, blockwise)
    return None


def unfinished(
    out: Path, nodes: RoutingNodes, provenance: Provenance, importance: Importance | None, blockwise: bool = False
) -> Stored | None:
    """The checkpoint of `out` that can be gone on from, None where there is none.

    Raises MismatchError when it belongs to other work, or was begun without what is wanted, or in the other order:
    `blockwise` all chunks block by block, or else all blocks chunk by chunk. Where the run may `force`, that is None.
    """
    try:
        return _unfinished(out, nodes, provenance, importance, blockwise)
    except InputError:
        if not forced():
            raise
        return None


def _unfinished(
    out: Path, nodes: RoutingNodes, provenance: Provenance, importance: Importance | None, blockwise: bool
) -> Stored | None:
    path, what = checkpoint_path(out), "an unfinished calibration"
    if not path.exists():
        return None
    through = Stored.open(path).through
    if blockwise != (through is not None):
        how, flag = ("chunk by chunk", "off") if through is None else ("block by block", "fit")
        raise MismatchError(
            f"{path} holds {what} that went {how}; go on with --blockwise {flag}, or --force to begin anew"
        )
    stored = _of_same_work(path, nodes, provenance, what, through)
    if stored.lacking:
        raise MismatchError(
            f"{path} holds {what} without {', '.join(stored.lacking)}; choose another -o, or --force to begin anew"
        )
    if importance and not stored.importance:
        raise MismatchError(
            f"{path} holds {what} without importance matrix; "
            "finish it with --no-imatrix, choose another -o, or --force to begin anew"
        )
    if importance and stored.importance and stored.importance.output != importance.output:
        raise MismatchError(
            f"{path} holds {what} {'with' if stored.importance.output else 'without'} --process-output; "
            "finish it so, choose another -o, or --force to begin anew"
        )
    return stored


def _of_same_work(
    path: Path, nodes: RoutingNodes, provenance: Provenance, what: str, through: int | None = None
) -> Stored:
    stored = Stored.open(path)
    differing = provenance.differences(stored.provenance)
    if differing:
        earlier = "" if stored.provenance.structure else ", or of an earlier version that identified models otherwise"
        raise MismatchError(
            f"{path} holds {what} with another {', '.join(differing)}{earlier}; choose another -o, or --force to begin "
            "anew"
        )
    blocks = tuple(block.index for block in nodes.blocks if through is None or block.index <= through)
    if stored.blocks != blocks:
        raise MismatchError(
            f"{path} holds {what} of {len(stored.blocks)} of the {len(blocks)} MoE blocks; merge it with those of the "
            "others, or choose another -o"
        )
    return stored


def no_chunks() -> InputError:
    """A shard of a corpus that has fewer chunks than shards."""
    return InputError("there is no chunk to calibrate on; give more text, or fewer shards")


def other_chunks(path: Path) -> MismatchError:
    """A checkpoint that is of the same data and settings by name, and of other chunks all the same."""
    version = Stored.open(path).provenance.version
    return MismatchError(
        f"{path} was made of other chunks: its text was another one, or was cut into chunks in another way by version "
        f"{version} or its libraries; go on with those, or delete it to begin anew"
    )


def lacking(stored: Stored, importance: Importance | None) -> str:
    """What is wanted and not in it, in words; empty where all is there."""
    missing = list(stored.lacking)
    if importance is not None and stored.importance is None:
        missing.append("importance sums")
    elif importance is not None and stored.importance is not None and importance.output > stored.importance.output:
        missing.append("importance sums of the output head")
    return ", ".join(missing)
