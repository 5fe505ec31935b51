"""Hints for arguments that do not fit a task."""

import inspect
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError


def signature_of(run: Any) -> inspect.Signature:
    """Return a task's signature, its annotations resolved where possible."""
    try:
        return inspect.signature(run, eval_str=True)
    except NameError:  # an annotation that only a type checker can resolve
        return inspect.signature(run)


def problem(annotation: Any, value: Any) -> str | None:
    """Return why a value is not of the type, or None.

    Values are JSON, so they are compared as JSON: a list fits a tuple, a text does not fit a list. A type of the task's
    own can only be judged by the task.
    """
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return str(error.errors(include_url=False, include_input=False)[0]["msg"])
    except (PydanticUserError, PydanticUndefinedAnnotation):
        return None
    return None


def fits(annotation: Any, value: Any) -> bool:
    """Return whether a value is of the type."""
    return problem(annotation, value) is None


def hint(signature: inspect.Signature, args: list[Any]) -> str:
    """Return a hint if the list of arguments is, as a whole, what the first parameter takes; else an empty text."""
    first = next(iter(signature.parameters.values()), None)
    if not args or first is None or first.kind in (first.VAR_POSITIONAL, first.VAR_KEYWORD, first.KEYWORD_ONLY):
        return ""
    if first.annotation is first.empty or isinstance(first.annotation, str) or first.annotation is Any:
        return ""
    if fits(first.annotation, args[0]) or not fits(first.annotation, args):
        return ""
    shown = json.dumps(args, ensure_ascii=False)
    shown = shown if len(shown) <= 200 else "[…]"
    return f" The list stands for all arguments, and {first.name} is a list itself: did you mean [{shown}]?"
