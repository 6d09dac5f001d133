"""What the plans of studies have in common: they are YAML files, checked by pydantic."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from clearhead.errors import ClearheadError


class StudyError(ClearheadError):
    """A study that cannot be run; the message names the entry of the plan."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Name = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
"""A name that can be part of a file name."""

Listed = BeforeValidator(_as_list)
"""Allows a single value for a list."""

Counts = Annotated[list[Annotated[int, Field(ge=1)]], Listed, Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Listed, Field(min_length=1)]

P = TypeVar("P", bound=BaseModel)


def read_yaml(file: Path, plan_type: type[P]) -> P:
    """Read a plan. Raises StudyError for a file that cannot be read, and for the first mistake in it."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"plan: {file} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"plan: {file} holds a {type(content).__name__}; a plan is a table of names and values")
    try:
        return plan_type.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(f"plan: {file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def slug(name: str) -> str:
    """Return a name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name.lower())
