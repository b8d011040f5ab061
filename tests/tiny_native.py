"""Tiny random models for every mixture-of-experts architecture of llama.cpp.

llama.cpp itself is asked which tensors an architecture wants for some metadata. They are filled with seeded noise and
written with that same metadata, so `tiny_rows` holds metadata only and no tensor name or shape is repeated here.
"""

import argparse
import json
import re
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tiny_gguf
import tiny_llama
from gguf import GGMLQuantizationType as Kind
from tiny_rows import (
    BASE,
    DENSE_FIRST,
    EMBD,
    FUSABLE,
    GROUPED,
    MTP,
    MTP_BY_HAND,
    MTP_WITHOUT_GRAPH,
    N_VOCAB,
    NATIVE,
    NEXTN,
    NOT_BUILDABLE,
    NOT_SAVABLE,
    REFUSED,
    VARIANTS,
    Row,
)

__all__ = [
    "FUSABLE",
    "GROUPED",
    "MTP",
    "MTP_WITHOUT_GRAPH",
    "NATIVE",
    "NOT_BUILDABLE",
    "NOT_SAVABLE",
    "N_VOCAB",
    "REFUSED",
    "VARIANTS",
]

ROUTED = re.compile(r"_(exps|shexp)\.|ffn_gate_inp\.|exp_probs_b")
DENSE = re.compile(r"\.ffn_(gate|up|down)\.")
# Not the norm that arctic calls ffn_norm_exps.
EXPERT_WEIGHT = re.compile(r"ffn_(gate|up|down|gate_up)_(ch)?exps\.weight$")
# gemma4 requires the scale of its router, which is not per expert.
OPTIONAL_SCALE = re.compile(r"(?<!ffn_gate_inp)\.(input_)?scale$")

# How a tensor is filled, by the first pattern that its name matches: (pattern, mean, deviation).
FILL: tuple[tuple[str, float, float], ...] = (
    (r"ffn_gate_inp\.weight$", 0.0, 2 * EMBD**-0.5),
    (r"ffn_gate_inp\.scale$", 1.0, 0.1),
    (r"norm.*\.weight$", 1.0, 0.1),
    (r"rope_freqs\.weight$", 1.0, 0.1),
    (r"layer_output_scale\.weight$", 1.0, 0.1),
    (r"exp_probs_b", 0.0, 0.2),
    (r"ssm_a$", -1.0, 0.2),
    (r"ssm_d$", 1.0, 0.2),
    (r"\.bias$", 0.0, 0.1),
    (r"attn_sinks", 0.0, 1.0),
    (r"hc_.*(base|scale)", 0.5, 0.2),
    (r"token_embd\.weight$", 0.0, 1.0),
)


def metadata_of(
    name: str,
    *,
    n_expert: int = 16,
    n_used: int = 4,
    groups: int = 0,
    groups_used: int = 0,
    mtp: bool = False,
    overrides: Row | None = None,
) -> tuple[str, Row]:
    """Architecture and metadata of a row or variant, keys without the architecture's prefix."""
    arch, changes = VARIANTS.get(name, (name, {}))
    row = {**BASE, **NATIVE[arch], "expert_count": n_expert, "expert_used_count": n_used, **changes}
    if groups:
        row |= {"expert_group_count": groups, "expert_group_used_count": groups_used}
    if mtp:
        n_block = row["block_count"]
        row |= {key: [*v, v[-1]] for key, v in row.items() if isinstance(v, list) and len(v) == n_block}
        row |= {"block_count": n_block + 1, "nextn_predict_layers": 1, **MTP[arch]}
    return arch, row | (overrides or {})


def prefixed(arch: str, row: Row) -> Row:
    """The metadata with the keys that a file has."""
    return {key if key.startswith(("general.", "tokenizer.")) else f"{arch}.{key}": v for key, v in row.items()}


def fill(name: str, shape: tuple[int, ...], *, seed: int, n_expert: int) -> np.ndarray:
    """Noise for one tensor, depending on the seed and the tensor's name only."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if "tid2eid" in name:
        order = np.argsort(rng.random((shape[0], n_expert)), axis=1)
        return order[:, : shape[1]].astype(np.int32)
    if OPTIONAL_SCALE.search(name):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    mean, deviation = next(((m, d) for pattern, m, d in FILL if re.search(pattern, name)), (0.0, None))
    return tiny_gguf.noise(name, shape, seed, mean, deviation)


def _ask(arch: str, row: Row, header: Path) -> tiny_llama.Shapes:
    """Every tensor that llama.cpp creates for the metadata; `header` is a scratch file."""
    mtp = "nextn_predict_layers" in row
    by_hand = mtp and arch in MTP_BY_HAND
    asked = {**row, "nextn_predict_layers": 0} if by_hand else row
    tiny_gguf.write(header, arch, prefixed(arch, asked), {})
    shapes = tiny_llama.wanted_tensors(header, load_mtp=mtp)
    if by_hand:
        last = f"blk.{row['block_count'] - 1}"
        shapes |= {f"{last}.{name}": shape for name, shape in NEXTN.items()}
        if arch == "bailingmoe2":
            shapes[f"{last}.layer_output_norm.weight"] = (EMBD,)
    return shapes


def _split_gate_up(shapes: tiny_llama.Shapes) -> tiny_llama.Shapes:
    """The same tensors with gate and up apart, and the scales that llama.cpp looks for only then."""
    split: tiny_llama.Shapes = {}
    for name, shape in shapes.items():
        if "ffn_gate_up_exps" not in name:
            split[name] = shape
            continue
        n_expert, width, n_embd = shape
        for part in ("gate", "up"):
            stem = name.replace("gate_up", part).removesuffix(".weight")
            split[f"{stem}.weight"] = (n_expert, width // 2, n_embd)
            split[f"{stem}.scale"] = split[f"{stem}.input_scale"] = (n_expert,)
    return split


def shapes_of(arch: str, row: Row, header: Path, *, fused: bool, scales: bool) -> tiny_llama.Shapes:
    """The tensors of the model; `header` is a scratch file that llama.cpp reads the metadata from."""
    shapes = _ask(arch, row, header)
    if not fused:
        shapes = _split_gate_up(shapes)
    elif arch not in FUSABLE:
        raise ValueError(f"{arch} has no fused gate and up")
    if arch in DENSE_FIRST:
        shapes = {name: s for name, s in shapes.items() if not (ROUTED if "blk.0." in name else DENSE).search(name)}
    # Unless asked to load MTP, llama.cpp skips that block but not its scales, and then counts too many tensors.
    mtp_block = f"blk.{row['block_count'] - 1}." if "nextn_predict_layers" in row else None
    bare = ("",) if not scales else (mtp_block,) if mtp_block else ()
    return {name: s for name, s in shapes.items() if not (name.startswith(bare) and OPTIONAL_SCALE.search(name))}


def expert_tensors(name: str, header: Path, *, mtp: bool = False, fused: bool = False, scales: bool = True) -> set[str]:
    """The tensors whose shape depends on the number of experts according to llama.cpp; `header` is a scratch file."""
    few, many = (
        shapes_of(*metadata_of(name, n_expert=n, mtp=mtp), header, fused=fused, scales=scales) for n in (8, 16)
    )
    return {tensor for tensor in many if many[tensor] != few[tensor]}


def build(
    name: str,
    path: Path,
    *,
    n_expert: int = 16,
    n_used: int = 4,
    groups: int = 0,
    groups_used: int = 0,
    mtp: bool = False,
    fused: bool = False,
    scales: bool = True,
    expert_type: Kind = Kind.F32,
    seed: int = 0,
    overrides: Row | None = None,
) -> Path:
    """Write a tiny random model of architecture (or variant) `name`.

    `mtp` adds the MTP block, `fused` keeps gate and up in one tensor, `scales` writes the optional `.scale` and
    `.input_scale` tensors. Impossible metadata can abort the process: see `build_in_subprocess`.
    """
    counts = {"n_expert": n_expert, "n_used": n_used, "groups": groups, "groups_used": groups_used}
    arch, row = metadata_of(name, **counts, mtp=mtp, overrides=overrides)
    tensors: tiny_gguf.Tensors = {}
    for tensor, shape in shapes_of(arch, row, path, fused=fused, scales=scales).items():
        array = fill(tensor, shape, seed=seed, n_expert=n_expert)
        plain = Kind.I32 if array.dtype == np.int32 else Kind.F32
        tensors[tensor] = (array, expert_type if EXPERT_WEIGHT.search(tensor) else plain)
    tiny_gguf.write(path, arch, prefixed(arch, row), tensors)
    return path


def build_in_subprocess(name: str, path: Path, **options: Any) -> Path:
    """`build` in a process of its own, since a failed GGML_ASSERT ends the process."""
    command = [sys.executable, __file__, name, str(path), "--options", json.dumps(options)]
    subprocess.run(command, check=True, timeout=120)
    return path


def main() -> None:
    """Build one model; with --decode also load it again and check its logits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--options", type=json.loads, default={}, help="the keywords of build() as JSON")
    parser.add_argument("--decode", action="store_true")
    args = parser.parse_args()
    if "expert_type" in args.options:
        args.options["expert_type"] = Kind(args.options["expert_type"])
    build(args.name, args.out, **args.options)
    if args.decode:
        result = tiny_llama.outputs(args.out, [7 * i % N_VOCAB for i in range(32)])
        print(f"{args.name}: {args.out.stat().st_size} bytes, output rms {np.sqrt((result**2).mean()):.3f}")
        if not np.isfinite(result).all():
            sys.exit("the outputs are not finite")


if __name__ == "__main__":
    main()
