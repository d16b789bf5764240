"""Tables of a configuration, merged from several sources, that remember where each key came from.

How sources are found and which wins, and what paths mean, stands in ``nodes.config``.
"""

import importlib.util
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from schemas.limits import MIB

__all__ = ["Document", "Key", "dotted", "toml"]

_PREFIX: Final = "HOLDFAST_"
_FILE_BYTES_MAX: Final = MIB
_FILES_MAX: Final = 100
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

Key = tuple[str | int, ...]
"""Where a value stands: names of keys, and numbers of tables."""


class Document:
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
        gateway = self.tables.get("gateway")
        if isinstance(gateway, dict):
            held = _state_directory(self._environment) / "gateway"
            gateway.setdefault("state_directory", str(held))
        folder = self._environment.get("CREDENTIALS_DIRECTORY")
        if folder:
            for credential, table in self._connections():
                file = Path(folder) / credential
                if "password_file" not in table and "username" in table and file.is_file():
                    table["password_file"] = str(file)

    def _connections(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The tables that may have a password, and the names of their credentials."""
        for section in ("broker", "gateway", "headquarters"):
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
                    f"{name}: there is no {dotted((*key, level))}; HOLDFAST_SECTION__KEY, or "
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
                f"{self.source(key)}: {dotted(key)} = 'credential:{name}': the name of a "
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
                f"{self.source(key)}: {dotted(key)} = 'package:{text}': "
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


def dotted(key: Key) -> str:
    """A key as a person writes it: ``decisions[0].qos``."""
    text = ""
    for level in key:
        part = level if isinstance(level, int) or level.isidentifier() else toml(level)
        text += f"[{part}]" if isinstance(level, int) else f".{part}"
    return text.removeprefix(".") or "the configuration"


def toml(value: object) -> str:
    """A value as TOML writes it; JSON's strings and numbers are TOML's too."""
    if isinstance(value, dict):
        inside = ", ".join(f"{_toml_key(key)} = {toml(item)}" for key, item in value.items())
        return f"{{ {inside} }}" if inside else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False)


def _toml_key(key: str) -> str:
    bare = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if bare else json.dumps(key, ensure_ascii=False)
