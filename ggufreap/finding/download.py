"""Models fetched from the Hugging Face hub into the cache that llama.cpp and huggingface_hub share.

huggingface_hub asks and reads; the files are put together here, since its own downloads begin a file anew after a stop
(2.4: file_download.py, _download_to_tmp_and_move). Layout of the cache: blobs/ID, links in snapshots/COMMIT, refs/main.
"""

import hashlib
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggufreap.errors import GgufReapError, InputError
from ggufreap.files import check_space, claim, make_folder, sync, writing
from ggufreap.finding.hub import HubName, folder_of
from ggufreap.finding.places import hub_caches
from ggufreap.progress import Progress, silent
from ggufreap.showing import message
from ggufreap.units import size

BRANCH = "main"
_BLOCK = 16 << 20
_MOST_NAMES = 20  # in a message
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A file on the hub; `sha256` is None where it is not told, `blob` names its content."""

    path: str
    nbytes: int
    blob: str
    sha256: str | None


def download(name: HubName, progress: Progress = silent) -> Path:
    """Fetch it, going on with what an earlier try has left; gives its file, or the first shard.

    Raises InputError where it cannot be had, OutputError where there is no room, or another run fetches it.
    """
    import huggingface_hub

    folder = hub_caches()[0] / folder_of(name)
    try:
        told: Any = huggingface_hub.HfApi().model_info(name.repository, revision=BRANCH, files_metadata=True)
        commit = str(told.sha)
        files = {each.rfilename: _remote(each) for each in told.siblings or ()}
        chosen = [files[path] for path in name.choose(list(files))]
        if not chosen:
            there = ", ".join(sorted(path for path in files if path.endswith(".gguf"))[:_MOST_NAMES])
            raise InputError(f"-hf {name}: the repository has no such GGUF file; it has {there or 'none at all'}")
        make_folder(folder / "blobs", parents=True)
        check_space(folder, sum(max(0, file.nbytes - _present(folder, file)) for file in chosen))
        for file in chosen:
            _fetch(name, commit, file, folder, progress)
    except GgufReapError:
        raise
    except Exception as error:  # huggingface_hub, httpx, fsspec and ssl raise their own
        why = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"-hf {name} cannot be had: {message(why)}; what has come so far is kept, the same command goes on from it"
        ) from error
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / BRANCH).write_text(commit, encoding="utf-8")
    return folder / "snapshots" / commit / chosen[0].path


def _remote(told: Any) -> Remote:
    lfs: Any = told.lfs or {}
    sha256 = lfs.get("sha256") if isinstance(lfs, Mapping) else lfs.sha256
    return Remote(told.rfilename, told.size or 0, sha256 or told.blob_id, sha256)


def _partial(folder: Path, file: Remote) -> Path:
    return folder / "blobs" / f"{file.blob}.incomplete"


def _present(folder: Path, file: Remote) -> int:
    """The bytes of a file that are in the cache."""
    for path in (folder / "blobs" / file.blob, _partial(folder, file)):
        with suppress(OSError):
            return path.stat().st_size
    return 0


def _fetch(name: HubName, commit: str, file: Remote, folder: Path, progress: Progress) -> None:
    blob, link = folder / "blobs" / file.blob, folder / "snapshots" / commit / file.path
    if not blob.exists():
        with writing():
            claim(partial := _partial(folder, file))
            _LOG.info("downloading %s of %s, %s, to %s", file.path, name.repository, size(file.nbytes), folder)
            _read(f"{name.repository}@{commit}/{file.path}", file, partial, progress)
            _check(file, partial)
            os.replace(partial, blob)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(os.path.relpath(blob, link.parent))
        except OSError:  # a system without links: as llama.cpp does (common/hf-cache.cpp, finalize_file)
            os.replace(blob, link)


def _read(source: str, file: Remote, partial: Path, progress: Progress) -> None:
    """Append what is missing of a file."""
    import huggingface_hub

    with partial.open("ab") as target:
        done = target.tell()
        if done:
            _LOG.info("%s of it are there already", size(done))
        with (
            huggingface_hub.HfFileSystem().open(source, "rb", block_size=_BLOCK) as remote,
            progress(f"downloading {file.path}", file.nbytes, "B", done) as bar,
        ):
            remote.seek(min(done, file.nbytes))
            while part := remote.read(_BLOCK):
                target.write(part)
                bar.update(len(part))
    sync(partial)


def _check(file: Remote, partial: Path) -> None:
    """Raise InputError, and remove it, where what came is not what the hub has."""
    with partial.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if partial.stat().st_size != file.nbytes or file.sha256 not in (None, digest):
        partial.unlink()
        raise InputError(f"{file.path} did not come as it is on the hub, and was removed; download it again")
