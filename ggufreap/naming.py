"""File names, as the GGUF naming convention has them: Model-Size-Finetune-Encoding.gguf."""

import re
from pathlib import Path

from ggufreap.container.gguf_file import SPLIT_NAME

ENCODING = re.compile(r"(?i)[-.](?P<encoding>(UD-)?(I?Q\d\w*|TQ\d\w*|BF16|F16|F32|MXFP4\w*|NVFP4\w*))$")


def stem_of(model: Path) -> str:
    """The model's file name without `.gguf` and without `-00001-of-0000N`."""
    match = SPLIT_NAME.fullmatch(model.name)
    return match["prefix"] if match else model.name.removesuffix(".gguf")


def pruned_name(model: Path, label: str, encoding: str | None = None) -> str:
    """`Model-Q8_0.gguf` pruned with label `REAP-0.20` is `Model-REAP-0.20-Q8_0.gguf`, or of another `encoding`."""
    stem = stem_of(model)
    match = ENCODING.search(stem)
    base = stem[: match.start()] if match else stem
    return "-".join(filter(None, (base, label, encoding or (match and match["encoding"])))) + ".gguf"


def target(model: Path, out: Path | None, label: str) -> Path:
    """Where the pruned file goes: the file `out` (it ends in .gguf), the folder `out`, or beside the model."""
    if out is not None and out.suffix == ".gguf" and not out.is_dir():
        return out
    return (out or model.parent) / pruned_name(model, label)
