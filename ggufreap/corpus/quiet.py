"""Hugging Face `datasets`, imported when it is first needed, and without bars and logs of its own."""

import logging
from typing import Any


def datasets() -> Any:
    """The module. What goes wrong in it reaches the user as an error of ours, once."""
    import datasets as module
    from huggingface_hub.utils import disable_progress_bars

    module.disable_progress_bars()
    disable_progress_bars()
    for name in ("datasets", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return module
