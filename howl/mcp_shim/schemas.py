"""JSON schemas of the tools' arguments and answers, as short as they can be."""

import json
from collections.abc import Callable, Collection
from typing import Any

Schema = dict[str, Any]

#: Most characters of a text that is read as a number.
NUMBER_LIMIT = 40


def brief(schema: Schema, *, answers: bool = False) -> Schema:
    """Strip a schema of what says nothing: titles that repeat names, null as a default, alternatives to null.

    With `answers`, defaults and null as an alternative to one type are dropped too: answers leave out what is null.
    """
    shown = {name: item for name, item in schema.items() if name != "title" and (name, item) != ("default", None)}
    for name in ("properties", "$defs"):
        if name in shown:
            shown[name] = {key: brief(item, answers=answers) for key, item in shown[name].items()}
    if isinstance(shown.get("items"), dict):
        shown["items"] = brief(shown["items"], answers=answers)
    if answers:
        shown.pop("default", None)
    if "anyOf" in shown:
        return _united([brief(one, answers=answers) for one in shown.pop("anyOf")], shown, answers=answers)
    return shown


def only(schema: Schema, names: Collection[str]) -> Schema:
    """Return an answer's schema with these properties only; the answer may have others."""
    shown = {name: schema["properties"][name] for name in names}
    return {"type": "object", "properties": shown, "required": [name for name in schema["required"] if name in names]}


def unquoted(schema: Schema) -> Callable[[Any], Any]:
    """Return a function that reads a call's numbers and booleans from texts, as which some clients send them."""
    kinds = {name: _kinds(item) for name, item in schema["properties"].items()}

    def take(arguments: Any) -> Any:
        if not isinstance(arguments, dict):
            return arguments
        return {name: _unquoted(value, kinds.get(name, set())) for name, value in arguments.items()}

    return take


def _unquoted(value: Any, kinds: set[str]) -> Any:
    """Return the number or boolean that a text holds, if the schema wants it; a whole number may be written as 20.0."""
    if isinstance(value, str) and "string" not in kinds and len(value) <= NUMBER_LIMIT:
        try:
            found = json.loads(value.strip().lower())
        except ValueError:
            return value
        wanted = {"boolean"} if isinstance(found, bool) else {"integer", "number"}
        fits = isinstance(found, bool | int | float) and wanted & kinds
        return _unquoted(found, kinds) if fits else value
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return int(value)
    return value


def _kinds(schema: Schema) -> set[str]:
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    return found.union(*(_kinds(one) for one in schema.get("anyOf", [])))


def _united(alternatives: list[Schema], rest: Schema, *, answers: bool) -> Schema:
    """Unite two alternatives, one of them null, as `{"type": ["string", "null"]}`."""
    others = [one for one in alternatives if one != {"type": "null"}]
    if answers and len(others) == 1:
        return {**others[0], **rest}
    if len(others) != 1 or len(alternatives) != 2 or not isinstance(others[0].get("type"), str):
        return {"anyOf": alternatives, **rest}
    made = {**others[0], "type": [others[0]["type"], "null"], **rest}
    return {**made, "enum": [*made["enum"], None]} if "enum" in made else made
