"""A command for every analysis, made from the signature of its ``measure``."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from clearhead.analyses import ANALYSES
from clearhead.cli.output import print_run
from clearhead.cli.signature import Parameter, is_sequence, literals, read_signature
from clearhead.errors import ClearheadError
from clearhead.inputs import require_data, require_files, require_model
from clearhead.options import ARGUMENTS

if TYPE_CHECKING:
    from clearhead.runs import Run

_MODELS = ("model", "models", "before", "after")
_MODEL_PANEL = "Loading models"

Out = Annotated[
    Path | None, typer.Option(help="Run folder. Default: runs/, named by the command, its inputs and a digest of both.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Run again in a folder that holds a run.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, ... Default: a GPU where there is one.")]
Classes = Annotated[
    Path | None,
    typer.Option(help="File of class names, one per line, for models without.", rich_help_panel=_MODEL_PANEL),
]
Mean = Annotated[
    str | None, typer.Option(help="Mean of each channel: 0.485,0.456,0.406.", rich_help_panel=_MODEL_PANEL)
]
Std = Annotated[
    str | None,
    typer.Option(help="Standard deviation of each channel: 0.229,0.224,0.225.", rich_help_panel=_MODEL_PANEL),
]
Size = Annotated[int | None, typer.Option(help="Side of the input in pixels.", min=1, rich_help_panel=_MODEL_PANEL)]
CropPct = Annotated[
    float | None, typer.Option(help="Share of the image that the centre crop keeps.", rich_help_panel=_MODEL_PANEL)
]
_RUN_OPTIONS = {"out": (Out, None), "overwrite": (Overwrite, False), "device": (Device, None)}
_MODEL_OPTIONS = {
    "classes": (Classes, None),
    "mean": (Mean, None),
    "std": (Std, None),
    "size": (Size, None),
    "crop_pct": (CropPct, None),
}


GROUPS = {
    "layers": "Measure feature maps through the depth of a model.",
    "landscape": "Measure the loss landscape around the weights of a model.",
    "study": "Run a grid of trainings or repairs described in one file.",
}
"""Help of the first word of commands of two words."""


def add_analyses(app: typer.Typer, existing: Mapping[str, typer.Typer] | None = None) -> None:
    """Add a command for every entry of ``ANALYSES``; one of two words goes into the group of the first.

    `existing` groups, by name, are those that hold other commands too.
    """
    groups = dict(existing or {})
    for group, commands in groups.items():
        app.add_typer(commands, name=group)
    for command, module in ANALYSES.items():
        group, _, name = command.rpartition(" ")
        signature = read_signature(module)
        epilog = "\n\n".join(f"Example: {example}" for example in signature.examples)
        if group and group not in groups:
            groups[group] = typer.Typer(no_args_is_help=True, help=GROUPS.get(group, ""))
            app.add_typer(groups[group], name=group)
        parent = groups[group] if group else app
        finish, options = _FINISH.get(command, (print_run, ()))
        parent.command(name, help=signature.summary, epilog=epilog)(analysis_function(command, finish, options))


def _finish_tag(run: "Run", terminal: bool) -> None:
    print_run(run)
    if terminal:
        from clearhead.cli.tagging import tag_in_terminal

        tag_in_terminal(run)


_Terminal = Annotated[bool, typer.Option("--terminal", help="Ask for the tags here, in the terminal.")]
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
_FINISH: dict[str, tuple[Callable[..., None], Sequence[inspect.Parameter]]] = {
    "tag": (_finish_tag, [inspect.Parameter("terminal", _KEYWORD, default=False, annotation=_Terminal)])
}
"""What follows a run of a command instead of printing it, and the options of that."""


def analysis_function(
    command: str, finish: Callable[..., None], options: Sequence[inspect.Parameter] = ()
) -> Callable[..., None]:
    """Return the function that typer calls for an analysis, with the signature that it reads.

    Args:
        command: a key of ``ANALYSES``.
        finish: is called with the finished run and, by name, the values of the further options.
        options: further options.
    """
    signature = read_signature(ANALYSES[command])

    def call(**values: Any) -> None:
        arguments = {name: values[name] for name in signature.positional}
        arguments |= {p.name: parse(p, values[p.name]) for p in signature.parameters}
        _require_inputs(arguments)
        if "images" in arguments:
            arguments["images"] = _image_files(arguments["images"])
        from clearhead.runs import run

        model_options = {name: values[name] for name in _MODEL_OPTIONS if values.get(name) is not None}
        outcome = run(
            command,
            arguments,
            out=values["out"],
            overwrite=values["overwrite"],
            device=values["device"],
            model_options=_model_options(model_options),
        )
        finish(outcome, **{option.name: values[option.name] for option in options})

    parameters = [_argument(name) for name in signature.positional]
    parameters += [*(_option(parameter) for parameter in signature.parameters), *options]
    extra = dict(_RUN_OPTIONS)
    if any(name in _MODELS for name in signature.positional):
        extra |= _MODEL_OPTIONS
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters += [inspect.Parameter(n, keyword, default=d, annotation=a) for n, (a, d) in extra.items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    return call


def _argument(name: str) -> inspect.Parameter:
    several = {"models": list[str], "images": list[Path]}
    paths = ("run", "plan", "before_run", "after_run", "table")
    base: Any = several.get(name, Path if name in paths else str)
    metavar = f"{name.upper().removesuffix('S')}..." if name in several else name.upper()
    annotation = Annotated[base, typer.Argument(metavar=metavar, help=ARGUMENTS[name], show_default=False)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation)


def _option(parameter: Parameter) -> inspect.Parameter:
    option, base = parameter.option, parameter.type
    flag = option.name or f"--{parameter.name.replace('_', '-')}"
    info: dict[str, Any] = {"help": option.help, "min": option.min, "max": option.max}
    info |= {
        "rich_help_panel": option.panel or None,
        "show_default": parameter.default is not None and parameter.default is not False,
    }
    if _is_bool(base):
        flags = [flag if parameter.default is not True else f"{flag}/--no-{flag.removeprefix('--')}"]
        return _parameter(parameter, bool, typer.Option(*flags, **info))
    if is_sequence(base, str) or is_sequence(base, int):
        default = parameter.default
        text = ",".join(map(str, default)) if isinstance(default, list | tuple) else default
        return _parameter(parameter, str | None, typer.Option(flag, **info), text or None)
    return _parameter(parameter, base, typer.Option(flag, **info))


_SAME = object()


def _parameter(parameter: Parameter, base: Any, option: Any, default: Any = _SAME) -> inspect.Parameter:
    value = parameter.default if default is _SAME else default
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(parameter.name, keyword, default=value, annotation=Annotated[base, option])


def _is_bool(annotation: Any) -> bool:
    return annotation is bool or (get_origin(annotation) in (Union, types.UnionType) and bool in get_args(annotation))


def parse(parameter: Parameter, value: Any) -> Any:
    """Return an option's value as ``measure`` takes it. Raises ClearheadError for text that is no list of its items."""
    if value is None:
        return parameter.default
    if not isinstance(value, str):
        return value
    if value in literals(parameter.type) or get_origin(parameter.type) is Literal:
        return value
    if is_sequence(parameter.type, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if is_sequence(parameter.type, int):
        try:
            return [int(part) for part in value.split(",")]
        except ValueError:
            words = [*literals(parameter.type), "comma-separated whole numbers, as in 0,5,11"]
            raise ClearheadError(
                f"--{parameter.name.replace('_', '-')}: got {value!r}; give {' or '.join(words)}"
            ) from None
    return value


def _require_inputs(arguments: dict[str, Any]) -> None:
    """Find mistakes in names and paths before anything heavy is imported."""
    for name in _MODELS:
        value = arguments.get(name) or []
        for model in [value] if isinstance(value, str) else value:
            require_model(model)
    if arguments.get("data"):
        require_data(arguments["data"])
    for name, value in arguments.items():
        paths = [value] if isinstance(value, Path) else value
        if isinstance(paths, list | tuple) and all(isinstance(path, Path) for path in paths):
            require_files(name, paths)


def _image_files(paths: list[Path]) -> list[Path]:
    """Return the images named, and those in the folders named and in their class folders."""
    from clearhead.data.folder import image_files

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
            files += [file for folder in folders for file in image_files(folder)]
        else:
            files.append(path)
    if not files:
        raise ClearheadError(f"images: no images in {', '.join(map(str, paths))}")
    return files


def _model_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``load_model``."""
    named = dict(options)
    for name in ("mean", "std"):
        if name in named:
            try:
                named[name] = tuple(float(part) for part in named[name].split(","))
            except ValueError:
                raise ClearheadError(f"--{name}: got {named[name]!r}; give three numbers, as in 0.5,0.5,0.5") from None
    if "size" in named:
        named["image_size"] = named.pop("size")
    return named
