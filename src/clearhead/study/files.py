"""Plans are YAML files that pydantic checks; what they have in common."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from clearhead.errors import ClearheadError


class StudyError(ClearheadError):
    """A plan that cannot be run; the message says what is wrong in the file."""


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Name = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]
"""Of a file."""

Listed = BeforeValidator(_listed)
"""A list may be a single value."""

Counts = Annotated[list[Annotated[int, Field(ge=1)]], Listed, Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Listed, Field(min_length=1)]

P = TypeVar("P", bound=BaseModel)


def read_yaml(file: Path, kind: type[P]) -> P:
    """A plan of a kind. Raises StudyError for a file that cannot be read, and for the first thing wrong in it."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{file}: a plan is a table of names and values, got {type(content).__name__}")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise StudyError(f"{file}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error


def slug(name: str) -> str:
    """A name as a part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name.lower())
