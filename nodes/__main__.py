"""The composition root: the command ``holdfast``, also ``python -m nodes``.

Other packages add commands through the entry-point group ``holdfast.commands``; each is loaded only
when it is asked for, so that an edge starts without them.
"""

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from typer.core import TyperGroup

__all__ = ["main"]

_BUILT_IN: Final = {
    "account": "nodes.commands.account:account",
    "carry": "nodes.commands.carry:app",
    "config": "nodes.commands.check:app",
    "edge": "nodes.commands.edge:edge",
    "gateway": "nodes.commands.gateway:gateway",
    "headquarters": "nodes.commands.headquarters:headquarters",
    "links": "nodes.commands.links:links",
    "spool": "nodes.commands.spool:app",
    "watch": "nodes.commands.watch:watch",
}
_GROUP: Final = "holdfast.commands"
# Typer brings its own copy of click, or uses the installed one, depending on its version.
_Any = Any


class _Commands(TyperGroup):
    """Finds commands by name, and imports only the one that is wanted."""

    def list_commands(self, ctx: _Any) -> list[str]:
        del ctx
        return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=_GROUP))})

    def get_command(self, ctx: _Any, cmd_name: str) -> _Any:
        del ctx
        target = _BUILT_IN.get(cmd_name)
        if target is not None:
            point = EntryPoint(cmd_name, target, _GROUP)
        else:
            found = entry_points(group=_GROUP, name=cmd_name)
            if not found:
                return None
            point = next(iter(found))
        return _command(point)


def _command(point: EntryPoint) -> _Any:
    loaded = point.load()
    if isinstance(loaded, typer.Typer):
        command = typer.main.get_command(loaded)
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(point.name)(loaded)
        command = typer.main.get_command(app)
    command.name = point.name
    return command


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    app = typer.Typer(
        cls=_Commands,
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Holdfast: keeps deciding when the network is gone, and loses nothing in silence.",
    )

    @app.callback()
    def holdfast() -> None:
        """Keeps deciding when the network is gone, and loses nothing in silence."""

    app(prog_name="holdfast")


if __name__ == "__main__":
    main()
