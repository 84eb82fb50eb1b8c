"""Numbers for people, JSON for programs, progress for both."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from penjing.cli import _show
from penjing.cli._measured import measured


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (79_930_000, "79.9 MB"),
        (999_999, "1 MB"),
        (12_345_000_000, "12.3 GB"),
    ],
)
def test_sizes(value, expected):
    assert _show.size(value) == expected


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0, 3, "0"),
        (5.53248, 4, "5.532"),
        (1234.5, 3, "1,234"),
        (0.01234, 3, "0.0123"),
        (math.nan, 3, "nan"),
        (-2.5, 2, "-2.5"),
    ],
)
def test_numbers(value, digits, expected):
    assert _show.number(value, digits) == expected


@given(st.floats(min_value=1e-8, max_value=1e12))
def test_a_number_keeps_its_digits(value):
    assert float(_show.number(value, 4).replace(",", "")) == pytest.approx(value, rel=1e-3)


def test_json_has_no_infinities(capsys):
    _show.emit({"a": [math.inf, (math.nan, 1.5)], "b": {1: "盆"}}, True, lambda console: console.print("table"))
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1]) == {"a": ["inf", ["nan", 1.5]], "b": {"1": "盆"}}
    assert err == "table\n"


def test_lines_of_progress_are_few(capsys):
    now = 0.0
    report = _show._Lines(lambda: now)
    for done in range(101):
        now += 0.1
        report(f"part {done}", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "part 0: 0/100"
    assert lines[-1] == "part 100: 100/100"
    assert len(lines) <= 4


def test_measurements_have_a_line_for_what_any_has():
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    results = [
        {"bytes": 98_362_432, "quality": {"perplexity": 12.345}},
        {"bytes": 79_000_000, "quality": {"perplexity": 13.0}, "speed": {"decode_limit_fraction": 0.82}},
    ]
    console.print(measured(["before", "after"], results))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["file", "98.4", "MB", "79", "MB"] in lines
    assert ["held-out", "perplexity", "12.35", "13.00"] in lines
    assert ["of", "the", "limit", "–", "82%"] in lines
    assert not any("memory" in line for line in lines)


def test_a_record_of_many_settings_is_cut_and_says_so():
    from penjing.cli.inspect import _settings

    few = {"method": "rtn", "overrides": [["embed", {"bits": 8}]]}
    assert _settings(few) == "method=rtn embed:bits=8"
    many = {"method": "rtn", "overrides": [[f"layers.{n}.q", {"bits": 4}] for n in range(30)]}
    assert _settings(many).startswith("method=rtn layers.0.q:bits=4 ")
    assert _settings(many).endswith("layers.10.q:bits=4 … and 19 more (--json has all)")
