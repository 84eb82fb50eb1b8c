"""Generated documentation is fresh, and what documents show can be run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from penjing.cli._app import application, verbs

ROOT = Path(__file__).resolve().parents[1]
WRITTEN = [path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md") if path.exists()]


def test_generated_docs_are_fresh():
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "gen_docs.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("document", WRITTEN, ids=lambda path: path.name)
def test_commands_in_documents_are_accepted(document):
    import typer

    group = typer.main.get_command(application())
    shown = re.findall(r"^(?:\$ )?(?:\.venv/bin/)?penjing (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    for line in shown:
        verb, *arguments = shlex.split(line.replace("…", ""), comments=True)
        if verb.startswith("-"):
            continue
        assert verb in verbs(), line
        options = {option for param in group.commands[verb].params for option in param.opts}
        used = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
        assert used <= options, line


@pytest.mark.parametrize("document", WRITTEN, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert "://" in target or (document.parent / target).exists(), target


def test_every_make_target_in_documents_exists():
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for document in WRITTEN:
        used = set(re.findall(r"^\$? ?make ([a-z0-9-]+)", document.read_text(encoding="utf-8"), re.MULTILINE))
        assert used <= targets, document.name


def test_the_technique_of_contributing_works(tmp_path):
    """The files of CONTRIBUTING.md, written where it says, found by name, and their test passes."""
    pytest.importorskip("torch")
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL))
    assert sorted(files) == ["penjing/quant/absmax.py", "tests/quant/test_absmax.py"]
    for name, content in files.items():
        (tmp_path / Path(name).name).write_text(content)
    # as if the file lay in penjing/quant: the package looks in one folder more
    (tmp_path / "conftest.py").write_text(f"import penjing.quant\npenjing.quant.__path__.append({str(tmp_path)!r})\n")
    technique = (
        "from penjing.quant import technique\n\n\ndef test_found():\n    assert technique('absmax').Spec().bits == 8\n"
    )
    (tmp_path / "test_found.py").write_text(technique)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "5 passed" in done.stdout
