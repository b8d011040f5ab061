"""GGUF files that lie beside models and are no models: what they say of themselves."""

from ggufreap.container import GgufFile

# general.type (gguf-py/gguf/constants.py, GGUFType), then general.architecture, where older files have no type.
_TYPES = {
    "mmproj": "the projector of a vision or audio model (mmproj)",
    "adapter": "an adapter (LoRA)",
    "imatrix": "an importance matrix",
    "vocab": "a vocabulary without weights",
    "narrowing": "the columns of a narrowing",
}
_ARCHITECTURES = {"clip": _TYPES["mmproj"], "controlvector": "a control vector"}
_IMATRIX_SUFFIX = ".in_sum2"


def what_else(file: GgufFile) -> str | None:
    """What a file is that is no model, to be put behind "it is"; None for a model, or where nothing tells."""
    kind, architecture = file.get("general.type"), file.get("general.architecture")
    for known, value in ((_TYPES, kind), (_ARCHITECTURES, architecture)):
        if isinstance(value, str) and value in known:
            return known[value]
    if "adapter.type" in file.metadata:
        return _TYPES["adapter"]
    if any(record.name.endswith(_IMATRIX_SUFFIX) for record in file.tensors):
        return _TYPES["imatrix"]
    return _TYPES["vocab"] if not file.tensors and "tokenizer.ggml.tokens" in file.metadata else None
