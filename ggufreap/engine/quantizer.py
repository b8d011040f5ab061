"""llama.cpp's quantiser in a process of its own: neither its abort nor Ctrl-C may take the user's run with it.

Run as `python -m ggufreap.engine.quantizer`: reads one call per line of JSON from standard input, writes llama.cpp's
log to standard output and then one line with the answer.
"""

import ctypes
import json
import logging
import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ggufreap.engine.native import bindings
from ggufreap.errors import EngineError, OutputError
from ggufreap.files import create, private_folder
from ggufreap.process import Child, last_words

ImatrixData = Mapping[str, npt.NDArray[np.float32]]  # tensor -> mean squares of its inputs [n_mat * n_in]

_LOGGER = logging.getLogger("ggufreap.llama_cpp")
_ANSWER = "\x1e"  # opens the line that ends a call; llama.cpp's log never starts with it
_REASON = re.compile(r"failed to quantize: (.+)")
_UNSET, _INT, _STR, _ERROR = 43, 0, 3, 4  # GGML_TYPE_COUNT, llama_model_kv_override_type, GGML_LOG_LEVEL_ERROR


@dataclass(frozen=True)
class QuantizerCall:
    """One llama_model_quantize: what is set in its parameters (include/llama.h, llama_model_quantize_params).

    `tensor_types`: (ECMAScript regex, ggml type), the first match wins; `metadata`: strings of at most 127 bytes and
    unsigned integers; `weighted`: there is an importance matrix, which steers the choice of types in a dry run too.
    """

    model: str
    out: str
    file_type: int
    tensor_types: tuple[tuple[str, int], ...] = ()
    token_embedding_type: int | None = None
    output_tensor_type: int | None = None
    pure: bool = False
    keep_split: bool = False
    dry_run: bool = False
    weighted: bool = False
    n_threads: int = 0
    max_buf_size: int = 256 << 20
    metadata: Mapping[str, str | int] | None = None


class Quantizer:
    """A running quantiser process; leaving it kills the process, whatever it does."""

    def __enter__(self) -> Self:
        self._process = Child(__name__, stderr=subprocess.STDOUT)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill the process; what it was writing grows no more."""
        self._process.stop()

    def run(
        self,
        call: QuantizerCall,
        on_line: Callable[[str], None],
        imatrix: ImatrixData | None = None,
        folder: Path | None = None,
    ) -> None:
        """Run one call, every line of llama.cpp's log to `on_line`; raises EngineError with llama.cpp's own reason.

        The matrix is handed over in a private `folder`, where there is one.
        """
        with private_folder() if folder is None else nullcontext(folder) as place:
            path = None if imatrix is None else _save(imatrix, place)
            reason = self._ask(json.dumps({"call": asdict(call), "imatrix": path}), on_line)
        if reason is not None:
            raise EngineError(f"llama.cpp does not quantise {call.model}: {reason}")

    def dry_run(self, call: QuantizerCall) -> list[str]:
        """llama.cpp's log of a dry run of `call`; raises EngineError as `run` does."""
        lines: list[str] = []
        self.run(replace(call, dry_run=True), lines.append)
        return lines

    def _ask(self, job: str, on_line: Callable[[str], None]) -> str | None:
        assert self._process.stdout
        self._process.tell(job)
        last: deque[str] = deque(maxlen=50)
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                reason: str | None = json.loads(line[len(_ANSWER) :])
                return reason
            if line := line.strip():
                _LOGGER.debug(line)
                last.append(line)
                on_line(line)
        ending = self._process.ending()
        hint = "; give a smaller buffer or fewer threads" if ending.signal == "SIGKILL" else ""
        return f"it {last_words(ending, last)}{hint}"


def _save(imatrix: ImatrixData, folder: Path) -> str:
    """The file that hands the matrix over; whoever has read it removes it."""
    values = (np.ascontiguousarray(array, np.float32) for array in imatrix.values())
    path = folder / "imatrix.npz"
    try:
        with create(path) as file:
            np.savez(file, np.array(json.dumps(list(imatrix))), *values)
    except OSError as error:
        raise OutputError(f"cannot write {path} for llama.cpp: {error.strerror}; free some space there") from None
    return str(path)


# --- the process itself -----------------------------------------------------------------------------------------------


def _main() -> None:
    try:
        llama = bindings()
    except EngineError as error:
        _answer(str(error))
        sys.exit(1)
    errors: list[str] = []

    def on_piece(level: int, text: bytes, _data: object) -> None:
        if level == _ERROR:
            errors.append(text.decode(errors="replace").strip())
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    callback = llama.llama_log_callback(on_piece)
    llama.llama_log_set(callback, ctypes.c_void_p(0))
    llama.llama_backend_init()
    for line in sys.stdin:
        job = json.loads(line)
        errors.clear()
        failed = _quantize(llama, QuantizerCall(**job["call"]), _load(job["imatrix"]))
        _answer(_reason(errors) if failed else None)


def _answer(reason: str | None) -> None:
    sys.stdout.buffer.write(f"\n{_ANSWER}{json.dumps(reason)}\n".encode())
    sys.stdout.buffer.flush()


def _reason(errors: list[str]) -> str:
    reasons = [match[1] for match in map(_REASON.search, errors) if match]
    return [*reasons, *filter(None, errors), "it gave no reason"][0]


def _load(path: str | None) -> ImatrixData:
    if path is None:
        return {}
    with np.load(path) as archive:
        names = json.loads(str(archive["arr_0"]))
        imatrix = {name: archive[f"arr_{index}"] for index, name in enumerate(names, 1)}
    Path(path).unlink()  # nobody else reads it
    return imatrix


def _quantize(llama: Any, call: QuantizerCall, imatrix: ImatrixData) -> bool:
    """Call llama.cpp; every array that it reads ends with an empty element and lives until it returns."""
    params = llama.llama_model_quantize_default_params()
    params.nthread, params.ftype, params.max_buf_size = call.n_threads, call.file_type, call.max_buf_size
    params.token_embedding_type = _UNSET if call.token_embedding_type is None else call.token_embedding_type
    params.output_tensor_type = _UNSET if call.output_tensor_type is None else call.output_tensor_type
    params.pure, params.keep_split, params.dry_run = call.pure, call.keep_split, call.dry_run
    params.allow_requantize = True  # what may be quantised again is decided by the one who calls
    weights = (llama.llama_model_imatrix_data * (len(imatrix) + 1))()
    for weight, (name, values) in zip(weights, imatrix.items(), strict=False):
        weight.name, weight.size = name.encode(), values.size
        weight.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    types = (llama.llama_model_tensor_override * (len(call.tensor_types) + 1))()
    for override, (pattern, kind) in zip(types, call.tensor_types, strict=False):
        override.pattern, override.type = pattern.encode(), kind
    metadata = call.metadata or {}
    entries = (llama.llama_model_kv_override * (len(metadata) + 1))()
    for entry, (key, value) in zip(entries, metadata.items(), strict=False):
        entry.key = key.encode()
        if isinstance(value, str):
            entry.tag, entry.value.val_str = _STR, value.encode()
        else:
            entry.tag, entry.value.val_i64 = _INT, value
    params.tt_overrides, params.kv_overrides = types, entries
    if call.weighted:
        params.imatrix = weights
    result = llama.llama_model_quantize(os.fsencode(call.model), os.fsencode(call.out), ctypes.byref(params))
    return bool(result)


if __name__ == "__main__":
    _main()
