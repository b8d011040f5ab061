"""Narrowed and quantised against the whole model quantised to the same size: KLD on held-out text, by size.

    python tests/benchmarks/narrowing_quantised.py MODEL.gguf FOLDER [--candidates 28x192:IQ3_XXS ...]

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. Whole, the model is quantised to llama-quantize's mixes; with
fewer experts, to the same; with fewer neurons too, down is in a type whose blocks fit its rows. Files lie in the cache
until they were measured, and with what was measured a run that was stopped goes on.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loss_table import CTX, calibration, held_out

from ggufreap import Output, Quantisation, Target, calibrate, prune, quantize
from ggufreap.container import open_gguf
from ggufreap.judging import Exam, compare_files
from ggufreap.narrowing.solving import down_name
from ggufreap.options.engine import EngineSettings
from ggufreap.options.quantisation import Quantiser
from ggufreap.recipe import Variant
from ggufreap.sizing import TYPES
from ggufreap.sizing.classes import ROUTED

WHOLE = ("IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")
# Experts x neurons that stay, and the mix.
CANDIDATES = (
    *("30x224:IQ3_XXS", "28x224:IQ3_XXS", "30x224:Q2_K", "30x224:IQ2_M", "29x224:IQ2_M", "30x224:IQ2_S"),
    *("28x224:IQ2_S", "28x192:IQ3_XXS", "28x224:IQ2_XS", "28x224:IQ2_XXS", "28x192:IQ2_M", "28x192:IQ2_S"),
    *("26x160:Q3_K_S", "26x160:IQ3_XXS", "26x160:IQ2_S", "24x128:IQ3_XXS"),
    *("27x256:IQ3_XXS", "25x256:IQ3_XXS", "27x256:IQ2_S", "24x256:IQ2_S", "20x256:IQ2_S"),
)
DOWN = "IQ4_NL"  # of the types whose blocks are of 32, which fit all widths, what loses least for its size


@dataclass(frozen=True)
class Found:
    """A file: its bytes, and the mean KLD of all domains and of the worst."""

    nbytes: int
    mean: float
    worst: float


class Bench:
    """The model, its texts, and what was measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.model, self.cache, self.down = options.model, options.cache, options.down
        self.settings = EngineSettings(CTX, CTX, options.threads)
        self.data = calibration(options.folder)
        self.exam = Exam.of(held_out(options.folder, options.chunks), self.settings)
        self.source = open_gguf(options.model)
        self.ledger = self.cache / "measured.json"
        known = json.loads(self.ledger.read_text()) if self.ledger.exists() else {}
        self.found = {label: Found(**each) for label, each in known.items()}

    @property
    def matrix(self) -> Path:
        path = self.cache / "whole.imatrix.gguf"
        if not path.exists():
            calibrate(self.model, self.cache / "whole.npz", self.data, imatrix_out=path, settings=self.settings)
        return path

    def whole(self, kinds: Sequence[str]) -> None:
        """The whole model in these mixes."""
        paths = {
            f"whole, {kind}": self.cache / f"whole-{kind}.gguf" for kind in kinds if f"whole, {kind}" not in self.found
        }
        for label, path in paths.items():
            quantize(self.model, path, label.split(", ")[1], Quantiser(self.matrix, n_threads=self.settings.n_threads))
        self.measure(paths)

    def narrowed(self, split: str, kinds: Sequence[str]) -> None:
        """So many experts x neurons, in these mixes."""
        n_keep, width = map(int, split.split("x"))
        wanted = {f"{split}, {kind}": kind for kind in kinds if f"{split}, {kind}" not in self.found}
        if not wanted:
            return
        source_width = self.source.by_name[down_name(0)].shape[-1]
        fits = () if width == source_width else ((ROUTED["down"], self.down),)
        variants = tuple(Variant(kind, f"{split}-{kind}", tensor_types=fits) for kind in wanted.values())
        made = prune(
            self.model,
            self.data,
            target=Target(keep=n_keep, width_ratio=str(1 - width / source_width) if width < source_width else None),
            quantisation=Quantisation(variants),
            output=Output(self.cache, verify=False),
            settings=self.settings,
        )
        self.measure({label: each.paths[0] for label, each in zip(wanted, made.quantized, strict=True)})

    def measure(self, paths: Mapping[str, Path]) -> None:
        if not paths:
            return
        compared = compare_files(self.source, [open_gguf(path) for path in paths.values()], self.exam).files
        for (label, path), comparison in zip(paths.items(), compared, strict=True):
            self.found[label] = Found(path.stat().st_size, comparison.mean.kld, comparison.worst.kld)
            print(label, self.found[label], flush=True)
            path.unlink()
        self.ledger.write_text(json.dumps({label: vars(each) for label, each in self.found.items()}))

    def table(self) -> None:
        """From large to small; every candidate beside the whole model in the mix of nearest size."""
        weights = sum(math.prod(record.shape) for record in self.source.tensors)
        whole = {label: each for label, each in self.found.items() if label.startswith("whole")}
        print("\n| file | MB | bits per weight of the whole | mean | worst | whole of nearest size | mean | x |")
        print("|---" * 8 + "|")
        for label, each in sorted(self.found.items(), key=lambda item: -item[1].nbytes):
            if label in whole:
                continue
            name = min(whole, key=lambda kind: abs(whole[kind].nbytes - each.nbytes))
            beside = whole[name]
            print(
                f"| {label} | {each.nbytes / 1e6:.2f} | {8 * each.nbytes / weights:.2f} | {each.mean:.4f} "
                f"| {each.worst:.4f} | {name.split(', ')[1]}, {beside.nbytes / 1e6:.2f} MB | {beside.mean:.4f} "
                f"| {each.mean / beside.mean:.2f} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", nargs="+", default=WHOLE, choices=TYPES)
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES, help="EXPERTSxNEURONS:MIX")
    parser.add_argument("--down", default=DOWN)
    parser.add_argument("--chunks", type=int, default=16, help="held-out chunks per domain")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--cache", type=Path, default=Path("narrowing-quantised"), help="folder")
    options = parser.parse_args()
    options.cache.mkdir(exist_ok=True)
    bench = Bench(options)
    bench.whole(options.whole)
    wanted: dict[str, list[str]] = {}
    for candidate in options.candidates:
        split, kind = candidate.split(":")
        wanted.setdefault(split, []).append(kind)
    for split, kinds in wanted.items():
        bench.narrowed(split, kinds)
    bench.table()


if __name__ == "__main__":
    main()
