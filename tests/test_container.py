"""The GGUF container: what is read is what stands there, what is untouched is written back bit by bit."""

import errno
import fcntl
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType

from ggufreap.container import OutputTensor, Piece, encode, lay_out, open_gguf, write
from ggufreap.container import sink as sink_module
from ggufreap.container import writer as writer_module
from ggufreap.container.header import nbytes_of
from ggufreap.container.sink import Sink
from ggufreap.errors import FormatError, InputError, OutputError
from ggufreap.memory import Memory


class Count:
    """A bar that adds up."""

    def __init__(self) -> None:
        self.total = 0

    def update(self, amount: int) -> None:
        self.total += amount


METADATA = {
    "a.string": "Grüße",
    "a.empty_string": "",
    "a.empty_strings": [],
    "a.empty_numbers": np.array([], np.int32),
    "a.strings": ["x", "", "yz"],
    "a.u8": np.uint8(200),
    "a.i8": np.int8(-3),
    "a.u16": np.uint16(65000),
    "a.i16": np.int16(-300),
    "a.u32": np.uint32(4_000_000_000),
    "a.i32": np.int32(-5),
    "a.u64": np.uint64(2**63),
    "a.i64": np.int64(-(2**62)),
    "a.f32": np.float32(0.1),
    "a.f64": np.float64(0.1),
    "a.yes": True,
    "a.flags": np.array([True, False, True]),
    "a.floats": np.array([1.5, -2.5], np.float32),
}


def tensors(seed: int = 0) -> tiny_gguf.Tensors:
    random = np.random.default_rng(seed)
    return {
        "token_embd.weight": (random.normal(size=(8, 64)), Kind.F16),
        "blk.0.stack.weight": (random.normal(size=(5, 3, 64)), Kind.Q8_0),
        "blk.0.vector.weight": (random.normal(size=7), Kind.F32),
        "blk.1.stack.weight": (random.normal(size=(5, 3, 32)), Kind.Q4_0),
        "output.weight": (random.normal(size=(8, 64)), Kind.F32),
    }


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "plain.gguf"
    tiny_gguf.write(path, "toy", METADATA, tensors())
    return path


def copy_of(source: Path, target: Path, n_groups: int = 1) -> tuple[writer_module.OutputFile, ...]:
    """A script that writes every tensor of `source` again, spread over `n_groups` shards."""
    file = open_gguf(source)
    outputs = [
        OutputTensor(
            record.name,
            record.shape,
            record.type,
            (Piece(file.headers[record.shard].path, record.offset, record.nbytes),),
        )
        for record in file.tensors
    ]
    groups = [outputs[index::n_groups] for index in range(n_groups)]
    return lay_out(target, list(file.metadata.values()), groups, file.alignment)


def test_values_of_every_type_are_read(plain: Path) -> None:
    file = open_gguf(plain)
    for key, value in METADATA.items():
        expected = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        assert file.get(key) == pytest.approx(expected) if "f32" in key else file.get(key) == expected, key
    assert file.metadata["a.u16"].type == GGUFValueType.UINT16
    assert file.metadata["a.empty_strings"].item_type == GGUFValueType.STRING


def test_encoding_an_entry_again_gives_its_bytes(plain: Path) -> None:
    for entry in open_gguf(plain).metadata.values():
        assert encode(entry.key, entry.value, entry.item_type).raw == entry.raw


def test_tensors_are_read_as_they_were_written(plain: Path) -> None:
    file = open_gguf(plain)
    for name, (array, kind) in tensors().items():
        record = file.by_name[name]
        assert record.shape == array.shape
        assert record.nbytes == nbytes_of(array.shape, kind)
        assert file.map(record).tobytes() == tiny_gguf.encode(array, kind).tobytes()


def test_copying_everything_gives_the_same_file(plain: Path, tmp_path: Path) -> None:
    bar = Count()
    files = copy_of(plain, tmp_path / "copy.gguf")
    write(files, bar)
    assert (tmp_path / "copy.gguf").read_bytes() == plain.read_bytes()
    assert bar.total == files[0].nbytes == plain.stat().st_size


def test_a_tensor_larger_than_the_buffer_is_copied_whole(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "BUFFER", sink_module.BLOCK)
    monkeypatch.setattr(writer_module, "STEP", 100)
    monkeypatch.setattr(writer_module, "AHEAD", 300)
    write(copy_of(plain, tmp_path / "copy.gguf"), Count())
    assert (tmp_path / "copy.gguf").read_bytes() == plain.read_bytes()


@pytest.mark.parametrize("keeps_word", [True, False])
def test_what_is_large_for_the_memory_passes_the_page_cache_by(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keeps_word: bool
) -> None:
    """Wherever the file system takes O_DIRECT; one that takes it and then refuses to write is met without."""
    monkeypatch.setattr(sink_module, "BUFFER", sink_module.BLOCK)
    monkeypatch.setattr(sink_module, "memory", lambda: Memory(total=1 << 30, free=100, limited=False))
    written, direct = os.write, getattr(os, "O_DIRECT", 0)
    flags = []

    def write_block(target: int, view: bytes | memoryview) -> int:
        if isinstance(view, bytes):  # of a lock
            return written(target, view)
        flags.append(fcntl.fcntl(target, fcntl.F_GETFL) & direct)
        if flags[-1] and not keeps_word:
            raise OSError(errno.EINVAL, "Invalid argument")
        return written(target, view)

    monkeypatch.setattr(os, "write", write_block)
    write(copy_of(plain, tmp_path / "copy.gguf"), Count())
    monkeypatch.undo()
    assert (tmp_path / "copy.gguf").read_bytes() == plain.read_bytes()
    assert len(flags) > 1
    if any(flags):
        assert all(flags) if keeps_word else flags[0] and not any(flags[1:])


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_alignment_is_kept(tmp_path: Path, alignment: int) -> None:
    source = tmp_path / "aligned.gguf"
    tiny_gguf.write(source, "toy", {}, tensors(), alignment=alignment)
    write(copy_of(source, tmp_path / "copy.gguf", 2), Count())
    for index in (1, 2):
        shard = open_gguf(tmp_path / "copy-00001-of-00002.gguf").headers[index - 1]
        assert shard.alignment == alignment
        assert all(record.offset % alignment == 0 for record in shard.tensors)


def test_a_split_set_opens_by_any_shard(plain: Path, tmp_path: Path) -> None:
    write(copy_of(plain, tmp_path / "set.gguf", 3), Count())
    original = open_gguf(plain)
    for index in (1, 2, 3):
        file = open_gguf(tmp_path / f"set-{index:05d}-of-00003.gguf")
        assert file.path.name == "set-00001-of-00003.gguf"
        assert set(file.by_name) == set(original.by_name)
        assert file.get("split.tensors.count") == len(original.tensors)
        assert file.fingerprint == original.fingerprint
        for record in file.tensors:
            assert file.map(record).tobytes() == original.map(original.by_name[record.name]).tobytes()


def test_shards_written_by_gguf_py_are_read(tmp_path: Path) -> None:
    tiny_gguf.write(tmp_path / "set.gguf", "toy", METADATA, tensors(), per_shard=2)
    file = open_gguf(tmp_path / "set-00002-of-00003.gguf")
    assert [len(header.tensors) for header in file.headers] == [2, 2, 1]


def test_the_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    for seed in (0, 1):
        tiny_gguf.write(tmp_path / f"{seed}.gguf", "toy", METADATA, tensors(seed))
    assert open_gguf(tmp_path / "0.gguf").fingerprint != open_gguf(tmp_path / "1.gguf").fingerprint


# Damaged and hostile files: one line each, and never more memory than the file has.

TEXT = struct.Struct("<Q")


def string(text: bytes) -> bytes:
    return TEXT.pack(len(text)) + text


def entry(key: bytes, kind: int, payload: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + payload


def header(n_tensors: int = 0, n_kv: int = 0, body: bytes = b"", version: int = 3, magic: bytes = b"GGUF") -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_kv) + body


def tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        string(name)
        + struct.pack("<I", len(shape) if n_dims is None else n_dims)
        + dims
        + struct.pack("<IQ", kind, offset)
    )


HOSTILE = {
    "empty file": (b"", "has 0 bytes"),
    "another format": (b"PK\x03\x04" + bytes(40), "is not one"),
    "version 1": (header(version=1), "version 1"),
    "version 4": (header(version=4), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "2^60 tensors": (header(n_tensors=2**60), f"{2**60} tensors"),
    "2^60 entries": (header(n_kv=2**60), f"{2**60} metadata entries"),
    "key of 2^60 bytes": (header(n_kv=1, body=TEXT.pack(2**60) + bytes(20)), f"{2**60} bytes"),
    "empty key": (header(n_kv=1, body=entry(b"", 4, bytes(8))), "is empty"),
    "key twice": (header(n_kv=2, body=2 * entry(b"k", 4, bytes(4))), "stands twice"),
    "key not UTF-8": (header(n_kv=1, body=entry(b"\xff", 4, bytes(8))), "not UTF-8"),
    "unknown value type": (header(n_kv=1, body=entry(b"key", 77, bytes(8))), "unknown type 77"),
    "array of 2^60 numbers": (header(n_kv=1, body=entry(b"k", 9, struct.pack("<IQ", 4, 2**60))), f"{2**60} items"),
    "array of 2^60 strings": (header(n_kv=1, body=entry(b"k", 9, struct.pack("<IQ", 8, 2**60))), f"{2**60} items"),
    "array of arrays": (header(n_kv=1, body=entry(b"k", 9, struct.pack("<IQ", 9, 1) + bytes(20))), "array of arrays"),
    "string past the end": (header(n_kv=1, body=entry(b"k", 8, TEXT.pack(2**40)) + bytes(8)), "past the end"),
    "alignment 0": (header(n_kv=1, body=entry(b"general.alignment", 4, struct.pack("<I", 0))), "power of two"),
    "alignment 3": (header(n_kv=1, body=entry(b"general.alignment", 4, struct.pack("<I", 3))), "power of two"),
    "alignment is a string": (header(n_kv=1, body=entry(b"general.alignment", 8, string(b"32"))), "not a u32"),
    "tensor name of 64": (header(n_tensors=1, body=tensor(name=b"n" * 64) + bytes(64)), "is 64 long"),
    "5 dimensions": (header(n_tensors=1, body=tensor(shape=(1,) * 5) + bytes(64)), "5 dimensions"),
    "2^64 weights": (header(n_tensors=1, body=tensor(shape=(2**32, 2**32)) + bytes(64)), "beyond 2^63"),
    "unknown ggml type": (header(n_tensors=1, body=tensor(kind=4) + bytes(64)), "ggml type 4"),
    "half a block": (header(n_tensors=1, body=tensor(kind=8, shape=(33,)) + bytes(64)), "packs 32"),
    "tensor twice": (header(n_tensors=2, body=tensor() + tensor(offset=32) + bytes(99)), "stands twice"),
    "gap between tensors": (header(n_tensors=1, body=tensor(offset=64) + bytes(99)), "starts at 64"),
    "data missing": (header(n_tensors=1, body=tensor(shape=(4000,)) + bytes(99)), "truncated"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_damaged_header_is_refused_in_one_line(tmp_path: Path, case: str) -> None:
    data, expected = HOSTILE[case]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        open_gguf(path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_header_cut_anywhere_is_refused(plain: Path, tmp_path: Path) -> None:
    data = plain.read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(0, open_gguf(plain).headers[0].data_start, 7):
        cut.write_bytes(data[:length])
        with pytest.raises(FormatError):
            open_gguf(cut)


def test_any_flipped_byte_is_read_or_refused_but_never_crashes(plain: Path, tmp_path: Path) -> None:
    data = bytearray(plain.read_bytes())
    damaged = tmp_path / "damaged.gguf"
    for position in range(open_gguf(plain).headers[0].data_start):
        data[position] ^= 0x81
        damaged.write_bytes(data)
        data[position] ^= 0x81
        try:
            for found in open_gguf(damaged).metadata.values():
                assert found.value is not None
        except InputError:
            pass


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        open_gguf(tmp_path / "absent.gguf")
    with pytest.raises(InputError, match="is a directory"):
        open_gguf(tmp_path)


def test_a_split_set_that_does_not_fit_together_is_refused(plain: Path, tmp_path: Path) -> None:
    write(copy_of(plain, tmp_path / "set.gguf", 2), Count())
    first, second = (tmp_path / f"set-0000{index}-of-00002.gguf" for index in (1, 2))
    renamed = tmp_path / "renamed.gguf"
    shutil.copy(first, renamed)
    with pytest.raises(FormatError, match="does not end in"):
        open_gguf(renamed)
    backup = second.read_bytes()
    second.unlink()
    with pytest.raises(InputError, match="1 of 2 shards missing"):
        open_gguf(first)
    shutil.copy(first, second)
    with pytest.raises(FormatError, match=r"split\.no 0"):
        open_gguf(first)
    second.write_bytes(backup)
    open_gguf(first)


# Writing: all or nothing.


def test_the_input_is_never_overwritten(plain: Path) -> None:
    before = plain.read_bytes()
    with pytest.raises(OutputError, match="is the input itself"):
        write(copy_of(plain, plain), Count())
    assert plain.read_bytes() == before


def test_a_full_disk_is_refused_before_the_first_byte(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(OutputError, match="10 free"):
        write(copy_of(plain, tmp_path / "copy.gguf"), Count())
    assert list(tmp_path.iterdir()) == [plain]


def test_a_disk_that_fills_up_leaves_nothing(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Sink, "_write_all", full)
    with pytest.raises(OutputError, match="No space left"):
        write(copy_of(plain, tmp_path / "copy.gguf", 2), Count())
    assert list(tmp_path.iterdir()) == [plain]


def test_an_interrupted_write_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    class Interrupt(Count):
        def update(self, amount: int) -> None:
            super().update(amount)
            if self.total > 1000:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(copy_of(plain, tmp_path / "copy.gguf"), Interrupt())
    assert list(tmp_path.iterdir()) == [plain]


def test_a_missing_folder_is_named(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write(copy_of(plain, tmp_path / "absent" / "copy.gguf"), Count())
