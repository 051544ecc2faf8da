"""Find, read and expand a configuration file; the only module that knows YAML."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from pyrep.config.build import build_config, with_entry
from pyrep.config.model import Config
from pyrep.config.paths import expand_path
from pyrep.config.values import Block, Items, Node, Notes, Scalar
from pyrep.errors import ConfigError

__all__ = ["DEFAULT_PATHS", "add_entry", "config_path", "expand_variables", "from_args", "load"]
__all__ += ["loads"]

DEFAULT_PATHS = (Path("/etc/pyrep.yml"), Path("/etc/litestream.yml"))
_VARIABLES = ("PYREP_CONFIG", "LITESTREAM_CONFIG")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Go's os.Expand: a special character or digit is a name of its own, bad syntax is dropped.
_VARIABLE = re.compile(
    r"\$(?:\{(?P<braced>[^}]*)\}|(?P<broken>\{)|(?P<name>[*#$@!?0-9-]|[A-Za-z_][A-Za-z0-9_]*))"
)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_MERGE = "tag:yaml.org,2002:merge"
_WORDS = ("null", "bool", "int", "float", "str", "timestamp", "value", "seq", "map", "merge")
_TAGS = frozenset(f"tag:yaml.org,2002:{word}" for word in _WORDS)
_MAX_DEPTH = 50


def config_path(path: Path | str | None, environ: Mapping[str, str]) -> Path:
    """Return the file to read: the given one, ``$PYREP_CONFIG``, ``$LITESTREAM_CONFIG``, /etc."""
    given = str(path or "") or next(filter(None, map(environ.get, _VARIABLES)), None)
    if given:
        try:
            return Path(expand_path(given))
        except ValueError as exc:
            raise ConfigError(str(exc), field="config", value=given) from None
    return next((found for found in DEFAULT_PATHS if found.is_file()), DEFAULT_PATHS[0])


def load(
    path: Path | str | None = None,
    *,
    expand_env: bool = True,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Read and check a configuration file.

    :raises ConfigError: the file is missing or unreadable, or something in it is wrong
    """
    environ = os.environ if environ is None else environ
    source = config_path(path, environ)
    try:
        data = source.read_bytes()
    except FileNotFoundError:
        hint = "Name it with -config PATH, or set PYREP_CONFIG."
        raise ConfigError(f"config file not found: {source}", hint=hint) from None
    except OSError as exc:
        raise ConfigError(f"cannot read config file {source}: {exc.strerror}") from exc
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        message = f"cannot read config file {source}: byte {exc.start + 1} is not UTF-8"
        raise ConfigError(message) from None
    return loads(text, source=source, expand_env=expand_env, environ=environ)


def loads(
    text: str,
    *,
    source: Path | None = None,
    expand_env: bool = True,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Check the text of a configuration file and return what it means.

    :raises ConfigError: it is no YAML, or something in it is wrong
    """
    environ = os.environ if environ is None else environ
    notes = Notes()
    if expand_env:
        text = expand_variables(text, environ, notes)
    root = _parse(text, source)
    return build_config(root, notes, source=source, state_dir=_state_dir(environ))


def add_entry(config: Config, text: str) -> Config:
    """Return a configuration with one item of ``dbs`` more, given as YAML or JSON.

    :raises ConfigError: something in it is wrong, or it is there already
    """
    return with_entry(config, _parse(text, None), Notes())


def from_args(
    db_path: str, replica_urls: Sequence[str], *, environ: Mapping[str, str] | None = None
) -> Config:
    """Return the configuration of ``replicate DB_PATH REPLICA_URL``.

    :raises ConfigError: not exactly one URL, or one that cannot be used
    """
    for text in (db_path, *replica_urls):
        if text.startswith("-"):
            raise ConfigError(
                f'flag "{text}" must be positioned before DB_PATH and REPLICA_URL arguments'
            )
    if not replica_urls:
        raise ConfigError(f"must specify at least one replica URL for {db_path}")
    urls = Items(tuple(Block({"url": Scalar(url, plain=False)}) for url in replica_urls))
    database = Block({"path": Scalar(db_path, plain=False), "replicas": urls})
    root = Block({"dbs": Items((database,))})
    environ = os.environ if environ is None else environ
    return build_config(root, Notes(), source=None, state_dir=_state_dir(environ))


def _state_dir(environ: Mapping[str, str]) -> Path:
    """Return the default of ``state-dir``; systemd may give several folders, the first counts."""
    given = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(os.path.abspath(given))
    if os.geteuid() == 0:
        return Path("/var/lib/pyrep")
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".local/state/pyrep"


def expand_variables(text: str, environ: Mapping[str, str], notes: Notes) -> str:
    """Replace ``$NAME`` and ``${NAME}`` everywhere, comments included, as Go's ``os.Expand``.

    ``PID`` is the process id.  An unset name becomes the empty text, with a warning unless
    the line is a comment.
    """

    def value(match: re.Match[str]) -> str:
        name = match["name"] if match["braced"] is None else match["braced"]
        if not name:
            return ""
        if name == "PID":
            return str(os.getpid())
        if name not in environ and not _in_comment(text, match.start()):
            notes.add("", _unset(name))
        return environ.get(name, "")

    return _VARIABLE.sub(value, text)


def _in_comment(text: str, at: int) -> bool:
    return text[text.rfind("\n", 0, at) + 1 : at].lstrip().startswith("#")


def _unset(name: str) -> str:
    if _NAME.match(name):
        return f"environment variable {name} is not set and stands for nothing"
    if len(name) == 1:
        return f"${name} in the configuration stands for nothing; -no-expand-env keeps dollar signs"
    return f"${{{name}}} stands for nothing, only plain names can be expanded"


def _parse(text: str, source: Path | None) -> Node:
    name = source or "configuration"
    try:
        root = yaml.compose(text, Loader=_LOADER)
        return _Converter().node(root) if root is not None else Block({})
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = " ".join(filter(None, (exc.context, exc.problem)))
        raise ConfigError(f"cannot parse {name}: {where}{problem}") from None
    except yaml.YAMLError as exc:
        raise ConfigError(f"cannot parse {name}: {str(exc).splitlines()[0]}") from None
    except UnicodeEncodeError:
        message = f"cannot parse {name}: an environment variable in it is not UTF-8"
        raise ConfigError(message) from None
    except RecursionError:
        raise ConfigError(f"cannot parse {name}: nested too deeply") from None


class _Converter:
    """Turn YAML nodes into ours: scalars keep their text, a key may appear only once."""

    def __init__(self) -> None:
        self._done: dict[yaml.Node, Node] = {}
        self._depth = 0

    def node(self, node: yaml.Node) -> Node:
        """Convert a node; what an alias repeats is converted once and shared."""
        if node not in self._done:
            self._depth += 1
            if self._depth > _MAX_DEPTH:
                message = "nested too deeply, or an alias inside what it names"
                raise yaml.MarkedYAMLError(problem=message, problem_mark=node.start_mark)
            self._done[node] = self._convert(node)
            self._depth -= 1
        return self._done[node]

    def _convert(self, node: yaml.Node) -> Node:
        line = node.start_mark.line + 1
        if node.tag not in _TAGS:
            raise yaml.MarkedYAMLError(
                problem=f"unknown tag {node.tag}", problem_mark=node.start_mark
            )
        if isinstance(node, yaml.ScalarNode):
            return Scalar(node.value, not node.style, line)
        if isinstance(node, yaml.SequenceNode):
            return Items(tuple(self.node(child) for child in node.value), line)
        return self._mapping(node, line)

    def _mapping(self, node: yaml.Node, line: int) -> Block:
        nodes: dict[str, Node] = {}
        lines: dict[str, int] = {}
        merged: list[Block] = []
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                merged += self._merged(value_node)
                continue
            key = self._key(key_node)
            if key in lines:
                problem = f"key '{key}' is given twice, first on line {lines[key]}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            nodes[key] = self.node(value_node)
            lines[key] = key_node.start_mark.line + 1
        for block in merged:
            for key, value in block.nodes.items():
                lines.setdefault(key, block.lines[key])
                nodes.setdefault(key, value)
        return Block(nodes, lines, line)

    def _key(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(problem="a key must be a text", problem_mark=node.start_mark)
        return str(node.value)

    def _merged(self, node: yaml.Node) -> list[Block]:
        """Return the mappings that ``<<`` names; the first one wins where they overlap."""
        children = node.value if isinstance(node, yaml.SequenceNode) else [node]
        blocks = [self.node(child) for child in children]
        found = [block for block in blocks if isinstance(block, Block)]
        if len(found) != len(blocks):
            raise yaml.MarkedYAMLError(problem="'<<' needs a mapping", problem_mark=node.start_mark)
        return found
