"""The signature of an analysis, read from its source: help and mistakes in arguments need no torch.

``measure`` of a module is a plain function; its keyword arguments are annotated with aliases of ``clearhead.options``
or with ``Annotated[type, Option(...)]``. What it takes from the runner (``FROM_RUNNER``) is no option.
"""

import ast
import collections.abc
import importlib.util
import pathlib
import types
import typing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from clearhead import options
from clearhead.options import Option

FROM_RUNNER = ("progress", "state", "folder", "device")

_NAMES = {
    **{name: getattr(typing, name) for name in ("Annotated", "Any", "Literal")},
    **{"Sequence": collections.abc.Sequence, "Mapping": collections.abc.Mapping, "Path": pathlib.Path},
    **vars(options),
}


@dataclass(frozen=True)
class Parameter:
    """A keyword argument of an analysis: its Python type, its option and its default."""

    name: str
    type: Any
    option: Option
    default: Any


@dataclass(frozen=True)
class Signature:
    """What the command line needs to know of an analysis.

    Attributes:
        summary: first line of the docstring.
        examples: the docstring's lines that start with ``$ clearhead``.
        positional: names of the positional arguments.
        parameters: the keyword arguments, without those that the runner gives.
    """

    summary: str
    examples: list[str]
    positional: list[str]
    parameters: list[Parameter]


@cache
def read_signature(module: str, function: str = "measure") -> Signature:
    """Read the signature of a function of a module without importing the module."""
    source = _file(module).read_text(encoding="utf-8")
    body = ast.parse(source).body
    node = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == function)
    doc = ast.get_docstring(node) or ""
    examples = [line.strip().removeprefix("$ ") for line in doc.splitlines() if line.strip().startswith("$ clearhead")]
    parameters = []
    for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
        if argument.arg not in FROM_RUNNER:
            annotation = _evaluate(argument.annotation)
            option = next((o for o in getattr(annotation, "__metadata__", ()) if isinstance(o, Option)), None)
            if option is None:
                raise TypeError(f"{module}.{function}: {argument.arg} needs an annotation with an Option")
            parameters.append(Parameter(argument.arg, get_args(annotation)[0], option, _evaluate(default)))
    positional = [argument.arg for argument in node.args.args]
    return Signature(doc.partition("\n")[0], examples, positional, parameters)


def _file(module: str) -> Path:
    """Return the path of a module's source; its packages are not imported either."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no module {module}")
    if not rest:
        return Path(spec.origin)
    path = Path(spec.origin).parent.joinpath(*rest)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _evaluate(node: ast.expr | None) -> Any:
    expression = ast.Expression(node if node is not None else ast.Constant(None))
    return eval(compile(ast.fix_missing_locations(expression), "<signature>", "eval"), dict(_NAMES))


def is_sequence(annotation: Any, item: type) -> bool:
    """Whether a type is a sequence of such items, or such a sequence or something else."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return any(is_sequence(part, item) for part in get_args(annotation))
    return get_origin(annotation) in (list, tuple, collections.abc.Sequence) and get_args(annotation)[0] is item


def literals(annotation: Any) -> list[str]:
    """Return the literal values a type allows."""
    if get_origin(annotation) is typing.Literal:
        return [str(value) for value in get_args(annotation)]
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return [value for part in get_args(annotation) for value in literals(part)]
    return []
