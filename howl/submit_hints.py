"""What somebody may have meant by arguments that do not fit a task."""

import inspect
import json
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUndefinedAnnotation, PydanticUserError


def signature_of(run: Any) -> inspect.Signature:
    """A task's, its annotations resolved where they can be."""
    try:
        return inspect.signature(run, eval_str=True)
    except NameError:  # an annotation that only a type checker can resolve
        return inspect.signature(run)


def problem(annotation: Any, value: Any) -> str | None:
    """Why a value is not of the type, if it is not. Values are JSON, so they are compared as JSON: a list fits a tuple,
    a text does not fit a list. Of a type of the task's own only the task can judge.
    """
    try:
        TypeAdapter(annotation).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return str(error.errors(include_url=False, include_input=False)[0]["msg"])
    except (PydanticUserError, PydanticUndefinedAnnotation):
        return None
    return None


def fits(annotation: Any, value: Any) -> bool:
    """Whether a value is of the type."""
    return problem(annotation, value) is None


def hint(signature: inspect.Signature, args: list[Any]) -> str:
    """Of arguments in a list that are, together, what the first parameter takes: ` Did you mean …?`; else nothing."""
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
