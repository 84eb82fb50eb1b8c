"""Python's documentation as a corpus: the same bytes each time, from sources that are never imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from penjing.data import python_docs
from penjing.errors import PenjingError


def test_public_docstrings_with_their_signatures(tmp_path: Path) -> None:
    (tmp_path / "pydoc_data").mkdir()
    (tmp_path / "pydoc_data" / "topics.py").write_text("topics = {'while': 'The while statement.', 'if': 'The if.'}")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "__init__.py").write_text(
        'raise SystemExit("imported")\n'
        '"""not a docstring"""\n'
        "class Bonsai:\n"
        '    """A tree."""\n'
        "    def prune(self, branch, *, by: int = 2):\n"
        '        """Cut it."""\n'
        "    def _secret(self):\n"
        '        """Unseen."""\n'
        "async def water(): 'Now.'\n"
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "x.py").write_text('"""a test"""')
    (tmp_path / "broken.py").write_text("def (")
    (tmp_path / "silent.py").write_text("x = 1")
    tree = [
        "class tree.Bonsai",
        "A tree.",
        "tree.Bonsai.prune(self, branch, *, by: int=2)",
        "Cut it.",
        "tree.water()",
        "Now.",
    ]
    wanted = ("The if.\n", "The while statement.\n", "\n\n".join(tree) + "\n")
    assert python_docs.corpus(tmp_path).documents == wanted


def test_the_order_is_that_of_names(tmp_path: Path) -> None:
    for name in ("a", "c", "b", "d", "aa"):
        (tmp_path / f"{name}.py").write_text(f'"""About {name}."""')
    names = [document.split()[1] for document in python_docs.corpus(tmp_path).documents]
    assert names == ["a", "aa", "b", "c", "d"]


def test_a_library_without_sources(tmp_path: Path) -> None:
    with pytest.raises(PenjingError, match="no documentation"):
        python_docs.corpus(tmp_path)


def test_this_python_has_more_than_a_megabyte_and_always_the_same() -> None:
    corpus = python_docs.corpus()
    assert corpus.num_bytes > 1e6
    assert corpus.digest == python_docs.corpus().digest
    assert any("module json\n" in document for document in corpus.documents)
