"""What a file is, by its first bytes: people name the wrong one, and servers send pages in place of files."""

HEAD = 512
PAGE = "a web page, which a server sent in place of the file"

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"GGUF", "a GGUF file"),
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, which git lfs pull replaces by the file itself"),
    (b"tjgg", "a GGJT file, a format that llama.cpp gave up for GGUF in 2023"),
    (b"fmgg", "a GGMF file, a format that llama.cpp gave up for GGUF in 2023"),
    (b"lmgg", "a GGML file, a format that llama.cpp gave up for GGUF in 2023"),
    (b"_logits_", "a file of log-probabilities (--kl-divergence-base)"),
    (b"\x93NUMPY", "an .npy array"),
    (b"PK\x03\x04", "a zip archive, as .npz statistics and PyTorch files are"),
    (b"PAR1", "a Parquet file"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"\x80\x02\x8a\nl\xfc", "a PyTorch file, which convert_hf_to_gguf.py of llama.cpp turns into a GGUF"),
    (b"%PDF", "a PDF"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head>")


def what_is(head: bytes) -> str | None:
    """What the first HEAD bytes of a file say that it is, to be put behind "is"; None where they say nothing."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.lower().startswith(_PAGES):
        return PAGE
    if head[8:10] == b'{"' and not head.startswith(b"{"):  # u64 length, then JSON
        return "a safetensors file, which convert_hf_to_gguf.py of llama.cpp turns into a GGUF"
    if head and not head.strip(b"\0"):
        return "nothing but zeros, as an unfinished download is"
    for magic, name in _SIGNATURES:
        if head.startswith(magic):
            return name
    return "JSON" if start.startswith((b'{"', b"{\n", b"{\r", b"[{", b"[\n")) else None
