"""Configuration files: YAML read strictly and bounded, and a configuration written as documented YAML."""

import io
import json
import textwrap
from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from deftly.config.fields import field_docs
from deftly.errors import DeftlyError

MAX_BYTES = 1_000_000
"""Of a configuration file."""
MAX_DEPTH = 20
"""Of the sections and lists in it."""
WIDTH = 100
"""Of comments that are written."""


def read_mapping(data: bytes, what: str) -> dict[str, Any]:
    """The mapping that YAML text holds. `what` names it in messages, such as `--config 'my.yaml'`.

    Raises DeftlyError, one line, for what is no mapping or no YAML, for a key written twice, and for text too long, too
    deep, or with aliases, by which a short file can stand for an endless one.
    """
    import yaml

    if len(data) > MAX_BYTES:
        raise DeftlyError(
            f"{what} has {len(data)} bytes, but a configuration has at most {MAX_BYTES}"
        )
    try:
        _check_structure(data, what)
        tree = _loader(data).get_single_data()
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DeftlyError(f"{what}{line}: {error.problem or 'not valid YAML'}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DeftlyError(
            f"{what} is not valid YAML: {' '.join(str(error).split())[:200]}"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise DeftlyError(f"{what} must be a YAML mapping such as 'env: {{num_envs: 64}}'")
    return tree


def _check_structure(data: bytes, what: str) -> None:
    import yaml

    depth = 0
    for event in yaml.parse(io.BytesIO(data), Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise DeftlyError(
                f"{what}, line {event.start_mark.line + 1}: aliases (*{event.anchor}) are not supported"
            )
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise DeftlyError(f"{what} is nested more than {MAX_DEPTH} deep")


def _loader(data: bytes) -> Any:
    """PyYAML's safe loader, which here refuses a key that is written twice in a mapping."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(
            self, node: yaml.MappingNode, deep: bool = False
        ) -> dict[Hashable, Any]:
            seen = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key} is no word", problem_mark=key_node.start_mark
                    )
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"'{key}' is written twice", problem_mark=key_node.start_mark
                    )
                seen.add(key)
            return super().construct_mapping(node, deep)

    return Loader(data)


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
