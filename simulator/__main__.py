"""The command ``python -m simulator``: the simulated world, searched for what breaks the mesh."""

import typer

from simulator.crash.command import crash
from simulator.world.command import run

__all__ = ["main"]


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        help="Searches a simulated world for what breaks the mesh.",
    )
    app.command("crash")(crash)
    app.command("run")(run)

    @app.callback()
    def simulator() -> None:
        """Searches a simulated world for what breaks the mesh."""

    app(prog_name="python -m simulator")


if __name__ == "__main__":
    main()
