"""How long `calibrate`, with its importance matrix, takes beside llama.cpp's own llama-imatrix on the same chunks.

Whole commands as a user types them, one thread each: processor time of all their processes, loading included. The model
needs a tokenizer (`real_shape.py --blocks 2`), the text is random words. llama-imatrix is no part of llama-cpp-python:
one g++ of tools/imatrix/imatrix.cpp against the package's libllama-common, libllama and libggml makes it.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from bench import arguments, report, take_turns


def write_text(path: Path, n_words: int, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    letters, lengths = random.integers(97, 123, (n_words, 4)), random.integers(1, 5, n_words)
    words = ("".join(map(chr, word[:length])) for word, length in zip(letters, lengths, strict=True))
    path.write_text(" ".join(words))


def processor_seconds(command: Sequence[str | Path], folder: Path) -> float:
    """Of a command and all that it waited for; it runs in `folder`, which is empty again afterwards."""
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    message = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed: {message}")
    for made in folder.iterdir():
        made.unlink()
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("llama_imatrix", type=Path, help="the program")
    parser.add_argument("model", type=Path)
    parser.add_argument("--chunks", type=int, default=8, help="of 512 tokens (8)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as name:
        folder, text = Path(name, "out"), Path(name, "text.txt")
        folder.mkdir()
        write_text(text, 2 * 512 * options.chunks)
        same = ["-f", text, "-c", "512", "--chunks", str(options.chunks), "-t", "1"]
        theirs = [options.llama_imatrix.resolve(), "-m", options.model.resolve(), "-o", "m.gguf", "-ngl", "0", *same]
        ours = [sys.executable, "-m", "ggufreap", "calibrate", options.model.resolve(), "-o", "S.npz", *same]
        commands = {
            "llama-imatrix": theirs,
            "llama-imatrix --no-ppl": [*theirs, "--no-ppl"],
            "calibrate -np 1": [*ours, "-np", "1"],
            "calibrate": ours,
        }
        contestants: dict[str, Callable[[], float]] = {
            name: partial(processor_seconds, command, folder) for name, command in commands.items()
        }
        seconds = take_turns(contestants, options.rounds)
    imatrix, no_ppl, alone, at_once = map(median, seconds.values())
    figures = {"-np 1 / llama-imatrix": alone / imatrix, "at once / llama-imatrix": at_once / imatrix}
    figures |= {"-np 1 / --no-ppl": alone / no_ppl, "at once / --no-ppl": at_once / no_ppl}
    report(seconds, figures)


if __name__ == "__main__":
    main()
