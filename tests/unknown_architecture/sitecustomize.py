"""What Python runs at the start of every process that has this folder in PYTHONPATH: llama.cpp learns qwen9moe."""

import tiny_unknown
from llama_cpp import llama_cpp

llama_cpp.llama_model_load_from_file = tiny_unknown.learned(llama_cpp.llama_model_load_from_file)
