"""Models by name, and where they lie: folders laid out as llama.cpp, Hugging Face, LM Studio and Ollama do."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf
import tiny_hub

from ggufreap.engine.build import Measured
from ggufreap.errors import InputError
from ggufreap.finding import Machine, find_models, located, names_model, scan
from ggufreap.finding.hub import HubName, cached, name_of
from ggufreap.finding.ollama import blob_of, manifest_of
from ggufreap.finding.places import hub_caches
from ggufreap.memory import Memory

COMMIT = "c0ffee" + 34 * "0"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of nobody's, and nothing said of other folders."""
    for name in ("LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    (home / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "here")
    return home


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.qwen3moe(tmp_path_factory.mktemp("finding") / "Tiny-Q4_K_M.gguf")


def in_hub(cache: Path, repository: str, model: Path, *names: str, ref: str = "main") -> Path:
    """The cache of a repository with `model` under these names, linked to a blob as huggingface_hub does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for name in names:
        blob = folder / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(model.read_bytes())
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(COMMIT)
    return snapshot


def in_ollama(folder: Path, name: str, model: Path, media: str = "application/vnd.ollama.image.model") -> Path:
    """Ollama's folder with `model` under host/namespace/model/tag."""
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    blob = folder / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(model.read_bytes())
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 1},
        {"mediaType": media, "digest": f"sha256:{digest}", "size": blob.stat().st_size},
    ]
    manifest = folder / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


# --- -hf -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "folders"),
    [
        ({}, ["~/.cache/huggingface/hub"]),
        ({"XDG_CACHE_HOME": "/xdg"}, ["/xdg/huggingface/hub"]),
        ({"XDG_CACHE_HOME": "/xdg", "HF_HOME": "/hf"}, ["/hf/hub"]),
        ({"HF_HOME": "/hf", "HUGGINGFACE_HUB_CACHE": "/old"}, ["/old"]),
        ({"HUGGINGFACE_HUB_CACHE": "/old", "HF_HUB_CACHE": "/new"}, ["/new"]),
        ({"HF_HUB_CACHE": "/new", "LLAMA_CACHE": "/llama"}, ["/llama", "/new"]),
    ],
)
def test_the_cache_is_llama_cpp_s(
    variables: dict[str, str], folders: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, folder in variables.items():
        monkeypatch.setenv(name, folder)
    assert hub_caches() == [Path(folder.replace("~", str(home))) for folder in folders]


FILES = (
    "Big-Q4_K_M-00001-of-00002.gguf",
    "Big-Q4_K_M-00002-of-00002.gguf",
    "Big-Q8_0.gguf",
    "IQ4_XS/Big-IQ4_XS.gguf",
    "README.md",
    "imatrix-Q5_K_M.gguf",
    "mmproj-Q5_K_M.gguf",
)


@pytest.mark.parametrize(
    ("quant", "files", "chosen"),
    [
        ("", FILES, FILES[:2]),
        ("", FILES[2:], FILES[2:3]),
        ("", FILES[3:], FILES[3:4]),
        ("q8_0", FILES, FILES[2:3]),
        ("IQ4_XS", FILES, FILES[3:4]),
        ("Q5_K_M", FILES, ()),
        ("Q8", FILES, ()),
    ],
)
def test_a_quant_names_the_file_that_llama_cpp_would_load(quant: str, files: tuple[str, ...], chosen: object) -> None:
    assert tuple(HubName("a/b", quant).choose(files)) == chosen


@pytest.mark.parametrize("text", ["", "a", "a/b/c", "a/b--c/", "../b", "a/b c", "-a/b", "a/.b", "a/b\n"])
def test_what_is_no_repository_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="is no model of the hub; write -hf user/repo"):
        HubName.parse(text)


def test_a_model_in_the_cache_is_found_by_name(home: Path, model: Path) -> None:
    snapshot = in_hub(hub_caches()[0], "some.body/Tiny-GGUF", model, "Tiny-Q4_K_M.gguf", "Tiny-Q8_0.gguf")
    assert located("hf:some.body/Tiny-GGUF").path == snapshot / "Tiny-Q4_K_M.gguf"
    place = located("hf:some.body/Tiny-GGUF:Q8_0")
    assert (place.path, place.foreign) == (snapshot / "Tiny-Q8_0.gguf", True)
    assert str(name_of(snapshot / "Tiny-Q8_0.gguf", "some.body/Tiny-GGUF")) == "some.body/Tiny-GGUF:Q8_0"
    assert located(str(snapshot / "Tiny-Q8_0.gguf")).foreign, "the same by its path"
    assert not located("Tiny-Q8_0.gguf").foreign
    with pytest.raises(InputError, match=r"-hf some\.body/Tiny-GGUF:Q2_K is not in .*hub; --download fetches it there"):
        located("hf:some.body/Tiny-GGUF:Q2_K")


def test_a_branch_counts_where_there_is_no_main_and_half_a_set_does_not(model: Path) -> None:
    cache = hub_caches()[0]
    in_hub(cache, "a/half", model, "Half-Q8_0-00001-of-00002.gguf", ref="other")
    assert cached(HubName("a/half")) is None
    snapshot = in_hub(cache, "a/half", model, "Half-Q8_0-00002-of-00002.gguf", ref="other")
    assert cached(HubName("a/half")) == snapshot / "Half-Q8_0-00001-of-00002.gguf"
    (cache / "models--a--half" / "refs" / "other").write_text("no commit")
    assert cached(HubName("a/half")) is None


DOWNLOAD = """
import logging, sys
from ggufreap.finding import located
logging.basicConfig(level=logging.INFO)
print(located(sys.argv[1], download=True).path)
"""


def downloaded(address: str, name: str, home: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    variables = {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HOME": str(home)}
    command = [sys.executable, "-c", DOWNLOAD, name]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def repository(tmp_path: Path, model: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in (*SHARDS, "Tiny-Q2_K.gguf", "README.md"):
        (folder / name).write_bytes(model.read_bytes())
    (folder / SHARDS[1]).write_bytes(model.read_bytes() + b"\0")
    return folder


SHARDS = ("Tiny-Q8_0-00001-of-00002.gguf", "Tiny-Q8_0-00002-of-00002.gguf")


def test_what_is_not_there_is_downloaded_to_the_cache_when_asked(repository: Path, home: Path) -> None:
    with tiny_hub.serving(repository) as address:
        done = downloaded(address, "hf:own/set:Q8_0", home)
        assert done.returncode == 0, done.stderr
        missing = downloaded(address, "hf:own/set:Q6_K", home)
        unknown = downloaded(address, "hf:own/none", home)
    path = Path(done.stdout.strip())
    assert path == cached(HubName("own/set", "Q8_0"))
    assert sorted(each.name for each in path.parent.iterdir()) == list(SHARDS)
    for name in SHARDS:
        assert (path.parent / name).read_bytes() == (repository / name).read_bytes()
    assert all(len(each.name) == 64 for each in blobs_of(path).iterdir()), "nothing else is left"
    assert "-hf own/set:Q6_K: the repository has no such GGUF file; it has Tiny-Q2_K.gguf, Tiny-Q8_0" in missing.stderr
    assert "-hf own/none cannot be had: " in unknown.stderr


def blobs_of(path: Path) -> Path:
    return path.parents[2] / "blobs"


@pytest.mark.parametrize("damaged", [False, True])
def test_a_download_goes_on_where_it_was_stopped(repository: Path, home: Path, damaged: bool) -> None:
    content = (repository / "Tiny-Q2_K.gguf").read_bytes()
    blobs = hub_caches()[0] / "models--own--set" / "blobs"
    blobs.mkdir(parents=True)
    partial = blobs / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    partial.write_bytes(b"x" * 1000 if damaged else content[:1000])
    with tiny_hub.serving(repository) as address:
        done = downloaded(address, "hf:own/set:Q2_K", home)
    if damaged:
        assert "did not come as it is on the hub, and was removed" in done.stderr
        assert not list(blobs.iterdir())
        return
    path = Path(done.stdout.strip())
    assert path.read_bytes() == content
    assert "1.00 kB of it are there already" in done.stderr
    assert path.resolve() == partial.with_suffix("")
    assert list(blobs.iterdir()) == [partial.with_suffix("")]


# --- Ollama ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "manifest"),
    [
        ("qwen3:30b-a3b", "registry.ollama.ai/library/qwen3/30b-a3b"),
        ("qwen3", "registry.ollama.ai/library/qwen3/latest"),
        ("me/tiny:q8_0", "registry.ollama.ai/me/tiny/q8_0"),
        ("hf.co/some/Tiny-GGUF:Q8_0", "hf.co/some/Tiny-GGUF/Q8_0"),
    ],
)
def test_a_name_of_ollama_is_its_blob_under_a_name_of_its_own(
    name: str, manifest: str, home: Path, model: Path
) -> None:
    blob = in_ollama(home / ".ollama" / "models", manifest, model)
    assert names_model(name)
    place = located(name)
    assert place.foreign
    assert place.path.resolve() == blob
    assert place.path.name == f"{name.replace('/', '-').replace(':', '-')}.gguf"
    assert located(name) == place, "and again"


def test_a_link_follows_a_model_that_was_pulled_again(home: Path, model: Path, tmp_path: Path) -> None:
    place, name = home / ".ollama" / "models", "registry.ollama.ai/library/tiny/latest"
    in_ollama(place, name, model)
    before = located("tiny").path
    newer = tmp_path / "newer.gguf"
    newer.write_bytes(model.read_bytes() + b"\0" * 32)
    blob = in_ollama(place, name, newer)
    assert located("tiny").path == before
    assert before.resolve() == blob
    assert [path.name for path in before.parent.iterdir()] == ["tiny.gguf"]


def test_its_folder_can_be_said_and_a_file_of_the_name_comes_first(
    home: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "o"))
    blob = in_ollama(tmp_path / "o", "registry.ollama.ai/library/tiny/latest", model)
    assert located("tiny").path.resolve() == blob
    Path("tiny").write_bytes(model.read_bytes())
    assert located("tiny").path == Path("tiny")


def test_what_ollama_does_not_know_is_taken_for_a_path(home: Path) -> None:
    for name in ("none", "none.gguf", "../none", "a/b/c/d/e", "a:b:c", ".", "..", "a//b"):
        assert located(name).path == Path(name)
        assert manifest_of(name) is None
    assert not names_model("prun")


def test_a_model_of_ollama_without_a_gguf_file_is_refused(home: Path, model: Path) -> None:
    place = home / ".ollama" / "models"
    in_ollama(place, "registry.ollama.ai/library/mlx/latest", model, "application/vnd.ollama.image.tensor")
    with pytest.raises(InputError, match="names 0 model layers; one GGUF file is needed"):
        located("mlx")
    for text in ("[]", "{", '{"layers": 3}', '{"layers": [{"digest": "sha256:../../etc"}]}'):
        manifest = place / "manifests" / "registry.ollama.ai" / "library" / "mlx" / "latest"
        manifest.write_text(text)
        with pytest.raises(InputError, match=r"is no manifest of Ollama; pull the model again"):
            blob_of(manifest)


# --- all of them -----------------------------------------------------------------------------------------------------


def test_models_are_found_where_people_have_them(home: Path, model: Path) -> None:
    in_hub(hub_caches()[0], "a/Tiny-GGUF", model, "Tiny-Q8_0.gguf", "sub/Tiny-IQ1_S.gguf")
    in_ollama(home / ".ollama" / "models", "registry.ollama.ai/library/tiny/8b", model)
    for path in (
        ".lmstudio/models/a/b/Studio-Q4_0.gguf",
        ".cache/lm-studio/models/a/b/Old-Q4_0.gguf",
        ".cache/llama.cpp/a_b_Llama-Q4_0.gguf",
        "here/deep/er/My Own.gguf",
        "here/.hidden/No.gguf",
    ):
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(model.read_bytes())
    Path("no model.gguf").write_text("text")
    tiny_gguf.write(Path("dense.gguf"), "llama", {}, {})
    listing = find_models()
    assert {(each.owner, each.argument) for each in listing.models} == {
        ("current folder", "'deep/er/My Own.gguf'"),
        ("Hugging Face", "-hf a/Tiny-GGUF:Q8_0"),
        ("Hugging Face", "-hf a/Tiny-GGUF:IQ1_S"),
        ("LM Studio", str(home / ".lmstudio/models/a/b/Studio-Q4_0.gguf")),
        ("LM Studio", str(home / ".cache/lm-studio/models/a/b/Old-Q4_0.gguf")),
        ("llama.cpp", str(home / ".cache/llama.cpp/a_b_Llama-Q4_0.gguf")),
        ("Ollama", "tiny:8b"),
    }
    assert {(each.n_expert, each.n_used, each.architecture) for each in listing.models} == {(16, 4, "qwen3moe")}
    assert {each.nbytes for each in listing.models} == {model.stat().st_size}
    assert listing.n_other == 1
    assert [path for path, _ in listing.unreadable] == [Path("no model.gguf")]
    assert listing.cut_short == ()


def test_a_split_set_is_one_model_and_a_file_with_two_names_too(model: Path) -> None:
    tiny_gguf.qwen3moe(Path("Big-F32.gguf"), per_shard=9)
    first = next(Path().glob("Big-F32-00001*"))
    Path("One.gguf").write_bytes(model.read_bytes())
    os.link("One.gguf", "Two.gguf")
    Path("loop").symlink_to(Path())
    listing = find_models()
    assert [each.argument for each in listing.models] == [str(first), "One.gguf"]
    assert listing.models[0].nbytes == sum(path.stat().st_size for path in Path().glob("Big-F32-*"))
    assert listing.unreadable == ()
    sorted(Path().glob("Big-F32-*"))[-1].unlink()
    assert "shards missing" in dict(find_models().unreadable)[first]


@pytest.mark.parametrize(
    ("name", "most", "n_models"), [("MOST_ENTRIES", 3, 0), ("MOST_FILES", 2, 2), ("DEPTH", 0, 4), ("DEPTH", 1, 5)]
)
def test_the_search_ends_and_says_so(
    name: str, most: int, n_models: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, name, most)
    for index in range(4):
        Path(f"{index}.gguf").write_bytes(model.read_bytes())
    Path("deep").mkdir()
    Path("deep", "5.gguf").write_bytes(model.read_bytes())
    listing = find_models()
    assert len(listing.models) == n_models
    assert listing.cut_short == (() if (name, most) == ("DEPTH", 1) else (Path(),))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is locked to root")
def test_a_folder_that_cannot_be_read_is_counted(home: Path) -> None:
    (home / ".ollama" / "models").mkdir(parents=True)
    (home / ".ollama" / "models").chmod(0)
    assert [path for path, _ in find_models().unreadable] == [home / ".ollama" / "models"]


@pytest.mark.parametrize(
    ("free", "gpus", "fits"),
    [
        (1000, (), "memory"),
        (999, (), "no"),
        (None, (), "unknown"),
        (0, (1000,), "GPU"),
        (0, (500, 500), "GPU"),
        (600, (400,), "GPU and memory"),
        (600, (399,), "no"),
        (1000, (400,), "memory"),
    ],
)
def test_weights_fit_with_a_tenth_left(free: int | None, gpus: tuple[int, ...], fits: str) -> None:
    memory = None if free is None else Memory(10 * free, free, limited=False)
    devices = tuple(Measured("G", "a GPU", "GPU", each, each) for each in gpus)
    assert Machine(memory, devices).fits(900) == fits
