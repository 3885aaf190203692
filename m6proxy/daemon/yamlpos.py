"""YAML that remembers where things stand: values, and the line of each key and item.

The safe loader only, and less of YAML than it allows: no aliases, no nesting deeper than a
configuration can need, text keys only. What is refused is a fault with a line, not an
exception, so that one reading finds all faults.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

KeyPath: TypeAlias = tuple[str | int, ...]
"""The way to a value: keys of mappings and indexes (from 0) of lists."""

DEPTH_LIMIT = 16


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with the document."""

    line: int
    """From 1."""
    key: str
    """Dotted, empty for the document itself."""
    what: str


@dataclass(slots=True)
class Document:
    """What a YAML text holds and where."""

    value: object = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def line_of(self, path: KeyPath) -> int:
        """The line (from 1) of a key or item, or of the nearest thing around it."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return self.lines[path[:length]]
        return 1

    def add(self, path: KeyPath, what: str) -> None:
        """Record one more fault, found by whoever reads the value."""
        self.faults.append(Fault(self.line_of(path), dotted(path), what))


def dotted(path: KeyPath) -> str:
    """Write a path for people: ``uplinks.isp1.prefix``, ``lan[0]``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if part.isprintable() else repr(part)[1:-1]
            text += f".{word}" if text else word
    return text


def parse_yaml(text: str) -> Document:
    """Parse one YAML document. Never raises: see ``faults``; then ``value`` may be None."""
    document = Document()
    loader = yaml.SafeLoader("")
    try:
        if not _acceptable(text, document):
            return document
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is not None:
            document.value = _construct(loader, node, (), document)
    except yaml.MarkedYAMLError as error:
        line = _line(error.problem_mark or error.context_mark)
        document.faults.append(Fault(line, "", _syntax(error.problem or str(error))))
    except yaml.YAMLError as error:  # an octet that YAML forbids has no mark
        document.faults.append(Fault(1, "", _syntax(str(error))))
    finally:
        loader.dispose()
    return document


def _line(mark: Any) -> int:
    return mark.line + 1 if mark is not None else 1


def _syntax(problem: str) -> str:
    return f"this is not YAML ({' '.join(problem.split())}); check indentation, braces and quotes"


def _acceptable(text: str, document: Document) -> bool:
    """Look at the events before any tree is built: refuse what could recurse or explode."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        fault = None
        if isinstance(event, yaml.AliasEvent):
            fault = "aliases (*name) are not accepted; write the value out"
        elif (
            isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent)
            and event.tag is not None
        ):
            fault = f"tags ({event.tag}) are not accepted; write the plain value"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEPTH_LIMIT:
                fault = f"nested deeper than {DEPTH_LIMIT} levels; check the brackets"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if fault is not None:
            document.faults.append(Fault(_line(event.start_mark), "", fault))
            return False
    return True


def _construct(
    loader: yaml.SafeLoader, node: yaml.Node, path: KeyPath, document: Document
) -> object:
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, document)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.lines[(*path, index)] = _line(item.start_mark)
            items.append(_construct(loader, item, (*path, index), document))
        return items
    try:
        value: object = loader.construct_object(node, deep=True)
    except ValueError:  # such as the 45th of a month, where YAML sees a date
        return str(node.value)
    return value


def _mapping(
    loader: yaml.SafeLoader, node: yaml.MappingNode, path: KeyPath, document: Document
) -> dict[str, object]:
    values: dict[str, object] = {}
    for key_node, value_node in node.value:
        line = _line(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            fault = "a key must be plain text; write `key: value`"
            document.faults.append(Fault(line, dotted(path), fault))
            continue
        key = str(key_node.value)
        if key in values:
            first = document.lines[(*path, key)]
            fault = f"stands here and in line {first}; keep one of them"
            document.faults.append(Fault(line, dotted((*path, key)), fault))
            continue
        document.lines[(*path, key)] = line
        values[key] = _construct(loader, value_node, (*path, key), document)
    return values
