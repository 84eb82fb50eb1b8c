"""Verbs to one program, and how it ends: 0 done, 1 a PenjingError in three lines, 2 usage, 130 interrupted."""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from penjing.errors import PenjingError

#: headings of `penjing --help`, in this order; each verb names its own
PANELS: Final = ("Look", "Make it small", "Judge it", "Use it")


class Verbs(TyperGroup):
    """Turns every way to fail into its exit code, whichever verb fails."""

    def invoke(self, ctx: Any) -> Any:
        with endings(lambda: ctx.invoked_subcommand):
            return super().invoke(ctx)


@contextlib.contextmanager
def endings(verb: Any = lambda: None) -> Iterator[None]:
    """Errors, interruption and a reader that went away, as a person or a shell wants to see them."""
    try:
        yield
        sys.stdout.flush()
    except PenjingError as error:
        _say(str(error))
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        _say(f"interrupted\n  try:   {_after_interrupt(verb())}")
        raise typer.Exit(130) from error
    except BrokenPipeError as error:
        # nobody reads: point the descriptor elsewhere, or Python complains about it once more when it ends
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(141) from error  # as a shell reports a process that SIGPIPE ended
    except MemoryError as error:
        _say("not enough memory\n  try:   close other programs, a smaller model, or a smaller --context")
        raise typer.Exit(1) from error
    except OSError as error:
        where = f"\n  where: {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}\n  try:   check the path, its permissions and the space on the disk")
        raise typer.Exit(1) from error


def _say(text: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _after_interrupt(verb: str | None) -> str:
    default = "run the same command again; nothing half-written was left under its name"
    return getattr(importlib.import_module(f"penjing.cli.{verb}"), "RESUME", default) if verb in verbs() else default


def verbs() -> list[str]:
    """Names of the verbs: the folder is the registry."""
    package = importlib.import_module("penjing.cli")
    return [module.name for module in pkgutil.iter_modules(package.__path__) if not module.name.startswith("_")]


def application() -> typer.Typer:
    """The program, with every verb."""
    app = typer.Typer(
        cls=Verbs,
        name="penjing",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Grow a language model small enough to live where your data is.",
    )
    app.callback()(_options)
    modules = {name: importlib.import_module(f"penjing.cli.{name}") for name in verbs()}
    for name, module in sorted(modules.items(), key=lambda item: (PANELS.index(item[1].PANEL), item[0])):
        app.command(name, rich_help_panel=module.PANEL)(module.command)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        import penjing

        print(f"penjing {penjing.__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Nothing but what every verb shares."""


def main() -> None:
    """Entry point of the `penjing` program."""
    _wait_briefly()
    try:
        application()(prog_name="penjing")
    except KeyboardInterrupt:  # before any verb began
        sys.exit(130)


def _wait_briefly() -> None:
    """Let torch's threads wait for each other in a spin of some 0.1 ms, then asleep; its default is 30 times that.

    Two cores, 300 rounds of small operations: 0.34 s either way on a quiet machine, 1.1 s instead of 3 to 10 beside a
    program that uses both cores; sleeping at once would be 0.48 and 0.75 s. libgomp reads it when torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
