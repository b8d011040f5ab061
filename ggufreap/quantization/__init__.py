"""Quantises models with llama.cpp's own quantiser: same types, same bytes as llama-quantize."""

from ggufreap.quantization.forecast import Fallback
from ggufreap.quantization.job import Quantized, foretell, foretell_types, quantize_file, written_metadata
from ggufreap.quantization.request import QuantRequest, file_type_name, imatrix_metadata, parse_tensor_type

__all__ = [
    "Fallback",
    "QuantRequest",
    "Quantized",
    "file_type_name",
    "foretell",
    "foretell_types",
    "imatrix_metadata",
    "parse_tensor_type",
    "quantize_file",
    "written_metadata",
]
