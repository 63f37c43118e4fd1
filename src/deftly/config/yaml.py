"""Configuration files: the mapping that one holds, and a configuration written as documented YAML."""

import json
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from deftly.config.fields import field_docs
from deftly.errors import DeftlyError
from deftly.files import read_yaml

MAX_BYTES = 1_000_000
"""Of a configuration file."""
WIDTH = 100
"""Of comments that are written."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a configuration file holds; nothing of an empty file.

    Raises DeftlyError, one line, for what `files.read_yaml` refuses, for what is no mapping, and for keys that are no
    words.
    """
    tree = read_yaml(path, "a configuration", MAX_BYTES, advice="--config needs a YAML file")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise DeftlyError(f"{path} must be a YAML mapping such as 'env: {{num_envs: 64}}'")
    for key in _keys(tree):
        if not isinstance(key, str):
            raise DeftlyError(f"{path}: the key {key} is no word, and settings are named by words")
    return tree


def _keys(tree: dict[Any, Any]) -> Iterator[Any]:
    for key, value in tree.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def to_yaml(config: Any) -> str:
    """A configuration as documented YAML that `--config` reads back into an equal one."""
    docs = field_docs(type(config))
    parts = []
    for item in fields(config):
        value = getattr(config, item.name)
        parts += [f"# {line}\n" for line in textwrap.wrap(docs.get(item.name, ""), WIDTH)]
        if not is_dataclass(value):
            parts.append(f"{item.name}: {_flow(value)}\n")
        elif fields(value):
            parts.append(f"{item.name}:\n{textwrap.indent(to_yaml(value), '  ')}")
        else:
            parts.append(f"{item.name}: {{}}\n")
    return "".join(parts)


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    import yaml

    plain = json.loads(json.dumps([value], default=_text))  # tuples become lists
    return yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=10**6).strip()[
        1:-1
    ]


def _text(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as YAML")
