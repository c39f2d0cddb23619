"""JSON schemas as answers follow them: what may be in one, and what it means in full.

An answer becomes a column, so a schema has to say what is in each place. References are put where
they are used, properties that are not named are not written, and whole numbers have 18 digits at
most.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from phi3_batch.errors import InvalidParameterError

# What says something of a value to a reader alone.
_NOTES = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$comment", "$schema", "$id"),
}
# The most that llguidance bounds numbers by, and below 64 bits.
_MOST = 10**18 - 1


def read_schema(given: str | Mapping[str, Any] | type) -> dict[str, Any]:
    """A schema in full.

    Args:
        given: path of a JSON file, the schema itself, or a dataclass or model of pydantic.

    Raises:
        InvalidParameterError: it cannot be read, is not of an object, or has what no column can.
    """
    if isinstance(given, str):
        schema = _read_file(given)
    elif isinstance(given, type):
        if not dataclasses.is_dataclass(given) and not issubclass(given, pydantic.BaseModel):
            raise InvalidParameterError(
                f"json_schema: {given.__name__} is neither a dataclass nor a model of pydantic"
            )
        schema = pydantic.TypeAdapter(given).json_schema()
    else:
        schema = dict(given)
    full = _in_full(schema, schema, "answer", ())
    if full.get("type") != "object" or not full.get("properties"):
        raise InvalidParameterError(
            "json_schema: the whole answer must be an object with properties"
        )
    return full


def _read_file(path: str) -> dict[str, Any]:
    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidParameterError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidParameterError(f"{path} is no JSON: {_first_words(error)}") from error
    if not isinstance(schema, dict):
        raise InvalidParameterError(f"{path} is no JSON schema, which is an object")
    return schema


def _first_words(error: Exception) -> str:
    return "it is nested too deep" if isinstance(error, RecursionError) else str(error)


def _in_full(
    node: object, root: Mapping[str, Any], where: str, within: tuple[str, ...]
) -> dict[str, Any]:
    """A part of a schema, with what it refers to in its place.

    Args:
        node: the part.
        root: the schema.
        where: the part is, for messages.
        within: references that have led here.
    """
    if not isinstance(node, dict):
        raise InvalidParameterError(f"json_schema: {where} may be anything: say what it is")
    found = {name: value for name, value in node.items() if name not in {*_NOTES, "$defs"}}
    if "$ref" in found:
        name = found.pop("$ref")
        if name in within:
            raise InvalidParameterError(
                f"json_schema: {where} contains itself ({name}), and no column does"
            )
        return _in_full({**_follow(root, name, where), **found}, root, where, (*within, name))
    if isinstance(found.get("allOf"), list) and len(found["allOf"]) == 1:
        [only] = found.pop("allOf")
        return _in_full({**only, **found}, root, where, within)
    for name in ("anyOf", "oneOf"):
        if isinstance(found.get(name), list):
            branches = [_in_full(each, root, where, within) for each in found.pop(name)]
            return {**found, "anyOf": branches}
    kind = found.get("type")
    if isinstance(kind, list):
        branches = [_in_full({**found, "type": each}, root, where, within) for each in kind]
        return {"anyOf": branches}
    if "enum" in found or "const" in found:
        return found
    if kind == "integer":
        return {"minimum": -_MOST, "maximum": _MOST, **found}
    if kind == "array":
        return {**found, "items": _in_full(found.get("items"), root, f"{where}[]", within)}
    if kind == "object":
        return {**found, **_properties(found, root, where, within)}
    if kind not in ("string", "number", "boolean", "null"):
        raise InvalidParameterError(f"json_schema: {where} may be anything: say what it is")
    return found


def _properties(
    found: Mapping[str, Any], root: Mapping[str, Any], where: str, within: tuple[str, ...]
) -> dict[str, Any]:
    others = found.get("additionalProperties")
    properties = found.get("properties") or {}
    if not properties and isinstance(others, dict):
        return {"additionalProperties": _in_full(others, root, f"{where}.*", within)}
    if isinstance(others, dict) or "patternProperties" in found:
        raise InvalidParameterError(
            f"json_schema: {where} has properties of any name beside those that are named"
        )
    if not properties:
        raise InvalidParameterError(f"json_schema: {where} is an object without properties")
    names = [name.lower() for name in properties]
    for name in properties:
        if names.count(name.lower()) > 1:
            raise InvalidParameterError(
                f"json_schema: {where} has two properties {name!r}, but for upper and lower case"
            )
    return {
        "properties": {
            name: _in_full(each, root, f"{where}.{name}", within)
            for name, each in properties.items()
        },
        "additionalProperties": False,
    }


def _follow(root: Mapping[str, Any], name: object, where: str) -> dict[str, Any]:
    node: Any = root
    for part in str(name).removeprefix("#").strip("/").split("/"):
        part = part.replace("~1", "/").replace("~0", "~")
        if part:
            node = node.get(part) if isinstance(node, dict) else None
    if not str(name).startswith("#") or not isinstance(node, dict):
        raise InvalidParameterError(f"json_schema: {where} refers to {name}, which is not there")
    return node
