"""``holdfast config check``: says all that is wrong with a configuration, or what is in force."""

from pathlib import Path
from typing import Annotated

import typer

from nodes import config
from nodes.commands.process import fail
from nodes.settings import Settings
from schemas.errors import ConfigurationInvalid, MeshError

__all__ = ["app"]

app = typer.Typer(help="Looks at configurations.", no_args_is_help=True)


@app.callback()
def _configuration() -> None:
    """Looks at configurations."""


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="configuration file (TOML)")],
    json: Annotated[bool, typer.Option("--json", help="print the settings as JSON")] = False,
) -> None:
    """Reads a configuration as its command would, models included, and prints what is in force.

    Ends with 0 when it is right, and with 78 when it is not, all of its errors at once.
    """
    try:
        settings = config.load(file)
        if settings.gateway is not None:
            settings.for_gateway().gateway.check_uplinks(settings.uplinks)
        elif settings.headquarters is None:
            settings.for_edge()
        _check_models(settings, file)
    except MeshError as error:
        fail(error)
    for warning in settings.spool.warnings:
        typer.echo(f"holdfast: warning: {file}: {warning}", err=True)
    typer.echo(settings.model_dump_json(indent=2) if json else config.describe(settings))


def _check_models(settings: Settings, file: Path) -> None:
    """Loads each rule's model as an edge would."""
    problems = []
    for section in settings.decisions:
        # Only a check of rules needs the inference runtime, which takes a while to load.
        from nodes.edge.rule import Rule  # noqa: PLC0415
        from nodes.edge.runtime import OnnxModel  # noqa: PLC0415

        try:
            width = len(section.fields) if section.fields else None
            model = OnnxModel.load(section.model, window=section.window, width=width)
            Rule.of(section, model.contract)
        except MeshError as wrong:
            problems.append(f"{file}: decisions {section.name}: {wrong}")
    if problems:
        raise ConfigurationInvalid(tuple(problems))
