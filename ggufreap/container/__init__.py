"""The GGUF format: bytes and names. It has never heard of an expert."""

from ggufreap.container.gguf_file import GgufFile, open_gguf
from ggufreap.container.header import TensorRecord, bits_per_weight, nbytes_of, type_name
from ggufreap.container.values import MetadataEntry, Value, encode
from ggufreap.container.writer import OutputFile, OutputTensor, Piece, check_target, lay_out, write

__all__ = [
    "GgufFile",
    "MetadataEntry",
    "OutputFile",
    "OutputTensor",
    "Piece",
    "TensorRecord",
    "Value",
    "bits_per_weight",
    "check_target",
    "encode",
    "lay_out",
    "nbytes_of",
    "open_gguf",
    "type_name",
    "write",
]
