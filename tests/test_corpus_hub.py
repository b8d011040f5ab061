"""Data sets are streamed by name from a hub, at a known commit, and offline from the caches; a hub runs in the test."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_hub

CARD = """---
configs:
- config_name: code
  data_files:
  - {split: train, path: code/train.jsonl}
  - {split: test, path: code/test.jsonl}
- config_name: math
  data_files: math.jsonl
---
"""

READ = """
import json, sys
from ggufreap.corpus.sources import open_source
from ggufreap.corpus.spec import parse_sources
from ggufreap.errors import InputError
for text in sys.argv[1:]:
    try:
        source = open_source(parse_sources(text)[0], seed=3)
        found = {"texts": [sample.text for sample in source], "identity": source.identity, "record": source.record}
    except InputError as error:
        found = {"error": str(error)}
    print(json.dumps(found))
"""


def run(home: Path, url: str, code: str, *arguments: str, offline: bool = False) -> list[str]:
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")  # no bars, no logs, no warnings
    return done.stdout.splitlines()


def read(home: Path, url: str, *names: str, offline: bool = False) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run(home, url, READ, *names, offline=offline)]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    (folder / "code").mkdir()
    for name, n_rows in (("code/train", 40), ("code/test", 9), ("math", 5)):
        lines = (json.dumps({"text": f"{name} {number}"}) + "\n" for number in range(n_rows))
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def test_data_sets_are_streamed_from_the_hub(tmp_path: Path, repository: Path) -> None:
    with tiny_hub.serving(repository) as url:
        some, again, sliced, subsets, split, revision, gated, none, kind = read(
            tmp_path, url, "own/set[code]:5", "own/set@main[code]:5", "own/set[code](test[1:3])", "own/set",
            "own/set[code](dev)", "own/set@v9[code]", "own/gated", "own/none", "json:3",
        )  # fmt: skip
    assert len(set(some["texts"])) == 5
    assert some == again
    assert some["identity"] == f"own/set@{tiny_hub.COMMIT}[code](train)"
    assert some["record"] == {
        "name": "own/set", "revision": tiny_hub.COMMIT, "subset": "code", "split": "train", "samples": 5,
    }  # fmt: skip
    assert sliced["texts"] == ["code/test 1", "code/test 2"]
    assert sliced["identity"] == f"own/set@{tiny_hub.COMMIT}[code](test[1:3])"
    assert subsets["error"] == "own/set has the subsets code, math; name one, as in own/set[code]"
    assert split["error"] == "own/set has no split dev; it has train, test"
    assert "Revision 'v9' doesn't exist" in revision["error"]
    assert "it is gated; ask for access on its page" in gated["error"]
    assert "cannot read the data set own/none: Dataset 'own/none' doesn't exist" in none["error"]
    assert none["error"].endswith("; correct the name, or give text of your own with -f FILE")
    assert "json" in kind["error"]
    (found,) = read(tmp_path, url, "own/set[code]:1", offline=True)  # of what is streamed only the card is kept
    assert "the hub is out of reach, and no cache holds it" in found["error"]


DOWNLOAD = """
import sys, datasets, huggingface_hub
datasets.disable_progress_bars()
huggingface_hub.utils.disable_progress_bars()
if sys.argv[1] == "datasets":
    datasets.load_dataset("own/set", "code")
else:
    huggingface_hub.snapshot_download("own/set", repo_type="dataset")
"""


@pytest.mark.parametrize("cache", ["datasets", "huggingface_hub"])
def test_offline_the_caches_are_read(tmp_path: Path, repository: Path, cache: str) -> None:
    with tiny_hub.serving(repository) as url:
        run(tmp_path, url, DOWNLOAD, cache)
    whole, drawn, other, none, missing = read(
        tmp_path, url, "own/set[code](test)", "own/set[code]:5", "own/set@v9[code]", "own/none", "own/set[art]",
        offline=True,
    )  # fmt: skip
    assert whole["texts"] == [f"code/test {number}" for number in range(9)]
    assert whole["record"]["revision"] == tiny_hub.COMMIT
    assert len(set(drawn["texts"])) == 5
    assert "cannot be had offline" in other["error"] if cache == "datasets" else "out of reach" in other["error"]
    assert none["error"] == (
        "cannot read the data set own/none: the hub is out of reach, and no cache holds it; "
        "check the name and the network, or give text of your own with -f FILE"
    )
    assert missing["error"].startswith("own/set has no subset art; it has code")
