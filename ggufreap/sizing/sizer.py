"""Weighs what can be made of one model: the byte-exact pruned file by the script that writes it, quantised files by
llama.cpp's own dry run."""

import json
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Self

from ggufreap.architecture.layout import MoeLayout
from ggufreap.container import GgufFile, open_gguf
from ggufreap.engine.quantizer import ImatrixData, Quantizer, QuantizerCall
from ggufreap.errors import EngineError
from ggufreap.files import private_folder
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.planning import PruningPlan, ratio_label
from ggufreap.quantization import Quantized, QuantRequest, foretell, foretell_types, written_metadata
from ggufreap.quantization.forecast import entries_nbytes, header_nbytes
from ggufreap.rewriting import Narrow, RewriteScript, lower, write_skeleton
from ggufreap.rewriting.metadata import EXPERTS_BEFORE

Rewriter = Callable[[int], RewriteScript]  # experts kept in every block -> what writes the file


def rewriter(
    model: Model,
    plan: PruningPlan,
    out: Path,
    *,
    split_max_size: int | None = None,
    keep_split: bool = False,
    narrow: Narrow | None = None,
) -> Rewriter:
    """The scripts of all counts, from a plan of any of them; raises InfeasiblePlan for one that cannot be routed.

    Which experts stay changes no size, so other counts keep the first ones. What the header tells of method and data
    is the plan's.
    """
    layout = model.layout
    cut = partial(lower, model, out=out, split_max_size=split_max_size, keep_split=keep_split)

    def rewrite(n_keep: int) -> RewriteScript:
        layout.check_keep(n_keep)
        if n_keep == plan.n_keep:
            return cut(plan, narrow=narrow)
        return cut(of_count(plan, layout, n_keep), narrow=narrow and _any_neurons(narrow, n_keep))

    return rewrite


def of_count(plan: PruningPlan, layout: MoeLayout, n_keep: int) -> PruningPlan:
    """The same plan for another number of experts, of which the first stay."""
    if n_keep == plan.n_keep:
        return plan
    label = ratio_label(layout.group_size, layout.group_size - n_keep // layout.n_group, None)
    return replace(plan, n_keep=n_keep, ratio=label, keep=dict.fromkeys(plan.keep, tuple(range(n_keep))))


def _any_neurons(narrow: Narrow, n_keep: int) -> Narrow:
    """The same for another number of experts, of which the first neurons stay."""
    own = narrow.narrowing
    other = Narrowing.of_first(own.source_width, own.width, own.neurons, n_keep, own.method)
    return replace(narrow, narrowing=other, importance={})


class Sizer:
    """Sizes of all that can be made of `source`: itself, or pruned as `rewrite` says, in any types.

    llama.cpp chooses the types, in one process that is started when it is first asked and answers until the sizer is
    left; what it has answered is remembered. It looks at a file of the right header and size without content, which
    lies in a temporary folder as long as the process lives.
    """

    def __init__(self, source: GgufFile, rewrite: Rewriter | None = None) -> None:
        self.source, self._rewrite = source, rewrite
        self._scripts: dict[int, RewriteScript] = {}
        self._files: dict[int, GgufFile] = {}
        self._answers: dict[str, list[str]] = {}
        self._quantizer: Quantizer | None = None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        return self

    def __exit__(self, *_: object) -> None:
        self._quantizer = None
        self._files.clear()
        self._stack.close()

    def script(self, n_keep: int) -> RewriteScript:
        """What writes the byte-exact file of `n_keep` experts per block; raises InfeasiblePlan."""
        assert self._rewrite, "a sizer without a rewriter knows the whole model alone"
        if n_keep not in self._scripts:
            self._scripts[n_keep] = self._rewrite(n_keep)
        return self._scripts[n_keep]

    def quantised(
        self,
        n_keep: int | None,
        request: QuantRequest,
        out: Path = Path("model.gguf"),
        *,
        imatrix: ImatrixData | None = None,
        imatrix_later: Collection[str] | None = None,
    ) -> Quantized:
        """What `quantize_file` would make at `out` of the model with `n_keep` experts per block, or of the whole one.

        `imatrix`, for a pruned model sliced with it, and `imatrix_later` as there. Raises what it would raise; where
        llama.cpp's mix counts experts, a pruned model gets the types of the model it came from.
        """
        file = self.opened(n_keep)
        request = replace(request, n_expert_before=file.get(EXPERTS_BEFORE))
        return foretell(file, out, request, self._dry_run, imatrix=imatrix, imatrix_later=imatrix_later)

    def types(self, n_keep: int | None, request: QuantRequest, *, weighted: bool) -> dict[str, int]:
        """Tensor -> ggml type, whatever stands against it; `weighted`: there will be an importance matrix."""
        file = self.opened(n_keep)
        request = replace(request, n_expert_before=file.get(EXPERTS_BEFORE))
        return foretell_types(file, request, self._dry_run, weighted=weighted)

    def header(self, n_keep: int | None, request: QuantRequest) -> int:
        """The bytes of a quantised file's header with its padding: no type changes them, nor is llama.cpp asked."""
        if n_keep is None:
            entries = tuple(self.source.metadata.values())
            shapes = {each.name: each.shape for each in self.source.tensors}
        else:
            script = self.script(n_keep)
            entries, shapes = script.metadata, {each.name: each.shape for file in script.files for each in file.tensors}
        return header_nbytes(entries_nbytes(entries, written_metadata(self.source, request)), shapes)

    def opened(self, n_keep: int | None) -> GgufFile:
        """The model with `n_keep` experts per block, without content, or the whole one."""
        if n_keep is None:
            return self.source
        if n_keep not in self._files:
            folder = self._stack.enter_context(private_folder())
            self._files[n_keep] = open_gguf(write_skeleton(self.script(n_keep), Path(folder)))
        return self._files[n_keep]

    def _dry_run(self, call: QuantizerCall) -> Sequence[str]:
        key = json.dumps(asdict(call))
        if key not in self._answers:
            if self._quantizer is None:
                self._quantizer = self._stack.enter_context(Quantizer())
            try:
                self._answers[key] = self._quantizer.dry_run(call)
            except EngineError:  # it may have died of the question, and the next one is another
                self._quantizer = None
                raise
        return self._answers[key]
