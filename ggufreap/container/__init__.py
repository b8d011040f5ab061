"""The GGUF format: bytes and names. It has never heard of an expert."""

from ggufreap.container.gguf_file import GgufFile, open_gguf
from ggufreap.container.header import TensorRecord, bits_per_weight, block_size, is_quantized, nbytes_of, type_name
from ggufreap.container.values import MetadataEntry, Value, encode
from ggufreap.container.writer import Computed, OutputFile, OutputTensor, Piece, check_target, lay_out, write

__all__ = [
    "Computed",
    "GgufFile",
    "MetadataEntry",
    "OutputFile",
    "OutputTensor",
    "Piece",
    "TensorRecord",
    "Value",
    "bits_per_weight",
    "block_size",
    "check_target",
    "encode",
    "is_quantized",
    "lay_out",
    "nbytes_of",
    "open_gguf",
    "type_name",
    "write",
]
