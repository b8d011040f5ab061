"""Reports: numbers that can all be looked up, pages that open anywhere, files that appear whole or not at all."""

import copy
import errno
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from tiny_report import bare_report, demo_report, large_report

from ggufreap.container import open_gguf
from ggufreap.demonstration import MODEL
from ggufreap.errors import InputError, OutputError
from ggufreap.files import create
from ggufreap.limits import level_of
from ggufreap.reporting import facts, load_report, write_report, writing
from ggufreap.reporting.caveats import caveats_of
from ggufreap.reporting.document import document_of, from_json, to_json
from ggufreap.reporting.formats import MINUS, MISSING, TIMES, written
from ggufreap.reporting.known_facts import file_facts
from ggufreap.reporting.pages import render
from ggufreap.reporting.plots import PLOTS, draw
from ggufreap.reporting.saliency_plots import removed_of, scores_of
from ggufreap.reporting.summary import summary_of

Written = tuple[facts.Report, Path]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LARGE, BARE = large_report(), bare_report()


@pytest.fixture(scope="session")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Written]:
    """Reports and the folders they were written to."""
    folder = tmp_path_factory.mktemp("reports")
    made = {"large": LARGE, "bare": BARE, "demo": demo_report(tmp_path_factory.mktemp("demo"))}
    for name, report in made.items():
        write_report(report, folder / name)
    return {name: (report, folder / name) for name, report in made.items()}


NAMES = pytest.mark.parametrize("name", ["large", "bare", "demo"])


# --- report.json ---------------------------------------------------------------------------------------------------


@NAMES
def test_a_report_is_read_as_it_was_written(name: str, reports: Mapping[str, Written]) -> None:
    report, folder = reports[name]
    assert load_report(folder / "report.json") == report


def _edited(edit: Callable[[Any], None]) -> str:
    document = copy.deepcopy(document_of(large_report(2, 16, ("code", "de"))))
    edit(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.update(schema="other/1"), "schema 'other/1'"),
        (lambda d: d.pop("model"), "has no model"),
        (lambda d: d["model"].update(colour="blue"), "model has the key 'colour'"),
        (lambda d: d["model"].update(n_used="4"), "model.n_used is '4'; it must be a whole number"),
        (lambda d: d["model"].update(n_used=True), "model.n_used is True"),
        (lambda d: d.update(variants={}), "variants is {}; it must be a list"),
        (lambda d: d["variants"][0]["overall"].update(kld=0.1), "kld is 0.1; it must be an object"),
        (lambda d: d["coverage"][1].update(mean=float("nan")), "it is not JSON: JSON is malformed"),
        (lambda d: d["original"].update(nbytes=0), "no experts or no bytes"),
        (lambda d: d["plan"]["blocks"][0]["keep"].pop(), "keeps 11 of 16 experts, the model has 12"),
        (lambda d: d["plan"]["blocks"][0]["scores"].pop(), "15 scores for 16 experts"),
        (lambda d: d["variants"][1].update(name=d["variants"][0]["name"]), "every name once"),
        (lambda d: d["equal_size"][0].update(variant="x"), "comparison is of x"),
        (lambda d: d["summary"].update(removed=1), "summary does not follow"),
        (lambda d: d["variants"][0]["domains"][1]["kld"].update(value=9.0), "summary does not follow"),
    ],
)
def test_what_is_no_report_is_refused_in_one_line(edit: Callable[[Any], None], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        from_json(_edited(edit))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("report.json")


def test_what_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '"x"'):
        with pytest.raises(InputError, match=r"report\.json"):
            from_json(text)
    with pytest.raises(InputError, match="cannot read"):
        load_report(tmp_path / "missing.json")


def test_foreign_text_commands_no_terminal_from_json_either() -> None:
    report = replace(BARE, model=replace(BARE.model, name="a\u202e\x9b2J\x1b[2J\U000e0041 é"))
    text = to_json(report)
    assert not any(mark in text for mark in "\u202e\x9b\x1b\U000e0041")
    assert "é" in text
    assert from_json(text) == report


def test_another_version_may_word_its_summary_otherwise() -> None:
    report = replace(BARE, version="0.0.1")
    document = json.loads(to_json(report))
    document["summary"]["caveats"] = ["other words"]
    assert from_json(json.dumps(document)) == report


# --- what follows from the facts -----------------------------------------------------------------------------------


def _variant(klds: Mapping[str, float], **itself: Any) -> facts.Variant:
    domains = tuple(facts.Meters(domain, facts.Estimate(kld)) for domain, kld in klds.items())
    return facts.Variant("a.gguf", facts.Subject(600, **itself), domains=domains)


def test_the_verdict_follows_from_the_domains() -> None:
    summary = summary_of(replace(BARE, variants=(_variant({"code": 0.01, "de": 0.2, "zh": 0.9}),)))
    [variant] = summary["variants"]
    assert variant["kld"] == pytest.approx(0.37)
    assert (variant["level"], variant["worst_domain"], variant["worst_kld"]) == ("large", "zh", 0.9)
    assert (variant["fit"], variant["care"], variant["unfit"]) == (["code"], ["de"], ["zh"])
    assert [level_of(kld) for kld in (0, 0.02, 0.1, 0.3, 1, 9)] == [
        "very small", "small", "clear", "large", "severe", "severe"
    ]  # fmt: skip


def test_the_table_has_original_pruned_and_delta() -> None:
    before = facts.Subject(1000, "F16", facts.Estimate(8.0, 0.1), 2000, (facts.Speed(1, tg=facts.Estimate(20.0)),))
    after = facts.Subject(600, "Q4_K_M", facts.Estimate(10.0, 0.1), 1500, (facts.Speed(1, tg=facts.Estimate(25.0)),))
    variant = facts.Variant("a.gguf", after, tasks=(facts.Task("quiz", 10, 0.8, 0.7),))
    [summary] = summary_of(replace(BARE, original=before, variants=(variant,)))["variants"]
    rows = {row["what"]: row for row in summary["comparison"]}
    assert rows["type"]["delta"] is None
    assert rows["size"]["delta"] == pytest.approx(-0.4)
    assert rows["perplexity"]["delta"] == pytest.approx(0.25)
    assert rows["quiz"]["delta"] == pytest.approx(-0.1)
    assert rows["memory"]["delta"] == pytest.approx(-0.25)
    assert rows["generation, batch 1"]["delta"] == pytest.approx(0.25)
    assert "parameters" not in rows
    assert not any("prompt" in what and row["pruned"] for what, row in rows.items())


@pytest.mark.parametrize(
    ("unpruned", "pruned", "verdict"),
    [
        ((0.10, 0.01), (0.05, 0.01), "pruned"),
        ((0.05, 0.01), (0.10, 0.01), "unpruned"),
        ((0.1, 0.1), (0.2, 0.1), "equal"),
    ],
)
def test_the_rival_of_equal_size_is_judged_by_the_errors(
    unpruned: tuple[float, float], pruned: tuple[float, float], verdict: str
) -> None:
    rival = facts.EqualSize("a.gguf", "b.gguf", "Q3_K_M", 610, facts.Estimate(*unpruned), facts.Estimate(*pruned))
    report = replace(BARE, variants=(_variant({}),), equal_size=(rival,))
    assert summary_of(report)["equal_size"][0]["verdict"] == verdict
    assert summary_of(report)["variants"][0]["beaten"] == (verdict == "unpruned")


def test_caveats_are_there_when_they_hold_and_only_then() -> None:
    calibration = facts.Calibration(512, 9000, sources=(facts.Source("a", "code"), facts.Source("b", "fr")))
    good = replace(
        BARE,
        plan=replace(BARE.plan, method="reap"),
        verification=facts.Verification(True),
        calibration=calibration,
        variants=(_variant({"code": 0.1, "fr": 0.1}),),
    )
    usual = list(caveats_of(good))
    assert len(usual) == 1
    assert "code, fr" in usual[0]
    rival = facts.EqualSize("a.gguf", "b", "Q3_K_M", 1, facts.Estimate(0.1), facts.Estimate(0.2))
    for changed, said in (
        ({"verification": None}, "Not verified"),
        ({"verification": facts.Verification(False)}, "do not use it"),
        ({"variants": ()}, "not measured"),
        (
            {"variants": (_variant({"code": 0.1, "fr": 0.1, "zh": 0.2}),)},
            "Measured but not part of the calibration text: zh",
        ),
        ({"variants": (_variant({"code": 0.1}),)}, "Part of the calibration text but not measured: fr"),
        ({"plan": replace(BARE.plan, method="random")}, "at random"),
        ({"plan": replace(BARE.plan, method="imatrix_counts")}, "importance matrix alone"),
        ({"calibration": replace(calibration, built_in=True)}, "trying out"),
        ({"calibration": replace(calibration, split_half=0.81)}, "agree on 81%"),
        ({"calibration": replace(calibration, routed=facts.Routed(0, 1.0, 2, 3))}, "3 of 32 experts were never"),
        ({"model": replace(BARE.model, n_mtp_block=1)}, "MTP"),
        ({"equal_size": (rival,)}, "unpruned model as Q3_K_M is nearer"),
        ({"notes": ("mine",)}, "mine"),
    ):
        more = [caveat for caveat in caveats_of(replace(good, **changed)) if caveat not in usual]  # type: ignore[arg-type]
        assert any(said in caveat for caveat in more), changed


@pytest.mark.parametrize(
    ("value", "shape", "text"),
    [
        (0, "size", "0 B"),
        (999, "size", "999 B"),
        (999_700, "size", "1.00 MB"),
        (8_216_672, "size", "8.22 MB"),
        (30_532_122_624, "parameters", "30.5B"),
        (0.0218123, "decimal", "0.0218"),
        (1234.5, "decimal", "1,234"),
        (0.99996, "decimal", "1.00"),
        (-0.205, "relative", f"{MINUS}20.5 %"),
        (0.00001, "relative", "0.0 %"),
        (0.034, "points", "+3.4 points"),
        (None, "size", MISSING),
        ("", "text", MISSING),
        ([0, 1, 2, 4, 7, 8], "ranges", "0-2, 4, 7-8"),
        ({"value": 18.3127, "stderr": 0.4832}, "decimal", "18.31 ± 0.48"),
        ({"value": 0.021812, "stderr": 0.00123}, "decimal", "0.0218 ± 0.0012"),
        ({"value": 0.9312, "stderr": 0.004}, "share", "93.12 ± 0.40 %"),
        ({"value": 12.0, "stderr": None}, "speed", "12.0 t/s"),
        ({"value": 1.0532, "stderr": 0.0}, "factor", f"{TIMES}1.053"),
    ],
)
def test_values_are_written_as_people_read_them(value: Any, shape: str, text: str) -> None:
    assert written(value, shape).replace("\N{NO-BREAK SPACE}", " ") == text


# --- report.html ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The places of a page: what is marked with a path, what is not, and what would be fetched."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.marked: list[tuple[str, str, str]] = []
        self.loose: list[str] = []
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.feed(html)
        assert not self.open, "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        if tag not in self.VOID:
            self.open.append((tag, dict(attrs)))
            if "data-json" in dict(attrs):
                self.marked.append((str(dict(attrs)["data-json"]), str(dict(attrs)["data-format"]), ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if self.open and "data-json" in self.open[-1][1]:
            path, shape, text = self.marked[-1]
            self.marked[-1] = (path, shape, text + data)
        elif "main" in tags and "svg" not in tags and "abbr" not in tags and re.search(r"\d", data):
            self.loose.append(data)


def _value_at(document: Any, path: str) -> Any:
    for key in path.split("."):
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document


def _unfounded(html: str, document: Mapping[str, Any]) -> list[Any]:
    """The numbers of a page that are not the document's."""
    page = Page(html)
    wrong: list[Any] = list(page.loose)
    return wrong + [place for place in page.marked if written(_value_at(document, place[0]), place[1]) != place[2]]


@NAMES
def test_every_number_on_the_page_is_looked_up_in_report_json(name: str, reports: Mapping[str, Written]) -> None:
    _, folder = reports[name]
    html = (folder / "report.html").read_text(encoding="utf-8")
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert _unfounded(html, document) == []
    assert len(Page(html).marked) > {"large": 400, "bare": 30, "demo": 90}[name]


def test_a_wrong_or_loose_number_would_be_found(reports: Mapping[str, Written]) -> None:
    _, folder = reports["bare"]
    html = (folder / "report.html").read_text(encoding="utf-8")
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert _unfounded(html.replace(">960\N{NO-BREAK SPACE}GB<", ">950\N{NO-BREAK SPACE}GB<", 1), document)
    assert _unfounded(html.replace("<h2>In short</h2>", "<h2>In 3 words</h2>"), document)


def test_a_value_cannot_be_printed_without_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggufreap.reporting.pages.__file__", str(tmp_path / "pages.py"))
    (tmp_path / "x.j2").write_text("{{ report.model.name }}", encoding="utf-8")
    for html in (True, False):
        with pytest.raises(TypeError, match=r"model\.name is printed without a format"):
            render("x.j2", document_of(BARE), lambda path, shape, text: text, html=html)


@NAMES
def test_the_page_fetches_nothing_and_runs_nothing(name: str, reports: Mapping[str, Written]) -> None:
    html = (reports[name][1] / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert all(target.startswith(("#", "data:")) for target in page.fetched)
    assert page.tags.isdisjoint({"script", "iframe", "object", "embed", "form"})
    assert "@import" not in html
    assert not re.search(r"url\((?!#|[\"']?data:)", html)


def test_what_stands_in_names_is_no_markup(reports: Mapping[str, Written]) -> None:
    html = (reports["large"][1] / "report.html").read_text(encoding="utf-8")
    assert "Big &amp; &lt;Model&gt;_480B *MoE*" in html
    assert "<Model>" not in html


def test_a_page_of_the_largest_models_stays_small(reports: Mapping[str, Written]) -> None:
    folder = reports["large"][1]
    assert len(LARGE.plan.blocks) * LARGE.model.n_expert_before == 48 * 512
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    assert (folder / "report.html").stat().st_size < 1_000_000


# --- pictures ------------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_where_there_is_data(reports: Mapping[str, Written]) -> None:
    for name, expected in (
        ("large", set(PLOTS)),
        ("bare", {"sizes"}),
        ("demo", set(PLOTS) - {"coverage", "speeds"}),
    ):
        folder = reports[name][1]
        assert {path.stem for path in folder.glob("*.png")} == expected
        html = (folder / "report.html").read_text(encoding="utf-8")
        assert html.count("<svg ") == len(expected)


def test_pictures_take_the_colours_of_the_page(reports: Mapping[str, Written]) -> None:
    html = (reports["large"][1] / "report.html").read_text(encoding="utf-8")
    for svg in re.findall(r"<svg .*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "#ffffff" not in svg.split("<defs>")[0]


def test_the_pictures_show_the_experts_that_go() -> None:
    removed, scores = removed_of(LARGE), scores_of(LARGE)
    assert removed.sum(axis=1).tolist() == [128] * 48
    for block, row in zip(LARGE.plan.blocks, removed, strict=True):
        assert np.flatnonzero(~row).tolist() == list(block.keep)
    assert int(np.isnan(scores).sum()) == sum(block.scores.count(None) for block in LARGE.plan.blocks) > 0


@pytest.mark.parametrize("row", [[None] * 16, [-1.0, 0.0, 1e-30, 1e30] * 4])
def test_odd_scores_can_be_drawn(row: list[float | None]) -> None:
    blocks = tuple(replace(block, scores=tuple(row)) for block in BARE.plan.blocks)
    pictures = draw(replace(BARE, plan=replace(BARE.plan, blocks=blocks)))
    assert {"saliency", "experts", "distributions"} <= set(pictures)


def test_names_are_drawn_as_they_are() -> None:
    names = ("中文", "a $x$ \\frac", "<b>&")
    rows = tuple(facts.Coverage(name, 0.9, 0.8) for name in names)
    pictures = draw(replace(BARE, coverage=rows))
    text = ElementTree.fromstring(pictures["coverage"].svg.replace("<svg ", '<svg xmlns:xlink="x" ', 1)).itertext()
    assert set(names) <= {piece.strip() for piece in text}


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'ggufreap\[report\]'"):
        write_report(BARE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- README.md -----------------------------------------------------------------------------------------------------


def _card(report: facts.Report, folder: Path) -> tuple[dict[str, Any], str]:
    write_report(report, folder)
    return _read(folder / "README.md")


def _read(card: Path) -> tuple[dict[str, Any], str]:
    found = re.fullmatch(r"---\n(.*?\n)---\n(.*)", card.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return yaml.safe_load(found[1]), found[2]


def test_the_front_matter_is_what_the_hub_reads(reports: Mapping[str, Written]) -> None:
    front, _ = _read(reports["large"][1] / "README.md")
    assert front["base_model"] == ["some-org/Big-Model"]
    assert front["base_model_relation"] == "quantized"
    assert (front["license"], front["library_name"], front["quantized_by"]) == ("apache-2.0", "gguf", "somebody")
    assert {"gguf", "moe", "pruned", "reap"} <= set(front["tags"])
    assert front["datasets"] == [f"org/{index}-data" for index in range(7)]


def test_the_front_matter_is_yaml_whatever_the_names(tmp_path: Path) -> None:
    base = facts.BaseModel("x", repo_url="https://huggingface.co/a/b")
    model = replace(
        BARE.model, license="yes: [no]\n---\n#", license_name='"', name="a\n---\nb | c", base_models=(base,)
    )
    source = facts.Source("texts/code.txt", "code", n_tokens=1)
    half = facts.Variant("m-F16.gguf", facts.Subject(1, "F16"))
    calibration = facts.Calibration(512, 512, sources=(source,))
    report = replace(BARE, model=model, publisher="- {x}", calibration=calibration, variants=(half,))
    front, body = _card(report, tmp_path)
    assert (front["license"], front["license_name"], front["quantized_by"]) == ("yes: [no] --- #", '"', "- {x}")
    assert front["base_model_relation"] == "finetune"
    assert "datasets" not in front
    assert "# a --- b \\| c WEIGHT-NORM-0.25" in body


def test_the_card_holds_the_table_and_how_to_run_it(reports: Mapping[str, Written]) -> None:
    report, folder = reports["large"]
    body = (folder / "README.md").read_text(encoding="utf-8")
    for row in document_of(report)["summary"]["variants"][0]["comparison"]:
        cells = [written(row[side], row["shape"]) for side in ("original", "pruned")]
        cells.append(written(row["delta"], row["as"]))
        assert f"| {' | '.join(cells)} |".replace("_", "\\_").replace("\N{NO-BREAK SPACE}", " ") in body
    assert "llama-server -m Big-Model-REAP-0.25-Q4_K_M.gguf" in body
    assert all(file.sha256 in body for file in report.files)
    assert "ggufreap run mine.toml 'Big Model-BF16.gguf'" in body
    assert "**tool\\_calls** (worst)" in body


@NAMES
def test_the_card_is_sound_markdown(name: str, reports: Mapping[str, Written]) -> None:
    folder = reports[name][1]
    body = (folder / "README.md").read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE)
    assert len(tables) == {"large": 8, "bare": 0, "demo": 4}[name]
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    for before, heading in re.findall(r"^(.*)\n(#+ .*)$", body, re.MULTILINE):
        assert before == "", heading
    assert all((folder / picture).exists() for picture in re.findall(r"!\[.*?\]\((.*?)\)", body))


# --- the files -----------------------------------------------------------------------------------------------------


def test_a_card_that_somebody_wrote_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# mine\n", encoding="utf-8")
    with pytest.raises(OutputError, match=r"README\.md was not made by ggufreap report") as caught:
        write_report(BARE, tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "# mine\n"


@pytest.mark.parametrize("name", ["report.json", "report.html", "sizes.png"])
def test_nor_is_any_other_foreign_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match=re.escape(name)):
        write_report(BARE, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_new_report_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    old = write_report(replace(BARE, coverage=LARGE.coverage), tmp_path)
    (tmp_path / "photo.png").write_bytes(b"mine")
    new = write_report(BARE, tmp_path)
    assert {path.name for path in old} > {path.name for path in new}
    assert {path.name for path in tmp_path.iterdir()} == {*(path.name for path in new), "photo.png"}
    assert load_report(tmp_path / "report.json") == BARE


def test_all_files_appear_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> BinaryIO:
        if path.name == "sizes.png":  # the last file to be written
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path)

    monkeypatch.setattr(writing, "create", full)
    with pytest.raises(OutputError, match=r"sizes\.png: No space left"):
        write_report(BARE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    report = replace(BARE, coverage=LARGE.coverage)
    first, second = write_report(report, tmp_path / "a"), write_report(report, tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


# --- what is described from what is there --------------------------------------------------------------------------


def test_the_embedded_model_is_described_as_it_is(reports: Mapping[str, Written]) -> None:
    model = reports["demo"][0].model
    source = open_gguf(MODEL)
    assert model.parameters_before == sum(record.n_elements for record in source.tensors)
    experts = sum(record.n_elements for record in source.tensors if "_exps" in record.name)
    assert model.active_before == model.parameters_before - experts * 14 // 16
    assert model.parameters_after == model.parameters_before - experts * 4 // 16 - _router_rows(source, 4)
    assert model.active_after == model.active_before - _router_rows(source, 4)
    assert (model.n_expert_before, model.n_expert_after, model.n_used, model.n_moe_block) == (16, 12, 2, 4)
    assert (model.license, model.nbytes_before) == ("mit", MODEL.stat().st_size)


def _router_rows(source: Any, n_removed: int) -> int:
    return sum(r.n_elements * n_removed // 16 for r in source.tensors if "ffn_gate_inp" in r.name)


def test_the_embedded_model_was_really_measured(reports: Mapping[str, Written]) -> None:
    report = reports["demo"][0]
    assert report.verification is not None
    assert report.verification.ok
    assert all(meters.kld.value > 0 for candidate in report.curve for meters in candidate.domains)
    means = [candidate["kld"] for candidate in summary_of(report)["curve"]]
    assert means == sorted(means)


def test_a_file_is_known_by_its_hash(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    described = file_facts(tmp_path / "x", "F16")
    assert described == facts.File("x", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad", "F16")
    with pytest.raises(InputError, match="cannot read"):
        file_facts(tmp_path / "missing")


# --- in a browser --------------------------------------------------------------------------------------------------

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--window-size=500,900",
)
_ASK = """<script>addEventListener("load", () => {
  const fits = document.documentElement.scrollWidth <= innerWidth;
  document.title = `fits:${fits} back:${getComputedStyle(document.body).backgroundColor}`;
});</script></body>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize(("scheme", "back"), [(1, "rgb(246, 247, 249)"), (0, "rgb(18, 21, 25)")], ids=["light", "dark"])
def test_a_browser_shows_it_in_light_and_dark_on_a_narrow_screen(
    scheme: int, back: str, reports: Mapping[str, Written], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    html = (reports["large"][1] / "report.html").read_text(encoding="utf-8")
    page.write_text(html.replace("</body>", _ASK), encoding="utf-8")
    flags = [*_FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    done = subprocess.run(
        [str(CHROMIUM), *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    assert f"<title>fits:true back:{back}</title>" in done.stdout
    assert "CONSOLE" not in done.stderr


def test_a_better_rival_stands_before_any_word_for_the_loss(tmp_path: Path) -> None:
    """A very small loss is no praise where quantising alone costs a third of it."""
    estimates = facts.Estimate(0.005, 0.0001), facts.Estimate(0.015, 0.0001)
    rival = facts.EqualSize("a.gguf", "b.gguf", "Q3_K_M", 610, *estimates)
    report = replace(BARE, variants=(_variant({"code": 0.015}),), equal_size=(rival,))
    _, page, card = (path.read_text("utf-8") for path in write_report(report, tmp_path / "r") if path.suffix != ".png")
    tiles = page[page.index('<div class="tiles">') :]
    assert tiles.index(">farther<") < tiles.index("experts per block")
    assert "a very small loss</span>" not in re.sub(r"<span data-json[^>]*>([^<]*)</span>", r"\1", tiles)
    assert "more than\nquantising the unpruned model to its size does" in page
    assert card.index("At its size the unpruned model is better") < card.index("What it costs")
