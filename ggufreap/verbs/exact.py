"""The byte-exact pruned file: it has no name until it is proven, and gets none where only its variants are wanted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ggufreap.container import GgufFile, OutputFile
from ggufreap.errors import InputError
from ggufreap.files import check_free, check_space, claim, private_folder
from ggufreap.imatrix import full_nbytes
from ggufreap.observation import checkpoint_path
from ggufreap.planning import PruningPlan, load_plan
from ggufreap.progress import Progress
from ggufreap.quantization import Quantized, has_types
from ggufreap.rewriting import RewriteScript, execute, release
from ggufreap.rewriting.metadata import has_origin
from ggufreap.verification import Verification


@contextmanager
def exact_file(
    script: RewriteScript,
    lowered: Callable[[Path], RewriteScript],
    verified: Callable[[Path], Verification] | None,
    stays: bool,
    progress: Progress,
) -> Iterator[tuple[Path, Verification | None]]:
    """Write what `script` says in a private folder beside its place, prove it, and then give it its name where it
    `stays`; else it is there for the block alone.

    Gives its first file, where it lies then, and the proof. `lowered`: the same script for another path; `verified`
    proves the file at a path, None leaves it unproven. What is not as the plan promised gets no name, nor does what
    could not be proven.
    """
    with private_folder(script.files[0].path.parent) as folder:
        hidden = lowered(folder / script.target.name)
        execute(hidden, progress)
        path = hidden.files[0].path
        proof = verified(path) if verified else None
        if stays and (proof is None or proof.ok):
            release(hidden, script)
            path = script.files[0].path
        yield path, proof


@dataclass(frozen=True)
class Planned:
    """The files that `prune` will write after its calibration; `exact` where they stay, `sliced` matrices and
    `narrowing` where they are made.
    """

    plan: Path
    exact: Sequence[OutputFile]
    quantized: Sequence[Quantized]
    sliced: Sequence[Path]
    narrowing: Path | None = None

    def claim(self, source: GgufFile, plan: PruningPlan, stats: Path | None, matrix: Path | None) -> None:
        """Claim them, and those of the calibration; raises OutputError, also where a file of other work is in the way
        of what `plan` of `source` will give.

        Asked before the calibration: which experts stay is open yet, so that this tells other work by what stands in
        headers, all but the choice itself. What differs in nothing else is told by its bytes when it would be replaced.
        """
        of_pass = (stats, checkpoint_path(stats), matrix) if stats else ()
        quantized = (path for made in self.quantized for path in made.paths)
        ours = (self.plan, *(file.path for file in self.exact), *quantized, *self.sliced, self.narrowing)
        claim(*(path for path in (*of_pass, *ours) if path))
        same_plan = _is_like(self.plan, plan)
        check_free(self.plan, same_plan)
        for file in self.exact:
            check_free(file.path, has_origin(file.path, source, plan))
        for made in self.quantized:
            for path in made.paths:
                check_free(path, has_origin(path, source, plan) and has_types(path, made.types))
        for path in filter(None, (*self.sliced, self.narrowing)):
            check_free(path, same_plan)

    def check_room(self, source: GgufFile, script: RewriteScript, compare: bool, columns: int) -> None:
        """Raise OutputError unless all of them have room, with the byte-exact file of `script`, what a narrowing takes
        for its `columns` of down and, to `compare`, the rival, which is about as large as the first file that stays.
        """
        sizes = [sum(file.nbytes for file in self.exact), *(made.nbytes for made in self.quantized)]
        # The importance sums lie there with the statistics, as a matrix, sliced, and as the quantiser is given them.
        more = 4 * full_nbytes(source) if self.quantized else 0
        rival = next(filter(None, sizes)) if compare else 0
        check_space(self.plan.parent, script.nbytes + sum(sizes[1:]) + more + rival + columns)


def _is_like(path: Path, plan: PruningPlan) -> bool:
    try:
        return load_plan(path).same_request(plan)
    except InputError:
        return False
