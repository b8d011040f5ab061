"""All checks in order, those without llama.cpp first, and what they say together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ggufreap.architecture.layout import BLOCK_TENSOR, MoeLayout, bind
from ggufreap.container import GgufFile
from ggufreap.engine.protocol import Tokens
from ggufreap.engine.subprocess_probe import Pass, Ran, save_fewer
from ggufreap.errors import EngineError, VerificationFailed
from ggufreap.files import check_temporary_space, private_folder
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan
from ggufreap.progress import Progress, silent
from ggufreap.rewriting.metadata import PLAN
from ggufreap.verification.blocks import compare_blocks, relative, tolerance
from ggufreap.verification.checks import Check, check_bytes, check_header, check_metadata
from ggufreap.verification.narrow import NarrowLaw

N_TOKENS = 64
STREAMS, PASSES = 6, 6  # at most: nodes recorded per block, and runs whose logits are kept
TIMES_ANEW = 4  # what rounding down anew may change, in relative errors of its weights
QUANTILE = 0.9  # of the tokens, in what is told of the logits

# Runs the chunk through a file, pass by pass, and leaves records in the folder; ggufreap.engine.subprocess_probe.run.
RunPasses = Callable[[Path, Tokens, Sequence[Pass], Path], Sequence[Ran]]


@dataclass(frozen=True)
class Verification:
    """All checks, in order; later ones are left out once one fails."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return all(check.ok for check in self.checks)

    def require(self) -> None:
        """Raise VerificationFailed, naming the first check that does not hold."""
        for check in self.checks:
            if not check.ok:
                raise VerificationFailed(f"verification failed at {check.name}: {check.detail}")


def verify_file(
    model: Model,
    plan: PruningPlan,
    out: Path,
    run: RunPasses,
    progress: Progress = silent,
    narrowing: Narrowing | None = None,
) -> Verification:
    """Check `out` against `model`, `plan` and `narrowing`: header, metadata, every byte, and what llama.cpp computes.

    The plan must have passed `check_plan`, the narrowing `check_narrowing`. Raises InputError when `out` cannot be
    read, EngineError when llama.cpp does not run the model: neither says anything about the pruned file.
    """
    checks: list[Check] = []
    law = NarrowLaw(model, plan, narrowing) if narrowing else None
    for check in _checks(model, plan, out, run, progress, law):
        checks.append(check)
        if not check.ok:
            break
    return Verification(tuple(checks))


def check_room(model: Model, narrowing: Narrowing | None = None) -> None:
    """Raise OutputError unless the temporary files of a proof have room, about: what two loads compute in every block,
    the logits of their passes, and the columns of the narrowing, in float32.
    """
    layout = model.layout
    n_vocab, n_embd = model.file.by_name["token_embd.weight"].shape
    per_block = 2 * (STREAMS * n_embd + 2 * layout.n_expert)
    columns = sum(down.size for down in narrowing.downs.values()) if narrowing else 0
    check_temporary_space(4 * (N_TOKENS * (per_block * layout.n_block + PASSES * n_vocab) + columns), "the proof")


def _checks(
    model: Model,
    plan: PruningPlan,
    out: Path,
    run: RunPasses,
    progress: Progress,
    law: NarrowLaw | None,
) -> Iterator[Check]:
    header, pruned = check_header(plan, out, law)
    yield header
    assert pruned  # or the header does not hold
    yield check_metadata(model, pruned, plan, law)
    yield check_bytes(model, pruned, plan, progress, law)
    if (made_by := pruned.get(PLAN)) != plan.sha256:
        yield Check("plan", False, f"{PLAN} is {made_by!r}, the plan's is {plan.sha256}")
    with private_folder() as folder:
        yield from _computing(model, plan, pruned, run, folder, progress, law)


def _computing(
    model: Model,
    plan: PruningPlan,
    pruned: GgufFile,
    run: RunPasses,
    folder: Path,
    progress: Progress,
    law: NarrowLaw | None,
) -> Iterator[Check]:
    """Block by block on equal inputs, which proves; and from end to end, which shows what that means at this depth.

    The two files are loaded one after the other.
    """
    source, layout = model.file, model.layout
    n_vocab = source.by_name["token_embd.weight"].shape[0]
    tokens = np.random.default_rng(0).integers(0, n_vocab, N_TOKENS).astype(np.int32)
    keep = {block.index: plan.keep[block.index] for block in layout.trunk}
    smaller = Pass(keep, _fewer(folder / "narrowing", law) if law else None)
    again = [replace(smaller, nudge=True)]
    if layout.causal and not layout.architecture.headless:
        again.append(replace(smaller, n_step=N_TOKENS // 2))
    before, after = folder / "original", folder / "pruned"
    with progress("verify blocks", 2, "files") as bar:
        before.mkdir()
        masked, full, *others = run(source.path, tokens, [replace(smaller, record=True), Pass(), *again], before)
        bar.update(1)
        after.mkdir()
        try:
            alone, free = run(pruned.path, tokens, [Pass(record=True, given=masked.record), Pass()], after)
        except EngineError as failure:
            yield Check("blocks", False, str(failure))
            return
        bar.update(1)
    yield _blocks(bind(pruned), masked, alone, tolerances((source, pruned), law), _head_tolerance(source))
    yield _logits(masked.logits, full.logits, free.logits, [ran.logits for ran in others])


def _fewer(folder: Path, law: NarrowLaw) -> Path | None:
    """The narrowing as the passes of the original take it."""
    if not law.narrowing.n_removed:
        return None
    folder.mkdir()
    return save_fewer(folder, law.narrowing.neurons, law.narrowing.downs)


def _blocks(layout: MoeLayout, masked: Ran, alone: Ran, allowed: Mapping[int, float], head_allowed: float) -> Check:
    assert masked.record  # both were asked for
    assert alone.record
    with np.load(masked.record) as expected, np.load(alone.record) as actual:
        if set(expected.files) != set(actual.files):
            wrong = sorted(set(expected.files) ^ set(actual.files))
            return Check("blocks", False, f"only one of both graphs has {wrong[0]}")
        result = compare_blocks(layout, expected, actual, allowed)
    if result.differences:
        blocks = dict.fromkeys(difference.block for difference in result.differences)
        more = f"; {len(blocks)} blocks in all: {', '.join(map(str, blocks))}" if len(blocks) > 1 else ""
        return Check("blocks", False, f"{result.differences[0]}{more}")
    head = np.where(result.undecided, 0.0, relative(alone.logits, masked.logits))
    if not (head <= head_allowed).all():
        return Check("blocks", False, f"behind the last block the logits differ by {head.max():.1e} on the same input")
    detail = (
        f"{layout.n_trunk} blocks on the masked original's inputs, {N_TOKENS} random tokens: errors up to "
        f"{max(result.worst, float(head.max())):.1e}, {result.n_near_ties} near-ties, "
        f"{result.n_reached:,} of {result.n_kept:,} kept experts reached"
    )
    return Check("blocks", True, detail)


def tolerances(files: Sequence[GgufFile], law: NarrowLaw | None = None) -> dict[int, float]:
    """Block -> what rounding may change, by the types of its tensors, and by how far down was rounded anew."""
    types: dict[int, set[int]] = {}
    for record in (record for file in files for record in file.tensors):
        if match := BLOCK_TENSOR.fullmatch(record.name):
            types.setdefault(int(match[1]), set()).add(record.type)
    anew = law.rounding if law else {}
    return {block: tolerance(kinds) + TIMES_ANEW * anew.get(block, 0.0) for block, kinds in types.items()}


def _head_tolerance(source: GgufFile) -> float:
    """The same for the output head."""
    return tolerance(record.type for record in source.tensors if BLOCK_TENSOR.fullmatch(record.name) is None)


def _logits(
    masked: npt.NDArray[np.float32],
    full: npt.NDArray[np.float32],
    free: npt.NDArray[np.float32],
    others: Sequence[npt.NDArray[np.float32]],
) -> Check:
    """No proof but for their being numbers: at depth the masked original is as far from itself, once a bit changes."""
    if not np.isfinite(free).all():
        return Check("logits", False, "the pruned model gives NaN or infinite logits")
    ways = ("with a last bit changed", "with half the -ub")
    floors = [f"{_typical(each, masked):.1e} {way}" for each, way in zip(others, ways, strict=False)]
    detail = (
        f"from end to end {_typical(free, masked):.1e} off the masked original's, which are off themselves by "
        f"{' and '.join(floors)}; masking itself: {_typical(full, masked):.1e}"
    )
    return Check("logits", True, detail)


def _typical(actual: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> float:
    return float(np.quantile(relative(actual, expected), QUANTILE))
