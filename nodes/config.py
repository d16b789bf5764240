"""Reads a configuration: files, environment, credentials; says all that is wrong with it at once.

Later sources win, key by key: the file, then ``conf.d/*.toml`` beside it in order of their names,
then the environment, ``HOLDFAST_SECTION__KEY=value`` (``HOLDFAST_DECISIONS__0__MODEL`` for a key of
the first rule; a value that begins with ``[`` or ``{`` is read as TOML). Tables are merged, and
``[[decisions]]`` and ``[[uplinks]]`` of several files stand one after another. Variables without a
double underscore are none of ours.

A path is relative to the file that it stands in; ``package:simulator/models/pump.onnx`` is a file
of an installed package. A secret is a path too: ``password_file = "credential:broker-password"`` is
``$CREDENTIALS_DIRECTORY/broker-password``, where systemd puts it. Without a ``password_file`` the
credentials ``broker-password``, ``gateway-password``, ``headquarters-password`` and
``uplink-<name>-password`` are taken where they are there. A file with a secret that others can read
is refused. No secret is in the settings, nor in what is said about them.
"""

import difflib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from inspect import isclass
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nodes.document import Document, Key, dotted, toml
from nodes.section import Section
from nodes.settings import Settings
from schemas.errors import ConfigurationInvalid
from schemas.limits import KIB

__all__ = ["describe", "load", "secret"]

_SECRET_BYTES_MAX: Final = 64 * KIB
_SHOWN_CHARS_MAX: Final = 80
_SECRET_KEYS: Final = ("password_file", "key_file")


def load(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings that a file, its ``conf.d`` and the environment give together.

    Args:
        path: the main file.
        environment: what stands for ``os.environ``.

    Raises:
        ConfigurationInvalid: all problems, one line each.
    """
    document = Document(os.environ if environment is None else environment)
    document.add_files(path)
    if document.problems:
        # What could not be read would only be reported again as missing.
        raise ConfigurationInvalid(tuple(document.problems))
    document.add_environment()
    document.add_defaults()
    problems = document.problems
    try:
        settings = Settings.model_validate(document.tables)
    except ValidationError as invalid:
        problems += _told(document, invalid.errors(include_url=False, include_input=False))
        raise ConfigurationInvalid(tuple(problems)) from None
    problems += _secret_problems(document, settings)
    if problems:
        raise ConfigurationInvalid(tuple(problems))
    return settings


def secret(path: Path) -> str:
    """What a secret's file holds, without the line's end.

    Raises:
        ConfigurationInvalid: why it cannot be used; never what it holds.
    """
    problem = _file_problem(path)
    if problem is None:
        try:
            text = path.read_bytes().decode().rstrip("\r\n")
        except UnicodeDecodeError:
            problem = "is not UTF-8 text"
        else:
            if text:
                return text
            problem = "is empty"
    raise ConfigurationInvalid((f"{path}: {problem}",))


def describe(settings: Settings) -> str:
    """The settings in force as TOML, defaults included. There are no secrets in settings."""
    lines: list[str] = []
    for section, tables in settings.model_dump(mode="json", exclude_none=True).items():
        several = isinstance(tables, list)
        for table in tables if several else [tables]:
            lines.append(f"[[{section}]]" if several else f"[{section}]")
            lines += _table(section, table)
            lines.append("")
    return "\n".join(lines)


def _table(name: str, table: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a table, those of the sections in it behind its own keys."""
    within = _inner(Settings, name)
    below = {key for key in table if within is not None and _inner(within, key) is not None}
    yield from (f"{key} = {toml(value)}" for key, value in table.items() if key not in below)
    for key in table:
        if key in below:
            for inner, values in table[key].items():
                yield ""
                yield f"[{name}.{key}.{inner}]"
                yield from (f"{one} = {toml(value)}" for one, value in values.items())


def _secret_problems(document: Document, settings: Settings) -> Iterator[str]:
    sections: list[tuple[Key, Section | None]] = [
        (("broker",), settings.broker),
        (("gateway",), settings.gateway),
        (("headquarters",), settings.headquarters),
        *((("uplinks", index), uplink) for index, uplink in enumerate(settings.uplinks)),
    ]
    for at, section in sections:
        for name in _SECRET_KEYS:
            path = getattr(section, name, None)
            if path is not None and (problem := _file_problem(path)):
                key = (*at, name)
                yield f"{document.source(key)}: {dotted(key)} = {str(path)!r}: {problem}"


def _file_problem(path: Path) -> str | None:
    """Why a secret's file cannot be used."""
    try:
        status = path.stat()
    except OSError as failure:
        return f"cannot be read: {failure.strerror}"
    if not stat.S_ISREG(status.st_mode) or status.st_size > _SECRET_BYTES_MAX:
        return f"a regular file of at most {_SECRET_BYTES_MAX} bytes would be right"
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        return "others can read it; chmod 600 would be right"
    if not os.access(path, os.R_OK):
        return "cannot be read by this user"
    return None


# --- how a problem is said ------------------------------------------------------------------------


def _told(document: Document, errors: Sequence[ErrorDetails]) -> Iterator[str]:
    """One line about each thing that pydantic found: file, key, value, what would be right."""
    keys = [_real_key(error["loc"], document.tables) for error in errors]
    for key, error in zip(keys, errors, strict=True):
        # A list is also said to be too short where one of its items is wrong.
        if not any(len(other) > len(key) and other[: len(key)] == key for other in keys):
            yield _problem(document, key, error)


def _problem(document: Document, key: Key, error: ErrorDetails) -> str:
    where = f"{document.source(key)}: {dotted(key)}"
    what, kind = error["msg"], error["type"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {_suggestion(key)}"
    if kind == "missing":
        return f"{where}: is missing; {_description(key) or 'a value'} would be right"
    if kind == "value_error":
        right = str(error.get("ctx", {}).get("error", what))
    else:
        description = _description(key)
        right = f"{description} would be right" if description else what
    shown = _shown(key, document.tables)
    return f"{where}{shown}: {right}"


def _real_key(location: tuple[int | str, ...], tables: object) -> Key:
    """The part of pydantic's location that stands in the tables, and one level more."""
    key: list[str | int] = []
    for level in location:
        if isinstance(tables, dict) and isinstance(level, str):
            tables = tables.get(level)
        elif isinstance(tables, list) and isinstance(level, int) and level < len(tables):
            tables = tables[level]
        else:
            break
        key.append(level)
    return tuple(key)


def _place(key: Key) -> tuple[type[Section], str]:
    """The section that a key stands in, and the key's own name there."""
    names = [level for level in key if isinstance(level, str)]
    section: type[Section] = Settings
    for name in names[:-1]:
        inner = _inner(section, name)
        if inner is None:
            return section, name
        section = inner
    return section, names[-1] if names else ""


def _inner(section: type[Section], name: str) -> type[Section] | None:
    """The section that a key of a section holds, or holds several of."""
    field = section.model_fields.get(name)
    kinds = () if field is None else (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isclass(kind) and issubclass(kind, Section)), None)


def _description(key: Key) -> str:
    section, name = _place(key)
    field = section.model_fields.get(name)
    return (field and field.description) or ""


def _suggestion(key: Key) -> str:
    known = list(_place(key)[0].model_fields)
    close = difflib.get_close_matches(str(key[-1]), known, n=1)
    if close:
        return f"{close[0]} would be right"
    return f"known here: {', '.join(known)}"


def _shown(key: Key, tables: object) -> str:
    """`` = value``; nothing for a table, and no user or password of a URL."""
    value: Any = tables
    for level in key:
        value = value[int(level)] if isinstance(value, list) else value.get(level)
    if isinstance(value, dict) or value is None or (isinstance(value, list) and len(key) == 1):
        return ""
    text = repr(value)
    if "@" in text:
        return " = (not shown)"
    return f" = {text if len(text) <= _SHOWN_CHARS_MAX else text[:_SHOWN_CHARS_MAX] + '…'}"
