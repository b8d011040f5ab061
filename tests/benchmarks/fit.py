"""Whether the file that `prune --fit` chooses is the best of its size: mean KLD on held-out text at eight sizes.

    python tests/benchmarks/fit.py MODEL.gguf FOLDER [--sizes 6 7 8 9 10 12 14 16] [--chunks 8]
    python tests/benchmarks/fit.py --headers

FOLDER holds `<domain>.calib.txt` and `<domain>.eval.txt`. For every size (MB that the file may have) the verb makes its
files and measures them; the unpruned model is measured in all of llama-quantize's mixes. Then each choice is held
against all that were made and are no larger. The choice is made on the very text that it is judged by.

With `--headers` no model is needed: of sparse files with the shapes of seven real ones all prospects are weighed, and
what is chosen at several sizes is held against llama.cpp's dry run of the very file.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from loss_table import CTX, calibration, held_out

sys.path.append(str(Path(__file__).parents[1]))
import real_headers
from test_fitting import check_sizes, making_of, opened

from ggufreap import Fit, Judgement, Output, Target, fit, fitting, quantize
from ggufreap.container import open_gguf
from ggufreap.fitting import Prospect
from ggufreap.judging import Exam, compare_files
from ggufreap.options.engine import EngineSettings
from ggufreap.options.quantisation import Quantiser
from ggufreap.options.target import DEFAULT_METHOD
from ggufreap.sizing import TYPES
from ggufreap.verbs.widths import widths_of

SIZES = (6, 7, 8, 9, 10, 12, 14, 16)
WORSE = 1.1  # times the best KLD: what a choice may never be
Measured = dict[str, tuple[int, float]]  # label -> bytes, mean KLD


def unpruned(model: Path, folder: Path, imatrix: Path, exam: Exam) -> Measured:
    """The whole model in every mix."""
    source, measured = open_gguf(model), {}
    for kind in TYPES:
        path = folder / f"unpruned-{kind}.gguf"
        made = quantize(model, path, kind, Quantiser(imatrix, n_threads=exam.settings.n_threads))
        (comparison,) = compare_files(source, [open_gguf(path)], exam).files
        measured[f"unpruned, {kind}"] = made.nbytes, comparison.mean.kld
        path.unlink()
    return measured


def headers() -> None:
    """Real shapes: predicted sizes of what is chosen against the dry run, and what the search takes."""
    print("| model | prospects | widths | seconds | of this process | held against the dry run |")
    print("|---|---|---|---|---|---|")
    for name in real_headers.MODELS:
        with tempfile.TemporaryDirectory() as folder:
            making = making_of(opened(real_headers.write(name, Path(folder))))
            started, own = time.perf_counter(), time.process_time()
            widths = widths_of(making.model, True)
            pool = making.pool(widths)
            taken, own = time.perf_counter() - started, time.process_time() - own
            chosen = set[Prospect]()
            for nbytes in fitting.spread(pool, 10):
                chosen.update(fitting.contenders(pool, nbytes))
            check_sizes(making, chosen, len(pool.widths))
        held = f"{len(chosen)}, {sum(each.narrowed for each in chosen)} of them narrower"
        told = f"{held}: {widths.reason}" if widths.reason else held
        print(f"| {name} | {pool.size:,} | {len(pool.widths)} | {taken:.1f} | {own:.1f} | {told} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--headers", action="store_true", help="of the headers of real models")
    parser.add_argument("--sizes", type=float, nargs="+", default=SIZES, help="MB")
    parser.add_argument("--chunks", type=int, default=8, help="held-out chunks per domain")
    parser.add_argument("--method", default=DEFAULT_METHOD)
    parser.add_argument("-t", "--threads", type=int, default=1)
    options = parser.parse_args()
    if options.headers:
        headers()
        return
    settings = EngineSettings(CTX, CTX, options.threads)
    text = held_out(options.folder, options.chunks)
    judgement, memory = Judgement(text.files, text.chunks, text.ctx_size), Fit(ctx=CTX, margin=0)
    beside = fitting.budget_of(options.model, 0, memory, settings).buffers.nbytes
    measured: Measured = {}
    chosen: dict[float, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in options.sizes:
            target = Target(fit=int(megabytes * 1e6) + beside, method=options.method)
            output = Output(folder, verify=False)
            fitted = fit(
                *(options.model, calibration(options.folder)),
                target=target,
                fit=memory,
                judgement=judgement,
                output=output,
                settings=settings,
            )
            for made in fitted.made:
                assert made.comparison
                measured[made.prospect.label] = made.prospect.nbytes, made.comparison.mean.kld
                told = f"{made.loss:.4f}, estimated {made.prospect.loss:.4f}"
                print(f"{megabytes:g} MB: {made.prospect.label}: {told}", flush=True)
            chosen[megabytes] = fitted.best.prospect.label
        matrix = next(Path(folder).glob(f"{options.model.name.removesuffix('.gguf')}.imatrix.gguf"))
        measured |= unpruned(options.model, Path(folder), matrix, Exam.of(text, settings))
    print("\n| size | chosen | MB | KLD | best of all | KLD | best unpruned | KLD |\n|---|---|---|---|---|---|---|---|")
    first = 0
    for megabytes, label in chosen.items():
        small = {name: kld for name, (nbytes, kld) in measured.items() if nbytes <= megabytes * 1e6}
        best = min(small, key=lambda name: small[name])
        whole = min((name for name in small if name.startswith("unpruned")), key=lambda name: small[name], default="-")
        nbytes, kld = measured[label]
        first += kld <= small[best]
        print(
            f"| {megabytes:g} MB | {label} | {nbytes / 1e6:.2f} | {kld:.4f} | {best} | {small[best]:.4f} "
            f"| {whole} | {small.get(whole, float('nan')):.4f} |"
        )
        if kld > WORSE * small[best]:
            print(f"more than {WORSE} times the best")
    print(f"lowest of all that were made at {first} of {len(chosen)} sizes")


if __name__ == "__main__":
    main()
