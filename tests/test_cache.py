"""What is remembered between runs, and that nothing depends on it."""

from pathlib import Path

import pytest

from ggufreap import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ggufreap"


def test_what_was_put_is_there_until_it_is_deleted(folder: Path) -> None:
    assert cache.get("a") is None
    assert cache.put("a", {"x": 1})
    assert cache.put("b", {"x": 2})
    assert cache.put("a", {"x": [3]})
    assert (cache.get("a"), cache.get("b")) == ({"x": [3]}, {"x": 2})
    assert sorted(path.name for path in folder.iterdir()) == ["a.json", "b.json"]
    (folder / "a.json").unlink()
    assert cache.get("a") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_what_is_damaged_is_absent(folder: Path, damage: bytes) -> None:
    cache.put("a", {})
    (folder / "a.json").write_bytes(damage)
    assert cache.get("a") is None
    assert cache.put("a", {"x": 1})
    assert cache.get("a") == {"x": 1}


def test_where_nothing_can_be_written_nothing_is_remembered(folder: Path) -> None:
    folder.parent.write_text("a file in the way")
    assert not cache.put("a", {"x": 1})
    assert cache.get("a") is None


def test_a_relative_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tmp_path in cache.cache_folder().parents
