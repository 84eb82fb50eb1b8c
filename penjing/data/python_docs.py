"""Python's own documentation as a corpus: on every machine that runs penjing, and about one thing.

The docstrings of the standard library's public parts, with the signatures they explain, and the language reference in
`pydoc_data`. Sources are parsed, never imported; order and bytes depend on the installed Python only.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from penjing.data.text import Corpus, without_repeats
from penjing.errors import PenjingError

#: not documentation of the library, or not the library
_SKIPPED = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__", "pydoc_data"}
)


def corpus(stdlib: Path | None = None) -> Corpus:
    """One document a module or language topic, sorted, without repeated paragraphs.

    `stdlib` is the folder of a Python standard library, by default the running Python's.
    """
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    found = without_repeats([*_topics(root / "pydoc_data" / "topics.py"), *_modules(root)])
    if not found.documents:
        raise PenjingError("no documentation of Python", where=str(root), attempt="a Python with its library's sources")
    return found


def _topics(path: Path) -> Iterator[str]:
    """The language reference: `topics = {name: text}`, absent on some minimal systems."""
    for node in _parse(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics: dict[str, str] = ast.literal_eval(node.value)
            yield from (topics[name] for name in sorted(topics))


def _modules(root: Path) -> Iterator[str]:
    files = [path for path in root.rglob("*.py") if not _SKIPPED.intersection(path.relative_to(root).parts)]
    for path in sorted(files, key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sections = list(_sections(_parse(path), name))
        if sections:
            yield "\n\n".join(sections) + "\n"


def _parse(path: Path) -> ast.Module:
    """The file's syntax tree; an empty one where it cannot be read or parsed (a library ships some such on purpose)."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ast.Module(body=[], type_ignores=[])


def _sections(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    """The docstring of a module or class and those of its public parts, each under its signature."""
    text = ast.get_docstring(node)
    if text:
        kind = "module" if isinstance(node, ast.Module) else "class"
        yield f"{kind} {name}\n\n{text}"
    for part in node.body:
        if isinstance(part, ast.ClassDef) and not part.name.startswith("_"):
            yield from _sections(part, f"{name}.{part.name}")
        elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) and not part.name.startswith("_"):
            text = ast.get_docstring(part)
            if text:
                yield f"{name}.{part.name}({ast.unparse(part.args)})\n\n{text}"
