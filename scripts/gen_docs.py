"""Write the documentation that follows from the code: docs/cli.md and docs/techniques.md.

`--check` writes nothing and exits 1 where a file is not what would be written. The help of options is taken from the
commands themselves, not from how a terminal shows it: that changes with typer's version and the width of the window.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import typer

from penjing.cli._app import PANELS, application
from penjing.cli.list import ROOMS, techniques

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEADER = "<!-- written by scripts/gen_docs.py: run `make docs` -->\n\n"


def cli() -> str:
    """Every verb, its arguments and options."""
    group: Any = typer.main.get_command(application())
    lines = ["# The command line\n", "`penjing VERB MODEL …`. " + group.help + "\n"]
    for panel in PANELS:
        lines.append(f"## {panel}\n")
        for name, command in group.commands.items():
            if command.rich_help_panel == panel:
                lines += _verb(name, command)
    return HEADER + "\n".join(lines)


def _verb(name: str, command: Any) -> list[str]:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join(["penjing", name, *(str(argument.metavar) for argument in arguments)])
    lines = [f"### {name}\n", f"{command.help}\n", "```", f"{usage} [OPTIONS]", "```\n"]
    lines += ["| | | default |", "| --- | --- | --- |"]
    lines += [f"| `{_plain(argument.metavar)}` | {_plain(argument.help)} | |" for argument in arguments]
    lines += [f"| `{', '.join(o.opts)}` | {_plain(o.help)} | {_default(o)} |" for o in options]
    return [*lines, ""]


def _default(option: Any) -> str:
    shown = option.show_default and option.default not in (None, "", False)
    return f"`{option.default}`" if shown else ""


def _plain(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def technique_table() -> str:
    """What each room has, one line a file."""
    lines = ["# Techniques and families\n", "From the first line of each file, as `penjing list` prints them.\n"]
    for room, what in ROOMS.items():
        lines += [f"## {room}: {what}\n", "| name | what it is |", "| --- | --- |"]
        lines += [f"| `{name}` | {_plain(line)} |" for name, line in techniques(room).items()]
        lines.append("")
    return HEADER + "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is stale")
    check = parser.parse_args().check
    stale = []
    for name, text in (("cli.md", cli()), ("techniques.md", technique_table())):
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if not check:
            path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
