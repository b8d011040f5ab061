"""What a source yields is drawn by the seed, the same each time, and what it could not use is counted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ggufreap.corpus import rows, sources
from ggufreap.corpus.samples import Conversation, Text
from ggufreap.corpus.sources import Skipped, Source, open_source
from ggufreap.corpus.spec import parse_sources
from ggufreap.errors import InputError

CARD = """---
configs:
- config_name: code
  data_files:
  - {split: train, path: code/train-*.jsonl}
  - {split: test, path: code/test.jsonl}
- config_name: math
  data_files: math.jsonl
- config_name: array
  data_files: array.json
---
Not a sample.
"""
SUM = Conversation(({"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "two"}))


def opened(text: str | Path, seed: int = 1, text_field: str | None = None) -> Source:
    (spec,) = parse_sources(str(text))
    return open_source(spec, seed=seed, text_field=text_field)


def texts(source: Source) -> list[str]:
    found = list(source)
    assert all(isinstance(sample, Text) for sample in found)
    return [sample.text for sample in found if isinstance(sample, Text)]


def write(path: Path, values: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    return write(tmp_path / "numbers.jsonl", [{"text": str(number)} for number in range(1000)])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    for shard in range(3):
        write(folder / f"code/train-{shard}.jsonl", [{"text": f"train {shard} {number}"} for number in range(40)])
    write(folder / "code/test.jsonl", [{"text": f"test {number}"} for number in range(40)])
    write(folder / "math.jsonl", [{"question": "1+1?", "answer": "two"}])
    (folder / "array.json").write_text('[{"question": "1+1?", "answer": "two"}]', encoding="utf-8")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


# Drawing from local files.


def test_without_a_number_all_samples_come_in_their_order(numbers: Path) -> None:
    source = opened(numbers)
    assert texts(source) == [str(number) for number in range(1000)]
    assert source.position == source.nbytes == numbers.stat().st_size


def test_samples_are_drawn_by_the_seed(numbers: Path) -> None:
    drawn = texts(opened(f"{numbers}:100"))
    assert len(set(drawn)) == 100
    assert drawn == sorted(drawn, key=int)
    assert drawn == texts(opened(f"{numbers}:100"))
    assert drawn != texts(opened(f"{numbers}:100", seed=2))
    assert set(texts(opened(f"{numbers}:1"))) < set(texts(opened(f"{numbers}:10"))) < set(drawn)
    assert len(texts(opened(f"{numbers}:5000"))) == 1000


def test_every_sample_is_as_likely_as_any_other(numbers: Path) -> None:
    quarters = [0] * 4
    for seed in range(20):
        for text in texts(opened(f"{numbers}:100", seed)):
            quarters[int(text) // 250] += 1
    assert all(abs(count - 500) < 5 * 375**0.5 for count in quarters)  # five standard deviations


def test_a_source_can_be_read_again(numbers: Path) -> None:
    source = opened(f"{numbers}:7")
    first = texts(source)
    assert source.record == {"name": str(numbers), "revision": None, "subset": None, "split": None, "samples": 7}
    assert source.position == source.nbytes == 2 * numbers.stat().st_size
    stopped = iter(source)
    assert [next(stopped) for _ in range(3)] == [Text(text) for text in first[:3]]
    assert source.taken == 3
    stopped.close()
    assert texts(source) == first


def test_unusable_rows_are_counted_once_and_never_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "mixed.jsonl", [{"text": ""}, {"text": "a"}, 3, {"text": "b"}, {"text": " "}, {"x": 1}])
    for text, expected in ((path, ["a", "b"]), (f"{path}:2", ["a", "b"]), (f"{path}:9", ["a", "b"])):
        source = opened(text)
        assert texts(source) == expected
        assert source.skipped == {
            rows.EMPTY: Skipped(2, "mixed.jsonl:1"),
            "a row is no JSON object": Skipped(1, "mixed.jsonl:3"),
            rows.UNKNOWN: Skipped(1, "mixed.jsonl:6"),
        }


def test_a_text_counts_once_however_long_it_is(tmp_path: Path) -> None:
    long = "a line of text\n" * 200_000
    for name, text in (("a.txt", "short"), ("b.txt", long), ("c.txt", " \n"), ("d.md", "note")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    source = opened(tmp_path)
    assert "".join(texts(source)) == f"short{long}note"
    assert source.taken == 3
    assert source.skipped == {rows.EMPTY: Skipped(1, "c.txt:1")}
    drawn = {seed: texts(opened(f"{tmp_path}/:1", seed)) for seed in range(8)}
    assert {"".join(found) for found in drawn.values()} == {"short", long, "note"}
    assert source.taken == 3


@pytest.mark.parametrize("number", ["", ":3"])
def test_a_source_without_samples_is_refused(tmp_path: Path, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "x.jsonl", [])
    with pytest.raises(InputError, match=r"x\.jsonl holds no rows: calibration needs some text"):
        texts(opened(f"{path}{number}"))
    write(path, [{"text": 3}, {"body": "x"}, {"body": "y"}])
    with pytest.raises(
        InputError, match=rf"x\.jsonl has no usable row among 3: {rows.UNKNOWN} in 2 of them, first in x\.jsonl:2; name"
    ):
        texts(opened(f"{path}{number}"))
    assert texts(opened(f"{path}{number}", text_field="body")) == ["x", "y"]
    monkeypatch.setattr(sources, "GIVE_UP", 2)
    with pytest.raises(InputError, match="no usable row among 2"):
        texts(opened(f"{path}{number}"))


def test_the_identity_is_that_of_the_files(tmp_path: Path, numbers: Path) -> None:
    before = opened(numbers).identity
    assert before == opened(f"{numbers}:5", seed=3).identity
    write(numbers, [{"text": "other"}])
    assert opened(numbers).identity != before


# Folders laid out like a data set.


def test_a_repository_is_read_as_its_card_says(repository: Path) -> None:
    expected = [f"train {shard} {number}" for shard in range(3) for number in range(40)]
    assert texts(opened(f"{repository}[code]")) == expected
    assert texts(opened(f"{repository}[code](test[2:4])")) == ["test 2", "test 3"]
    assert texts(opened(f"{repository}[code](test[38:]+train[:1])")) == ["test 38", "test 39", "train 0 0"]
    assert len(texts(opened(f"{repository}[code](test[30:99])"))) == 10
    for subset in ("math", "array"):
        assert list(opened(f"{repository}[{subset}]")) == [SUM]


def test_columns_may_be_unknown_before_rows_are_read(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("question,answer\n1+1?,two\n", encoding="utf-8")
    source = opened(f"{tmp_path}(test):1")
    assert list(source) == [SUM]
    assert source.record["split"] == "test"


def test_rows_of_a_repository_are_shuffled_by_the_seed(repository: Path) -> None:
    source = opened(f"{repository}[code]:30")
    drawn = texts(source)
    assert len(set(drawn)) == source.taken == 30
    assert drawn == texts(source) == texts(opened(f"{repository}[code]:30"))
    assert drawn != texts(opened(f"{repository}[code]:30", seed=2))
    assert len({text.split()[1] for text in drawn}) == 3
    assert texts(opened(f"{repository}[code]:10")) == drawn[:10]
    assert source.record["subset"] == "code"
    assert source.record["split"] == "train"
    assert source.nbytes is None
    assert source.position == 30


def test_the_identity_of_a_repository_is_that_of_its_files(repository: Path) -> None:
    source = opened(f"{repository}[code]:3")
    before = source.identity
    assert before != opened(f"{repository}[code](test)").identity
    (repository / "code/train-0.jsonl").write_text('{"text": "other"}\n', encoding="utf-8")
    assert source.identity != before


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ("", r"has the subsets array, code, math; name one, as in .*repository\[array\]"),
        ("[art]", r"has no subset art; it has array, code, math"),
        ("[code](dev)", r"has no split dev; it has train, test"),
        ("[code](train[:10%])", r"does not tell how many rows train has, which 10% depends on; .* as in train\[:256\]"),
        ("[code](train[-5:])", r"does not tell how many rows train has, which -5 depends on"),
    ],
)
def test_what_a_repository_has_not_is_refused(repository: Path, chosen: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        opened(f"{repository}{chosen}")
    assert "\n" not in str(caught.value)


def test_percents_are_taken_of_rows_that_the_card_counts(repository: Path) -> None:
    info = "- config_name: code\n  features: [{name: text, dtype: string}]\n  splits:\n"
    info += "  - {name: train, num_examples: 120}\n  - {name: test, num_examples: 40}\n"
    card = CARD.replace("configs:", f"dataset_info:\n{info}configs:")
    (repository / "README.md").write_text(card, encoding="utf-8")
    assert texts(opened(f"{repository}[code](test[:10%])")) == [f"test {number}" for number in range(4)]
    assert texts(opened(f"{repository}[code](test[-2:])")) == ["test 38", "test 39"]
    assert texts(opened(f"{repository}[code](test[-10%:37])")) == ["test 36"]


def test_rows_that_datasets_cannot_read_are_one_line(repository: Path) -> None:
    (repository / "code/train-1.jsonl").write_text('{"text": "x"}\n{"text": \n', encoding="utf-8")
    with pytest.raises(
        InputError, match=r"cannot read the rows of .*repository: .*; try again, or give text"
    ) as caught:
        texts(opened(f"{repository}[code]"))
    assert "\n" not in str(caught.value)


def test_a_file_has_no_subset(numbers: Path) -> None:
    with pytest.raises(InputError, match=r"numbers\.jsonl is no folder with data sets; leave it out"):
        opened(f"{numbers}[code]")


def test_a_folder_without_a_card_is_its_files(repository: Path) -> None:
    (repository / "README.md").write_text("About this.", encoding="utf-8")
    found = list(opened(repository))
    assert len(found) == 3 * 40 + 40 + 2 + 1
    assert found.count(SUM) == 2
