"""The command line. Every file here whose name has no underscore in front is a verb; its `command` is what it does."""

from __future__ import annotations

from penjing.cli._app import main

__all__ = ["main"]
