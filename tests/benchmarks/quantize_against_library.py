"""How much slower quantising through ggufreap is than the bare call of llama.cpp's library.

Both start in a fresh process with the same importance matrix on disk, and make the same bytes. The bare one imports
llama_cpp and numpy, reads the matrix, and calls llama_model_quantize; ours is the command line, with its checks, dry
run, synced and verified file.
"""

import ctypes
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from bench import Sizes, arguments, child, report, take_turns, write_moe
from gguf import GGMLQuantizationType as Kind

from ggufreap import imatrix
from ggufreap.container import open_gguf
from ggufreap.imatrix import Imatrix, ImatrixEntry
from ggufreap.quantization.request import FILE_TYPES


def bare(source: str, matrix: str, out: str, file_type: str) -> None:
    """What this script does as the contestant's own process."""
    from llama_cpp import llama_cpp as llama

    params = llama.llama_model_quantize_default_params()
    params.ftype, params.nthread, params.allow_requantize = int(file_type), 0, True
    with np.load(matrix) as archive:
        arrays = {name: archive[name] for name in archive}
    weights = (llama.llama_model_imatrix_data * (len(arrays) + 1))()
    for weight, (name, values) in zip(weights, arrays.items(), strict=False):
        weight.name, weight.size = name.encode(), values.size
        weight.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    params.imatrix = weights
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(out), ctypes.byref(params)):
        sys.exit("llama_model_quantize failed")


def importance_of(path: Path) -> Imatrix:
    """Random means, per expert."""
    rng, entries = np.random.default_rng(0), {}
    for record in open_gguf(path).tensors:
        if record.name.startswith("blk.") and len(record.shape) > 1 and "ffn_gate_inp" not in record.name:
            n_mat = record.shape[0] if len(record.shape) > 2 else 1
            sums = rng.random((n_mat, record.shape[-1]), np.float32) + np.float32(0.01)
            entries[record.name] = ImatrixEntry.of(sums * 64, np.full(n_mat, 64))
    return Imatrix(entries, ("noise",), 1, 64)


def tensor_hash(path: Path) -> str:
    """Of all tensor data, which must not differ."""
    file, digest = open_gguf(path), hashlib.sha256()
    for record in file.tensors:
        digest.update(file.map(record).tobytes())
    return digest.hexdigest()


def main() -> None:
    if sys.argv[1:2] == ["bare"]:
        bare(*sys.argv[2:])
        return
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--blocks", type=int, default=3, help="of the random model (3)")
    parser.add_argument("--experts", type=int, default=16, help="of the random model (16)")
    parser.add_argument("--type", default="Q4_K_M", help="what to quantise to (Q4_K_M)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        work = Path(folder)
        source, matrix, raw = work / "model.gguf", work / "matrix.gguf", work / "matrix.npz"
        write_moe(source, Sizes(options.blocks, options.experts, n_ff=768), (Kind.Q8_0, Kind.Q8_0))
        collected = importance_of(source)
        imatrix.save(matrix, collected)
        np.savez(raw, **{name: imatrix.means(entry) for name, entry in collected.entries.items()})
        outs = {"bare call": work / "bare.gguf", "ggufreap": work / "our.gguf"}
        own = [__file__, "bare", source, raw, outs["bare call"], str(FILE_TYPES[options.type])]
        flags = ["--type", options.type, "--imatrix", matrix]
        commands = {
            "bare call": [sys.executable, *own],
            "ggufreap": [sys.executable, "-m", "ggufreap", "quantize", source, "-o", outs["ggufreap"], *flags],
        }
        contestants = {name: lambda command=command: child(command)[0] for name, command in commands.items()}
        take_turns(contestants, 1)  # the first reading of the file belongs to nobody
        assert len({tensor_hash(out) for out in outs.values()}) == 1
        seconds = take_turns(contestants, options.rounds)
    theirs, ours = map(median, seconds.values())
    report(seconds, {"ggufreap / bare call": ours / theirs})


if __name__ == "__main__":
    main()
