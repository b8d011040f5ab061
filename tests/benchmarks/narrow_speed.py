"""How much faster narrower experts are: prompt and decode, of a model of realistic width, both files in turn.

    python tests/benchmarks/real_shape.py model.gguf --blocks 8 --no-mtp
    python tests/benchmarks/narrow_speed.py model.gguf

The narrower file is written beside the model and removed: the first neurons stay, since which ones decides on no time.
Rows of down that fit their type no more get another, which is printed. Processor time with one thread, since other work
on the machine changes wall-clock time; several rounds, the order turned round in each.
"""

import argparse
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

from ggufreap.architecture.width import expert_width
from ggufreap.container import type_name
from ggufreap.engine.session import LlamaSession
from ggufreap.evaluation.speed import measure
from ggufreap.files import private_folder
from ggufreap.model import Model
from ggufreap.narrowing import Narrowing
from ggufreap.narrowing.widths import width_to_keep
from ggufreap.options.engine import EngineSettings
from ggufreap.rewriting import Narrow, execute, lower
from ggufreap.verbs.narrow import everything

Samples = dict[str, list[float]]


def narrower(model: Model, ratio: str, folder: Path) -> Model:
    """The model with fewer neurons in every expert, in `folder`."""
    width = expert_width(model.file, model.layout)
    plan = everything(model)
    narrowing = Narrowing.of_first(width, width_to_keep(width, ratio).width, plan.keep, plan.n_keep)
    script = lower(model, plan, folder / "narrow.gguf", narrow=Narrow(narrowing))
    execute(script)
    print(f"{narrowing.summary}: {script.source_nbytes:,} bytes -> {script.nbytes:,}")
    for note in script.notes:
        print(note)
    return Model.open(folder / "narrow.gguf")


def run(model: Model, options: argparse.Namespace, samples: Samples) -> None:
    """One round of a file."""
    settings = EngineSettings(
        options.n_prompt, options.n_prompt, options.threads, n_gpu_layers=0, mmap=True, watched=False
    )
    with LlamaSession(model.path, model.layout.nodes, replace(settings, n_parallel=1)) as engine:
        clock = time.process_time if options.threads == 1 else time.perf_counter
        for speed in measure(engine, n_prompt=options.n_prompt, n_gen=options.n_gen, repetitions=1, clock=clock):
            samples.setdefault(speed.test, []).extend(speed.samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--width-ratio", default="0.25")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("-p", "--n-prompt", type=int, default=256)
    parser.add_argument("-n", "--n-gen", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=1, help="with more than one, wall-clock time")
    options = parser.parse_args()
    model = Model.open(options.model)
    with private_folder(options.model.parent) as folder:
        narrow = narrower(model, options.width_ratio, folder)
        before, after = Samples(), Samples()
        for turn in range(options.rounds):
            sides = [(model, before), (narrow, after)]
            for side, samples in sides if turn % 2 == 0 else sides[::-1]:
                run(side, options, samples)
        for each in (model, narrow):
            kinds = Counter(type_name(record.type) for record in each.file.tensors if "_exps" in record.name)
            print(f"{each.path.name}: experts in {', '.join(f'{count} x {kind}' for kind, count in kinds.items())}")
    for test, first in before.items():
        ratios = [new / old for new, old in zip(after[test], first, strict=True)]
        spread = f" ± {stdev(ratios) / len(ratios) ** 0.5:.2f}" if len(ratios) > 1 else ""
        print(f"{test}: {fmean(first):.1f} -> {fmean(after[test]):.1f} tokens/s, {fmean(ratios):.2f}x{spread}")


if __name__ == "__main__":
    main()
