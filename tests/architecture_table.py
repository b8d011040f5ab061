"""The table of architectures in ggufreap/architecture/README.md, made of what is known and of what the tests run.

`python tests/architecture_table.py` writes it anew.
"""

import tomllib
from pathlib import Path
from typing import Any

import tiny_rows

import ggufreap
from ggufreap.architecture.catalog import ARCHITECTURES, Architecture, SharedWidth

ROOM = Path(ggufreap.__file__).parent / "architecture"
README = ROOM / "README.md"
COMMAND = "python tests/architecture_table.py"
BEGIN, END = f"<!-- made by {COMMAND} -->\n", "<!-- end of what it makes -->\n"
HEADER = ("architecture", "router", "MTP blocks", "checked", "also checked, refused parts", "narrower experts")
NARROWER = {
    SharedWidth.OWN: "yes",
    SharedWidth.COUNTED: "shared experts are filled up",
    SharedWidth.FALLBACK: "yes",
    SharedWidth.FALLBACK_EACH: "yes",
}
LAYOUTS = {
    "groups": "expert groups",
    "hash": "hash routing refused",
    "latent": "latent width",
    "ple": "per-layer embeddings",
    "puzzle": "own width and count per block",
}


def facts(name: str) -> dict[str, dict[str, Any]]:
    """One of the data files: entry -> its facts."""
    return tomllib.loads((ROOM / "facts" / f"{name}.toml").read_text(encoding="utf-8"))


def table() -> str:
    """What stands between the two marks."""
    known = facts("architectures")
    rows = [HEADER, ("---",) * len(HEADER), *(_row(name, known[name]) for name in sorted(known))]
    refused = [f"- {name}: {row.refuse}." for name, row in sorted(ARCHITECTURES.items()) if row.refuse]
    refused += [
        f"- {name}, narrower experts: {row.refuse_width or row.dense_as_wide}."
        for name, row in sorted(ARCHITECTURES.items())
        if row.refuse_width or row.dense_as_wide
    ]
    counts = [
        f"- {name} with {count} experts: {reason}."
        for name, row in sorted(ARCHITECTURES.items())
        for count, reason in row.refuse_counts.items()
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([*lines, "", "Refused:", "", *refused, *counts, ""])


def _row(name: str, known: dict[str, Any]) -> tuple[str, ...]:
    router = "by key" if known["gating"] == "key" else known["gating"]
    return name, router, _mtp(name, known), _checked(name), ", ".join(_layouts(name)), _narrower(ARCHITECTURES[name])


def _narrower(row: Architecture) -> str:
    if row.refuse or row.refuse_width:
        return "refused"
    return "without dense blocks" if row.dense_as_wide else NARROWER[row.shared_width]


def _mtp(name: str, known: dict[str, Any]) -> str:
    if known.get("mtp") != "experts":
        return str(known.get("mtp", ""))
    if name not in tiny_rows.MTP:
        return "experts, unchecked"
    return "experts, mirror" if ARCHITECTURES[name].mtp_drop_refuse else "experts, mirror and drop"


def _checked(name: str) -> str:
    if ARCHITECTURES[name].refuse:
        return "refused"
    return "logits" if name in tiny_rows.NATIVE.keys() - tiny_rows.REFUSED else "no"


def _layouts(name: str) -> list[str]:
    variants = [variant.removeprefix(f"{name}-") for variant, (row, _) in tiny_rows.VARIANTS.items() if row == name]
    fused = ["fused gate/up"] if name in tiny_rows.FUSABLE else []
    grouped = ["groups"] if name in tiny_rows.GROUPED and "groups" not in variants else []
    counts = [f"{count} experts refused" for count in ARCHITECTURES[name].refuse_counts]
    return fused + [LAYOUTS[variant] for variant in grouped + variants] + counts


def renewed(text: str) -> str:
    """The page `text` with the table as it has to be."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
