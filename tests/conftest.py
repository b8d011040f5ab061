"""Shared fixtures: small GGUF files, built once per session and never changed."""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

# Results must not depend on how many cores run the tests, and no test may reach for a data set.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What llama.cpp can do on this machine is found out once for all tests and their children, and not from what the user's
# own runs have left.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="ggufreap-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
# Where Python shall not keep what it compiled, each of many hundred children would compile all modules anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ["PYTHONPYCACHEPREFIX"] = str(Path(os.environ["XDG_CACHE_HOME"], "compiled"))


@atexit.register
def _close() -> None:
    """Close what llama-cpp-python opens as it is imported (llama_cpp/_utils.py) and never closes.

    At the end of Python warnings may still be errors, as they are in tests.
    """
    if utilities := sys.modules.get("llama_cpp._utils"):
        utilities.outnull_file.close()
        utilities.errnull_file.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests print of names that are no text cannot go from one process to another (pytest-xdist)."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models beside the checkout; tests that need it skip where it is not."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "archs").is_dir():
        pytest.skip("no reference models beside this checkout")
    return folder
