"""Shared fixtures: small GGUF files, built once per session and never changed."""

import os
from pathlib import Path

import pytest

# Results must not depend on how many cores run the tests, and no test may reach for a data set.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference models beside the checkout; tests that need it skip where it is not."""
    folder = Path(__file__).parents[2] / "shared"
    if not (folder / "archs").is_dir():
        pytest.skip("no reference models beside this checkout")
    return folder
