"""What could be made of a model: all prospects with exact sizes, and what pruning it loses, measured by masking."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ggufreap import fitting, naming
from ggufreap.fitting import Curve, Mix, Pool
from ggufreap.imatrix import Imatrix
from ggufreap.judging import Exam, Masking
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.observation import Stored
from ggufreap.options.output import Output
from ggufreap.options.target import DROP, FRIENDLY, OFF, Target
from ggufreap.planning import PruningPlan
from ggufreap.planning.counts import KNOWN
from ggufreap.progress import Progress, silent
from ggufreap.quantization import QuantRequest, imatrix_metadata
from ggufreap.recipe import Variant
from ggufreap.rewriting import Narrow
from ggufreap.sizing import Outline, Rewriter, of_count
from ggufreap.verbs.apply import scripts_of
from ggufreap.verbs.narrowing import any_narrowing
from ggufreap.verbs.plan import plan
from ggufreap.verbs.widths import Widths, source_width

_LOG = logging.getLogger(__name__)
# Fractions of the experts of which it is measured what their loss costs; more go up to what the router can work with.
MEASURED = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)


@dataclass(frozen=True)
class Making:
    """How a prospect is made: `example` is a plan of any count, `out` where its files go.

    The importance matrix that guides the quantiser is `given`, or will be collected from `dataset`; where both are
    None there will be none. `whole_imatrix`: the file name of the whole model's.
    """

    model: Model
    example: PruningPlan
    out: Path | None
    given: Imatrix | None
    dataset: str | None
    whole_imatrix: str
    n_threads: int = 0
    allow_requantize: bool = False

    @property
    def weighted(self) -> bool:
        """Whether there will be an importance matrix."""
        return self.given is not None or self.dataset is not None

    def variant(self, n_keep: int | None, mix: Mix) -> Variant:
        """What the quantiser makes of the model with `n_keep` experts per block, or of the whole one.

        It is not named as the file that it is made from.
        """
        variant = mix.variant(self.model.layout, trunk_only=n_keep is not None and self.example.mtp == DROP)
        encoding = naming.ENCODING.search(naming.stem_of(self.model.path))
        same = encoding is not None and encoding["encoding"].upper() == variant.suffix.upper()
        return replace(variant, name=f"{variant.suffix}_MIX") if same else variant

    def ask(self, n_keep: int | None, mix: Mix, width: int = 0) -> QuantRequest:
        """The same in the quantiser's words, with all that the file will say of itself; `width`: the neurons of each
        expert, 0: as many as there are."""
        variant = self.variant(n_keep, mix).of(self.model.layout.n_trunk)
        return replace(variant.request(self.n_threads, self.allow_requantize), metadata=self._metadata(n_keep, width))

    def scripts(self, width: int = 0) -> Rewriter:
        """What writes the files that the quantiser is given."""
        return self._scripts(self._narrow(width, intermediate=True))

    def outline(self, n_keep: int, width: int = 0) -> Outline:
        """The files of all counts, from the script of one."""
        narrow = self._narrow(width, intermediate=False)
        return Outline.of(self.model, self.example, self._scripts(narrow)(n_keep), narrow)

    def _narrow(self, width: int, *, intermediate: bool) -> Narrow | None:
        return Narrow(any_narrowing(self.model, self.example, width), intermediate) if width else None

    def _scripts(self, narrow: Narrow | None) -> Rewriter:
        return scripts_of(self.model, self.example, self.model.path, Output(), narrow)

    def _metadata(self, n_keep: int | None, width: int) -> dict[str, str | int]:
        name = self.whole_imatrix if n_keep is None else f"{naming.stem_of(self._result(n_keep, width))}.imatrix.gguf"
        if self.given is not None:
            datasets = self.given.datasets
            return imatrix_metadata(
                name, len(self.given.entries), self.given.chunk_count, datasets[0] if datasets else ""
            )
        return {} if self.dataset is None else imatrix_metadata(name, 1, 1, self.dataset)

    def _result(self, n_keep: int, width: int) -> Path:
        cut = of_count(self.example, self.model.layout, n_keep)
        label = Narrowing(source_width(self.model), width, {}).full_label(cut) if width else cut.label
        return naming.target(self.model.path, self.out, label)

    def pool(self, widths: Widths, round: str = OFF) -> Pool:
        """All prospects of these widths and the counts that `round` allows; what pruning loses is the tabulated
        curve."""
        losses, source, pruning = fitting.table(), self.model.file, Curve.tabulated()
        if round == FRIENDLY:
            _LOG.info("--round %s: %s, and other counts are left out", round, KNOWN)
        mixes = fitting.possible_mixes(source, losses, weighted=self.weighted, allow_requantize=self.allow_requantize)
        curves = pruning, Curve.of_neurons(pruning)
        return fitting.build(self, mixes, widths.all, *curves, friendly=round == FRIENDLY)


def with_curve(pool: Pool, pruning: Curve) -> Pool:
    """The pool with what `pruning` says of experts, and what follows of neurons."""
    counts, widths = np.array(pool.counts), np.array(pool.widths)
    narrowing = Curve.of_neurons(pruning).at(1 - widths / widths[0])
    return replace(pool, pruning=pruning.at(1 - counts / counts[0]), narrowing=narrowing)


def measured_curve(
    model: Model, target: Target, exam: Exam, stats: Stored | None, counts: Sequence[int], progress: Progress = silent
) -> Curve:
    """What it costs to keep fewer experts, by masking them: at about the fractions MEASURED, of `counts` that can be
    kept, all of them first."""
    whole, *fewer = counts
    if not fewer:
        return Curve.tabulated()
    wanted = {min(fewer, key=lambda count: abs(1 - count / whole - share)) for share in MEASURED} | {fewer[-1]}
    plans = [
        plan(model, replace(target, ratio=None, keep=count, fit=None), stats=stats, progress=progress)
        for count in sorted(wanted, reverse=True)
    ]
    with Masking(model, exam, len(plans), progress) as masking:
        if stats is not None:
            masking.warn_of_source(stats)
        masked = masking.measure(plans)
    return Curve({1 - each.plan.n_keep / whole: each.comparison.mean.kld for each in masked}, measured=True)
