"""Where solved blocks wait for the others: a folder, each block in it bound to its task, and there whole or not at all.

So a run that was killed goes on behind the last block that it solved.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np

from ggufreap.container import GgufFile
from ggufreap.decoding.arrays import Array, open_arrays
from ggufreap.engine.observables import Float32s
from ggufreap.errors import InputError, MismatchError
from ggufreap.files import forced, replacing
from ggufreap.narrowing.curvature import Curvature
from ggufreap.narrowing.narrowing import Ids, Narrowing
from ggufreap.narrowing.solving import LEAST_TOKENS, Solved, down_name, solve
from ggufreap.narrowing.surgeon import DAMPING, Floats
from ggufreap.progress import Bar

SCHEMA = "ggufreap.narrowing-work/1"
METHOD = "optimal brain surgeon"
NAMED = 16  # experts of a block in one line


@dataclass(frozen=True)
class Task:
    """All that decides on a solution.

    `model`: the file's fingerprint; `keep`: the experts that stay, of every MoE block; `text` and `count`: which text,
    and which tokens of it, as in Provenance; `sequential`: later blocks make up for what earlier ones lost.
    """

    model: str
    keep: Mapping[int, tuple[int, ...]]
    source_width: int
    width: int
    text: str
    count: str
    n_ctx: int
    n_ubatch: int
    damping: float = DAMPING
    sequential: bool = False

    @cached_property
    def sha256(self) -> str:
        """Its identity."""
        return hashlib.sha256(json.dumps({"schema": SCHEMA, **asdict(self)}, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Solution:
    """All blocks solved: the `narrowing`, its downs mapped from disk, and block -> what was found of it."""

    narrowing: Narrowing
    solved: Mapping[int, Solved]

    @property
    def loss(self) -> float:
        """The sum over blocks of what their narrowing is expected to cost: see Solved."""
        return float(sum(each.losses[:, -1].sum() for each in self.solved.values()))

    @property
    def as_costly(self) -> tuple[Mapping[int, Ids], float]:
        """Block -> neurons that stay, `[n_keep, width]`, where as few go as cost about as much with nothing that makes
        up for them; and the loss that is foreseen by theirs.
        """
        width, neurons, bare = self.narrowing.source_width, {}, 0.0
        foreseen = float(sum(each.foreseen.sum() for each in self.solved.values()))
        for block, each in self.solved.items():
            going = each.order[:, : each.as_costly]
            neurons[block] = np.stack([np.setdiff1d(np.arange(width, dtype=np.int32), row) for row in going])
            bare += float(each.bare[:, each.as_costly].sum())
        return neurons, foreseen / bare if bare else 1.0

    @property
    def losses(self) -> Floats:
        """The same if only the first r neurons of every expert went, `[n_removed + 1]`."""
        total: Floats = np.stack([each.losses for each in self.solved.values()]).sum(axis=(0, 1))
        return total


class Workplace:
    """The solved blocks of a `task` in `folder`, which exists; without `downs` only what they lose is kept, in memory.

    Raises MismatchError where blocks of another task lie there; where the run may `force`, they give way.
    """

    def __init__(self, folder: Path, task: Task, downs: bool = True) -> None:
        self.folder, self.task, self.downs = folder, task, downs
        self.solved = {block: solved for block in task.keep if (solved := self._read(block)) is not None}

    @property
    def complete(self) -> bool:
        """Whether every block is solved."""
        return set(self.solved) == set(self.task.keep)

    def write(self, curvature: Curvature, file: GgufFile, bar: Bar) -> None:
        """Solve a block and keep what was found, on disk; `bar` counts experts. Raises OutputError."""

        def columns(put: Callable[[Float32s], object]) -> Solved:
            def told(found: Float32s) -> None:
                put(found)
                bar.update(1)

            return solve(curvature, file, self.task.width, told)

        n_embd = file.by_name[down_name(curvature.block)].shape[1]
        self.keep(curvature.block, n_embd, columns)

    def keep(self, block: int, n_embd: int, columns: Callable[[Callable[[Float32s], object]], Solved]) -> None:
        """Keep what `columns` tells of a block, which puts those of every expert, `[n_embd, width]`, in order.

        Raises OutputError.
        """
        if not self.downs:
            self.solved[block] = columns(lambda _: None)
            return
        shape = len(self.task.keep[block]), n_embd, self.task.width
        with replacing(self._downs(block), own=True) as downs:
            np.lib.format.write_array_header_1_0(downs, {"descr": "<f4", "fortran_order": False, "shape": shape})
            solved = columns(lambda found: downs.write(np.ascontiguousarray(found, "<f4").data))
        with replacing(self._path(block), own=True) as out:  # the last: it tells that the downs are whole
            np.savez(out, task=np.array(self.task.sha256), **vars(solved))
        self.solved[block] = solved

    def solution(self) -> Solution:
        """All of it, once every block is solved."""
        downs = {block: found for block in self.task.keep if (found := self._mapped(block)) is not None}
        neurons = {block: self.solved[block].neurons for block in self.task.keep}
        remarks = tuple(filter(None, (self._few(block) for block in self.task.keep)))
        narrowing = Narrowing(self.task.source_width, self.task.width, neurons, downs, METHOD, remarks)
        return Solution(narrowing, self.solved)

    def _few(self, block: int) -> str:
        """The experts of a block that were narrowed without compensation, in words; empty where there are none."""
        solved = self.solved[block]
        rows = solved.alone.nonzero()[0]
        if not rows.size:
            return ""
        if not solved.counts.any():
            return (
                f"block {block}: no text reaches it; neurons were chosen by norm, and those that stay make up for none"
            )
        few = ", ".join(f"{self.task.keep[block][row]} ({solved.counts[row]})" for row in rows[:NAMED])
        more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
        width = self.task.source_width
        return (
            f"block {block}: too few tokens (fewer than {LEAST_TOKENS:g} for each of {width} neurons) for expert "
            f"{few}{more}: "
            "chosen by energy x norm, and the neurons that stay make up for nothing; calibrate on more text"
        )

    def remove(self) -> None:
        """Take the solved blocks away."""
        for block in self.solved:
            self._path(block).unlink(missing_ok=True)
            self._downs(block).unlink(missing_ok=True)

    def _read(self, block: int) -> Solved | None:
        path = self._path(block)
        if not path.exists():
            return None
        with _reading(path) as archive:
            if str(archive["task"]) == self.task.sha256:
                if self._mapped(block) is None:
                    return None
                return Solved(*(archive[each.name] for each in fields(Solved)))
        if forced():
            return None
        raise MismatchError(
            f"{self.folder} holds blocks that were narrowed for another model, plan, text or width; choose another -o, "
            "or --force to begin anew"
        )

    def _mapped(self, block: int) -> Float32s | None:
        """The columns of a block, None where their file is not whole any more."""
        try:
            downs = np.load(self._downs(block), mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        fits = (len(downs), *downs.shape[2:]) == (len(self.task.keep[block]), self.task.width)
        return downs if fits and downs.dtype == np.float32 else None

    def _path(self, block: int) -> Path:
        return self.folder / f"{block}.npz"

    def _downs(self, block: int) -> Path:
        return self.folder / f"{block}.downs.npy"


@contextmanager
def _reading(path: Path) -> Iterator[Mapping[str, Array]]:
    what, advice = "a block that was narrowed", "delete it if it is not yours, or choose another -o"
    try:
        with open_arrays(path, what, advice) as arrays:
            yield arrays
    except KeyError as error:
        raise InputError(f"{path} is not {what}: it has no {error}; {advice}") from error
