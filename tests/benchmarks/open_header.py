"""How long it takes to open and inspect a large header: 250,000 tokens, scores, types and merges, 603 tensors.

Measured in this process and as whole commands, since for a user the imports count too; gguf.GGUFReader is the
comparison. The file is in the page cache.
"""

import sys
import tempfile
from pathlib import Path
from statistics import median

import gguf
import numpy as np
from bench import arguments, child, report, take_turns, timed
from tiny_gguf import qwen3moe

from ggufreap import verbs

N_VOCAB = 250_000


def main() -> None:
    options = arguments(__doc__, rounds=7).parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        scores = {"tokenizer.ggml.scores": np.zeros(N_VOCAB, np.float32)}
        path = qwen3moe(Path(folder, "model.gguf"), n_block=50, n_embd=32, n_ff=32, n_vocab=N_VOCAB, metadata=scores)
        ours = [sys.executable, "-m", "ggufreap", "inspect", path]
        theirs = [sys.executable, "-c", f"import gguf; gguf.GGUFReader({str(path)!r})"]
        nothing = [sys.executable, "-c", ""]
        seconds = take_turns(
            {
                "open and inspect": lambda: timed(lambda: verbs.inspect(path)),
                "gguf.GGUFReader": lambda: timed(lambda: gguf.GGUFReader(path)),
                "ggufreap inspect, whole process": lambda: child(ours)[0],
                "gguf.GGUFReader, whole process": lambda: child(theirs)[0],
                "python that does nothing": lambda: child(nothing)[0],
            },
            options.rounds,
        )
    inspect, reader, command, reader_command, _ = map(median, seconds.values())
    report(seconds, {"GGUFReader / inspect": reader / inspect, "the same, whole process": reader_command / command})


if __name__ == "__main__":
    main()
