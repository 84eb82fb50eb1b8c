"""A report shows what evidence says, all of it escaped, and asks nothing of the outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from penjing import evidence
from penjing.errors import PenjingError
from penjing.evidence import Evidence
from penjing.format.pack import Layout
from penjing.recipe.report import Packed, before_and_after, page, report, written

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)> $\\frac{1}{0}$ -->'
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def state(size: int, perplexity: float, model: str = "m") -> dict[str, Any]:
    speed = {"threads": 2, "prefill_tokens_per_s": 1234.4, "decode_tokens_per_s": 87.6, "spread": 0.05}
    return {
        "model": model,
        "bytes": size,
        "quality": {"perplexity": perplexity, "top1_agreement": 0.875},
        "speed": speed | {"decode_limit_fraction": 0.5, "one_thread": speed | {"threads": 1}},
        "memory": {"peak_rss_bytes": size + 50_000_000, "over_file_bytes": 50_000_000},
    }


def fitted(**fields: Any) -> Evidence:
    told: dict[str, Any] = {
        "before": state(200_000_000, 10.0),
        "after": state(80_000_000, 11.0),
        "settings": {"bits": 4},
    }
    return Evidence(**(told | {"stage": "fit", "parent": "a" * 64, "child": "b" * 64} | fields))


def write(folder: Path, *records: Evidence) -> Path:
    for record in records:
        evidence.append(folder / "evidence.jsonl", record)
    return folder


def test_numbers_come_from_evidence(tmp_path: Path) -> None:
    report(write(tmp_path, fitted()), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    for wanted in (
        "200.0 MB",
        "80.0 MB",
        "−60.0 %",
        "10.000",
        "11.000",
        "+10.0 %",
        "87.5 %",
        "1,234",
        "bits = 4",
        "a" * 64,
    ):
        assert wanted in text
    found = Page(text)
    assert found.tags.count("svg") == 4
    assert ("aria-label", "before: 250.0 MB; after: 130.0 MB") in found.attributes  # for those who do not see plots


def test_failures_are_shown(tmp_path: Path) -> None:
    failure = Evidence(stage="prune", settings={}, failed="too big\n  where: here", after=state(1, 1.0))
    report(write(tmp_path, fitted(), failure), tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "failed: too big\n  where: here" in text
    assert "became 80.0 MB" in text  # a failure is no result


def test_hostile_text_is_only_text(tmp_path: Path) -> None:
    record = fitted(
        stage=HOSTILE,
        settings={HOSTILE: HOSTILE},
        child=HOSTILE,
        device={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        before=state(2, 3.0, "$\\frac$ </text><script>"),  # matplotlib would read the first as a formula
        time=HOSTILE,
    )
    failure = Evidence(stage=HOSTILE, settings={}, failed=HOSTILE)
    packed = Packed(HOSTILE, {HOSTILE: 7}, {"embed": Layout(kind="f32", rows=1, cols=1)}, 1, [])
    found = Page(page(HOSTILE, [record.to_json(), failure.to_json()], packed, [HOSTILE]))
    assert not {"script", "img", "link", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]


def test_nothing_is_fetched(tmp_path: Path) -> None:
    report(write(tmp_path, fitted()), tmp_path / "r.html")
    found = Page((tmp_path / "r.html").read_text(encoding="utf-8"))
    addresses = [value for name, value in found.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in addresses)
    styles = " ".join(value for name, value in found.attributes if name in ("style", "clip-path"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", styles))
    names = [value for name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names))  # of several plots on one page
    assert set(re.findall(r"url\(#([^)]*)\)", styles)) | {value[1:] for value in addresses} <= set(names)


def test_the_same_evidence_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, fitted())
    for name in ("a.html", "b.html"):
        report(tmp_path, tmp_path / name)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


@pytest.mark.parametrize(
    "record",
    [
        {},
        {
            "stage": 3,
            "settings": [],
            "before": "x",
            "after": {"bytes": "nan", "quality": 7},
            "device": 1,
            "versions": "v",
        },
        {"after": {"bytes": True, "speed": {"decode_tokens_per_s": "inf"}}, "seconds": "nan", "peak_rss_bytes": None},
        {"before": state(0, 0.0), "after": state(0, 0.0)},
    ],
)
def test_records_with_gaps(record: dict[str, Any]) -> None:
    Page(page("m", [record], None))


def test_a_torn_record_is_told(tmp_path: Path) -> None:
    write(tmp_path, fitted())
    with (tmp_path / "evidence.jsonl").open("ab") as file:
        file.write(b'{"stage": "qu')
    report(tmp_path, tmp_path / "r.html")
    assert "skipped an unreadable record" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match="no evidence"):
        report(tmp_path, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_before_is_the_first_and_after_the_last_that_finished() -> None:
    first, last = state(3, 1.0), state(1, 3.0)
    records = [{"after": first}, {"after": state(2, 2.0), "failed": "no"}, {"after": last}, {"after": {"note": 1}}]
    assert before_and_after(records) == (first, last)
    assert before_and_after(records[:1]) == ({}, first)
    stages = [{"before": {"bits_per_weight": 8.0}, "after": last}, {"before": first, "after": last}]
    assert before_and_after(stages) == (first, last)  # a stage that measured little does not hide one that measured all
    assert before_and_after([]) == ({}, {})


def test_bits_of_every_part() -> None:
    layouts = {
        "embed": Layout(kind="f16", rows=8, cols=64),
        "layers.0.q": Layout(kind="codes", rows=8, cols=64, bits=3, group_size=32),
        "layers.1.q": Layout(kind="codes", rows=8, cols=64, bits=6, group_size=64, symmetric=False),
    }
    text = page("m", [], Packed("m", {"embed": 10, "norms": 0}, layouts, 2, []))
    assert "3<small>32</small>" in text
    assert "6 bits, groups of 64, zero points" in text
    assert "<dd>f16</dd>" in text
    assert ">norms<" not in text
    Page(text)


@pytest.mark.parametrize(
    ("value", "style", "wanted"),
    [
        (0.1234, "percent", "12.3 %"),
        (999, "bytes", "999 B"),
        (1500, "bytes", "1.5 kB"),
        (2.5e9, "bytes", "2.5 GB"),
        (1234.5, "0", "1,234"),
        (-2e6, "bytes", "-2.0 MB"),
        (1.23456, "3", "1.235"),
    ],
)
def test_numbers_as_a_person_reads_them(value: float, style: str, wanted: str) -> None:
    assert written(value, style) == wanted
