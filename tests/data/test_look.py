"""A look at data: languages, personal data, near-duplicates, lengths; and what to install where a library is absent."""

from __future__ import annotations

import json
import socket
import sys

import pytest
from typer.testing import CliRunner

from penjing.cli._app import application
from penjing.data.dataset import open_dataset
from penjing.data.look import look
from penjing.data.personal import personal_data
from penjing.data.records import Record

SENTENCES = [
    "Der Hund schläft heute den ganzen Tag in der Sonne vor dem Haus.",
    "The old harbour is quiet in the early hours of the morning.",
    "Le petit chat dort toute la journée devant la maison.",
]


def test_languages_and_counts(tmp_path):
    pytest.importorskip("py3langid")
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*SENTENCES, "ok", *(f"number {n}" for n in range(9))])
    )
    found = look(open_dataset(path))
    assert {"de": 1, "en": 1, "fr": 1}.items() <= found["languages"]["found"].items()
    assert found["languages"]["found"]["too short"] == 10
    assert found["records"] == 13
    assert found["lengths"]["longest"] == len(SENTENCES[0])
    assert found["near_duplicates"]["held_out_records"] == 1


def test_personal_data_is_found_without_a_network(monkeypatch):
    pytest.importorskip("presidio_analyzer")

    def refuse(*arguments, **options):
        raise AssertionError("a check of private data went to the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    text = "Write to anna@example.com, card 4111 1111 1111 1111, IBAN DE89370400440532013000. Room 12, page 4711."
    found = personal_data([Record("text", "a.txt", 7, text=text), Record("text", "a.txt", 8, text="Nothing here.")])
    assert {(one.kind, one.text) for one in found} == {
        ("EMAIL_ADDRESS", "anna@example.com"),
        ("CREDIT_CARD", "4111 1111 1111 1111"),
        ("IBAN_CODE", "DE89370400440532013000"),
    }
    assert {one.line for one in found} == {7}


@pytest.mark.parametrize(
    ("module", "key", "extra"),
    [
        ("presidio_analyzer", "personal_data", "pii"),
        ("py3langid", "languages", "fit"),
        ("datasketch", "near_duplicates", "fit"),
    ],
)
def test_an_absent_library_is_named(tmp_path, monkeypatch, module, key, extra):
    monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n} {n}"}) + "\n" for n in range(20)))
    assert look(open_dataset(path))[key] == {"needs": f"pip install 'penjing[{extra}]'"}


def test_the_verb_shows_what_the_model_learns(talker, tmp_path):
    path = tmp_path / "a.jsonl"
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(12)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{broken\n")
    done = CliRunner().invoke(application(), ["data", str(path), "--model", str(talker), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["kind"], found["records"], found["left_out"]) == ("instruction", 12, 1)
    shown = [[piece["text"] for piece in example["pieces"] if piece["target"]] for example in found["examples"]]
    assert len(shown) == 3
    assert all(len(texts) == 1 for texts in shown)
    assert "It is 0." in shown[0][0]
    assert found["problems"] == [
        {"problem": "broken line", "count": 1, "left_out": True, "lines": [{"file": "a.jsonl", "line": 13}]}
    ]
    refused = CliRunner().invoke(application(), ["data", str(path), "--strict"])
    assert refused.exit_code == 1
    assert "a.jsonl line 13" in refused.stderr
    wrong = CliRunner().invoke(application(), ["data", str(path), "--column", "text"])
    assert "not a column" in wrong.stderr
