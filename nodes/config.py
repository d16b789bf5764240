"""Reads a configuration: files, environment, credentials; says all that is wrong with it at once.

Later sources win, key by key: the file, then ``conf.d/*.toml`` beside it in order of their names,
then the environment, ``HOLDFAST_SECTION__KEY=value`` (``HOLDFAST_DECISIONS__0__MODEL`` for a key of
the first rule; a value that begins with ``[`` or ``{`` is read as TOML). Tables are merged, and
``[[decisions]]`` and ``[[uplinks]]`` of several files stand one after another. Variables without a
double underscore are none of ours.

A path is relative to the file that it stands in; ``package:simulator/models/pump.onnx`` is a file
of an installed package. A secret is a path too: ``password_file = "credential:broker-password"`` is
``$CREDENTIALS_DIRECTORY/broker-password``, where systemd puts it. Without a ``password_file`` the
credentials ``broker-password``, ``headquarters-password`` and ``uplink-<name>-password`` are taken
where they are there. A file with a secret that others can read is refused. No secret is in the
settings, nor in what is said about them.
"""

import difflib
import importlib.util
import json
import os
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from nodes.settings import (
    BrokerSection,
    DecisionSection,
    HeadquartersSection,
    HealthSection,
    LogSection,
    NodeSection,
    Section,
    Settings,
    SpoolSection,
    UplinkSection,
)
from schemas.errors import ConfigurationInvalid
from schemas.limits import KIB, MIB

__all__ = ["describe", "load", "secret"]

_PREFIX: Final = "HOLDFAST_"
_FILE_BYTES_MAX: Final = MIB
_FILES_MAX: Final = 100
_SECRET_BYTES_MAX: Final = 64 * KIB
_SHOWN_CHARS_MAX: Final = 80
_SYSTEM_STATE: Final = Path("/var/lib/holdfast")
_PATH_KEYS: Final = frozenset(
    {
        "archive_directory",
        "ca_file",
        "certificate_file",
        "data_directory",
        "key_file",
        "model",
        "password_file",
        "server_binary",
        "state_directory",
    }
)
_SECRET_KEYS: Final = ("password_file", "key_file")
_SECTIONS: Final[Mapping[str, type[Section]]] = {
    "node": NodeSection,
    "broker": BrokerSection,
    "spool": SpoolSection,
    "decisions": DecisionSection,
    "uplinks": UplinkSection,
    "headquarters": HeadquartersSection,
    "log": LogSection,
    "health": HealthSection,
}

Key = tuple[str | int, ...]


def load(path: Path, environment: Mapping[str, str] | None = None) -> Settings:
    """The settings that a file, its ``conf.d`` and the environment give together.

    Args:
        path: the main file.
        environment: what stands for ``os.environ``.

    Raises:
        ConfigurationInvalid: all problems, one line each.
    """
    document = _Document(os.environ if environment is None else environment)
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
        problems += document.told(invalid.errors(include_url=False, include_input=False))
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
            lines += [f"{key} = {_toml(value)}" for key, value in table.items()]
            lines.append("")
    return "\n".join(lines)


class _Document:
    """Merged tables that remember where each key came from."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.tables: dict[str, Any] = {}
        self.problems: list[str] = []
        self._environment = environment
        self._sources: dict[Key, str] = {}
        self._main = ""

    def add_files(self, path: Path) -> None:
        """The main file, and what stands beside it in ``conf.d``."""
        self._main = str(path)
        folder = path.parent / "conf.d"
        beside = sorted(folder.glob("*.toml")) if folder.is_dir() else []
        if len(beside) > _FILES_MAX:
            self.problems.append(f"{folder}: {len(beside)} files, at most {_FILES_MAX}")
            return
        for file in (path, *beside):
            tables = self._parse(file)
            if tables is not None:
                self._merge(self.tables, tables, (), str(file), file.parent)

    def add_environment(self) -> None:
        """Each variable whose name begins as ours do and has a double underscore."""
        for name, text in sorted(self._environment.items()):
            if name.startswith(_PREFIX) and "__" in name:
                self._set(name, text)

    def add_defaults(self) -> None:
        """What depends on the machine: folders, and credentials that are there."""
        node = self.tables.get("node")
        if isinstance(node, dict):
            node.setdefault("state_directory", str(_state_directory(self._environment)))
        headquarters = self.tables.get("headquarters")
        if isinstance(headquarters, dict):
            archive = _state_directory(self._environment) / "headquarters"
            headquarters.setdefault("archive_directory", str(archive))
        folder = self._environment.get("CREDENTIALS_DIRECTORY")
        if folder:
            for credential, table in self._connections():
                file = Path(folder) / credential
                if "password_file" not in table and "username" in table and file.is_file():
                    table["password_file"] = str(file)

    def _connections(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tables that may have a password, and the names of their credentials."""
        for section in ("broker", "headquarters"):
            table = self.tables.get(section)
            if isinstance(table, dict):
                yield f"{section}-password", table
        uplinks = self.tables.get("uplinks")
        for table in uplinks if isinstance(uplinks, list) else ():
            if isinstance(table, dict) and PurePosixPath(str(table.get("name"))).name:
                yield f"uplink-{PurePosixPath(str(table['name'])).name}-password", table

    def source(self, key: Key) -> str:
        """Where a key came from, or the nearest table round it."""
        for stop in range(len(key), 0, -1):
            if key[:stop] in self._sources:
                return self._sources[key[:stop]]
        return self._main

    def told(self, errors: Sequence[ErrorDetails]) -> Iterator[str]:
        """One line about each thing that pydantic found: file, key, value, what would be right."""
        keys = [_real_key(error["loc"], self.tables) for error in errors]
        for key, error in zip(keys, errors, strict=True):
            # A list is also said to be too short where one of its items is wrong.
            if not any(len(other) > len(key) and other[: len(key)] == key for other in keys):
                yield self._problem(key, error)

    def _problem(self, key: Key, error: ErrorDetails) -> str:
        where = f"{self.source(key)}: {_dotted(key)}"
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
        shown = _shown(key, self.tables)
        return f"{where}{shown}: {right}"

    def _parse(self, file: Path) -> dict[str, Any] | None:
        try:
            if file.stat().st_size > _FILE_BYTES_MAX:
                self.problems.append(f"{file}: more than {_FILE_BYTES_MAX} bytes")
                return None
            return tomllib.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            self.problems.append(f"{file}: there is no such file; name one with --config")
        except OSError as failure:
            self.problems.append(f"{file}: cannot be read: {failure.strerror}")
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as broken:
            self.problems.append(f"{file}: is not TOML: {broken}")
        return None

    def _merge(
        self, target: dict[str, Any], tables: Mapping[str, Any], at: Key, source: str, folder: Path
    ) -> None:
        for name, value in tables.items():
            key = (*at, name)
            self._sources[key] = source
            if isinstance(value, dict):
                within = target.setdefault(name, {})
                if isinstance(within, dict):
                    self._merge(within, value, key, source, folder)
                    continue
            if isinstance(value, list) and value and isinstance(value[0], dict):
                self._append(target, name, value, key, source, folder)
                continue
            target[name] = self._path(key, value, folder)

    def _append(
        self,
        target: dict[str, Any],
        name: str,
        tables: list[Any],
        at: Key,
        source: str,
        folder: Path,
    ) -> None:
        """Tables of an array go behind those that are there."""
        there = target.setdefault(name, [])
        if not isinstance(there, list):
            target[name] = there = []
        for table in tables:
            key = (*at, len(there))
            self._sources[key] = source
            if not isinstance(table, dict):
                there.append(table)
                continue
            there.append({})
            self._merge(there[-1], table, key, source, folder)

    def _set(self, name: str, text: str) -> None:
        """One variable of the environment."""
        levels = name.removeprefix(_PREFIX).lower().split("__")
        value: Any = text
        if text.lstrip().startswith(("[", "{")):
            try:
                value = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError as broken:
                self.problems.append(f"{name}: is not TOML: {broken}")
                return
        target: Any = self.tables
        key: Key = ()
        for depth, level in enumerate(levels):
            last = depth == len(levels) - 1
            if isinstance(target, list) and level.isdecimal() and int(level) < len(target):
                index: str | int = int(level)
            elif isinstance(target, dict) and level:
                index = level
            else:
                self.problems.append(
                    f"{name}: there is no {_dotted((*key, level))}; HOLDFAST_SECTION__KEY, or "
                    "HOLDFAST_SECTION__0__KEY for the first table of several, would be right"
                )
                return
            key = (*key, index)
            self._sources[key] = name if last else self._sources.get(key, name)
            if last:
                target[index] = self._path(key, value, Path.cwd())
            elif isinstance(target, list):
                target = target[int(index)]
            else:
                target = target.setdefault(index, {})

    def _path(self, key: Key, value: object, folder: Path) -> object:
        """The value, made absolute where it is a path."""
        if key[-1] not in _PATH_KEYS or not isinstance(value, str) or not value:
            return value
        kind, _, rest = value.partition(":")
        if kind == "credential":
            return self._credential(key, rest)
        if kind == "package":
            return self._package(key, rest)
        return os.path.normpath(folder.absolute() / value)

    def _credential(self, key: Key, name: str) -> str:
        folder = self._environment.get("CREDENTIALS_DIRECTORY")
        if not folder or PurePosixPath(name).name != name:
            self.problems.append(
                f"{self.source(key)}: {_dotted(key)} = 'credential:{name}': the name of a "
                "credential that systemd hands over (LoadCredential=) would be right"
            )
            return name
        return str(Path(folder) / name)

    def _package(self, key: Key, text: str) -> str:
        package, _, rest = text.partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        folders = list(spec.submodule_search_locations or ()) if spec else []
        if not folders or not rest or ".." in PurePosixPath(rest).parts:
            self.problems.append(
                f"{self.source(key)}: {_dotted(key)} = 'package:{text}': "
                "package:<installed package>/<path within> would be right"
            )
            return text
        return str(Path(folders[0]) / rest)


def _state_directory(environment: Mapping[str, str]) -> Path:
    """Where systemd says; else the system's folder where we may write; else the user's."""
    if given := environment.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    nearest = _SYSTEM_STATE if _SYSTEM_STATE.exists() else _SYSTEM_STATE.parent
    if os.access(nearest, os.W_OK):
        return _SYSTEM_STATE
    home = environment.get("XDG_STATE_HOME") or (
        Path(environment.get("HOME") or Path.home()) / ".local" / "state"
    )
    return Path(home) / "holdfast"


def _secret_problems(document: _Document, settings: Settings) -> Iterator[str]:
    sections: list[tuple[Key, Section | None]] = [
        (("broker",), settings.broker),
        (("headquarters",), settings.headquarters),
        *((("uplinks", index), uplink) for index, uplink in enumerate(settings.uplinks)),
    ]
    for at, section in sections:
        for name in _SECRET_KEYS:
            path = getattr(section, name, None)
            if path is not None and (problem := _file_problem(path)):
                key = (*at, name)
                yield f"{document.source(key)}: {_dotted(key)} = {str(path)!r}: {problem}"


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


def _dotted(key: Key) -> str:
    text = ""
    for level in key:
        part = level if isinstance(level, int) or level.isidentifier() else _toml(level)
        text += f"[{part}]" if isinstance(level, int) else f".{part}"
    return text.removeprefix(".") or "the configuration"


def _section(key: Key) -> type[Section]:
    """The section that a key stands in."""
    return _SECTIONS.get(str(key[0]), Settings) if len(key) > 1 else Settings


def _name(key: Key) -> str:
    """The key's own name within its section."""
    names = [level for level in key if isinstance(level, str)]
    return names[min(1, len(names) - 1)] if names else ""


def _description(key: Key) -> str:
    field = _section(key).model_fields.get(_name(key))
    return (field and field.description) or ""


def _suggestion(key: Key) -> str:
    known = list(_section(key).model_fields)
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


def _toml(value: object) -> str:
    """A value as TOML writes it; JSON's strings and numbers are TOML's too."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)
