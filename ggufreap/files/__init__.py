"""Files that are written: whole or not at all, by one run at a time, and nothing of anybody else's is lost."""

from ggufreap.files.folders import (
    check_folder,
    check_space,
    check_temporary_space,
    kept_folder,
    make_folder,
    private_folder,
    remove_kept,
    sync,
)
from ggufreap.files.locks import Busy, Lock
from ggufreap.files.outputs import (
    check_free,
    claim,
    created,
    discard,
    forced,
    work_in,
    writing,
    written_by,
)
from ggufreap.files.publishing import create, publish, replacing, same_bytes

__all__ = [
    "Busy",
    "Lock",
    "check_folder",
    "check_free",
    "check_space",
    "check_temporary_space",
    "claim",
    "create",
    "created",
    "discard",
    "forced",
    "kept_folder",
    "make_folder",
    "private_folder",
    "publish",
    "remove_kept",
    "replacing",
    "same_bytes",
    "sync",
    "work_in",
    "writing",
    "written_by",
]
