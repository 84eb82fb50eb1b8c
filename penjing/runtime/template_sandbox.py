"""Jinja for text that came with a model: it cannot reach Python, and it cannot eat the machine.

Jinja's own sandbox keeps a template away from Python's internals, but lets it loop and build text without end. Here
every way in which text grows passes a check (operators, `~`, all that is printed, the few methods and filters that
multiply), what cannot be checked is taken away, and a deadline stops what only loops.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from types import FrameType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

#: characters of any one text, and of all that is printed; long contexts are a few million
MOST_CHARS = 1 << 24
MOST_SECONDS = 5.0
#: how traces recognise the code of a template
FILENAME = "<chat template>"

# what a chat template has no need of and what makes text of any length, or that cannot be checked
DROPPED_FILTERS = {"center", "filesizeformat", "format", "pprint", "urlize", "wordcount", "wordwrap", "xmlattr"}
DROPPED_METHODS = {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}


class LimitError(Exception):
    """A template that asks for too much."""


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment in which transformers renders chat templates, with limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], finalize=_count
        )
        for name in DROPPED_FILTERS:
            del self.filters[name]
        self.filters |= {"tojson": _tojson, "replace": _replace, "join": _join, "indent": _indent}
        del self.globals["lipsum"]
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals |= {"namespace": _PlainNamespace, "dict": _dict}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = _Countable().visit(super()._parse(source, name, filename))
        template.set_environment(self)
        assert isinstance(template, nodes.Template)
        return template

    def getattr(self, obj: Any, attribute: str) -> Any:
        dropped = isinstance(obj, str) and attribute in DROPPED_METHODS
        return self.unsafe_undefined(obj, attribute) if dropped else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        dropped = isinstance(obj, str) and argument in DROPPED_METHODS
        return self.unsafe_undefined(obj, argument) if dropped else super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**" or (numbers and max(abs(left), abs(right)) > 1e15):
            raise LimitError(f"calculates {operator} on large numbers")
        if operator == "%" and not numbers:
            raise LimitError("formats text with %")
        if not numbers:
            _afford(_size(left) * _size(right) if operator == "*" else _size(left) + _size(right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, str) and name == "replace":
            return _replace(owner, *args, **{key: kwargs[key] for key in kwargs.keys() & {"count"}})
        if isinstance(owner, str) and name == "join":
            return _join(args[0], owner)
        return super().call(context, obj, *args, **kwargs)


class GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the model's own words for training; here it prints them."""

    tags = {"generation"}  # noqa: RUF012 - the way Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _PlainNamespace(Namespace):
    """A namespace that keeps no underscored names: they are the way to Python's internals."""

    def __init__(*args: Any, **names: Any) -> None:
        # no parameter is called self, so that a template may have an entry of that name
        names = dict(*args[1:], **names)
        for name in names:
            _require_plain(name)
        Namespace.__init__(args[0], names)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_plain(name)
        super().__setitem__(name, value)


class _Countable(NodeTransformer):
    """Writes `a ~ b` as a sum of texts and literal text as an expression, so that both pass the checks."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - Jinja looks the name up
        self.generic_visit(node)
        first, *rest = [nodes.Filter(part, "string", [], [], None, None, lineno=node.lineno) for part in node.nodes]
        total: nodes.Expr = first
        for part in rest:
            total = nodes.Add(total, part, lineno=node.lineno)
        return total

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Node:  # noqa: N802
        return nodes.Const(node.data, lineno=node.lineno)


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise LimitError in template code that still runs after this time."""
    end = time.monotonic() + seconds

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != FILENAME:
            return None
        if time.monotonic() > end:
            raise LimitError(f"takes more than {seconds:g} seconds")
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(previous)


#: characters that the rendering under way may still print, into its result or into a variable
_left: ContextVar[int] = ContextVar("penjing_left", default=MOST_CHARS)


@contextmanager
def limits(seconds: float) -> Iterator[None]:
    """One rendering: its time and what it prints are bounded."""
    token = _left.set(MOST_CHARS)
    try:
        with deadline(seconds):
            yield
    finally:
        _left.reset(token)


@jinja2.pass_context
def _count(context: Context, value: Any) -> str:
    """Count what is printed. It takes a context so that Jinja does not print constants while it compiles."""
    text = value if isinstance(value, str) else str(value)
    _left.set(_left.get() - len(text))
    if _left.get() < 0:
        raise LimitError(f"prints more than {MOST_CHARS} characters")
    return text


def _afford(num_chars: int) -> None:
    if num_chars > MOST_CHARS:
        raise LimitError(f"builds more than {MOST_CHARS} characters")


def _size(value: Any) -> int:
    return abs(int(value)) if isinstance(value, (int, float)) else len(value) if hasattr(value, "__len__") else 1


def _replace(s: Any, old: str, new: str, count: int = -1) -> str:
    text = str(s)
    found = len(text) + 1 if old == "" else text.count(old)
    _afford(len(text) + found * len(str(new)))
    return text.replace(old, str(new), -1 if count is None else count)


def _join(value: Iterable[Any], d: str = "", attribute: str | None = None) -> str:
    items = [item.get(attribute, "") if attribute and isinstance(item, dict) else item for item in value]
    texts = [item if isinstance(item, str) else str(item) for item in items]
    _afford(sum(map(len, texts)) + len(d) * len(texts))
    return d.join(texts)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(width, 1000)
    _afford(len(s) + len(margin) * (s.count("\n") + 1))
    lines = s.splitlines(keepends=True)
    return "".join(margin + line if (n or first) and (blank or line.strip()) else line for n, line in enumerate(lines))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own escapes < and > for HTML, which a model has never seen
    indent = None if indent is None else min(indent, 16)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _require_plain(name: Any) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace entry called {name}")


def _dict(*args: Any, **entries: Any) -> dict[Any, Any]:
    return dict(*args, **entries)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern[:200])
