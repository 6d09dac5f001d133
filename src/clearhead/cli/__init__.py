"""The command line: each command parses its arguments, calls one function, and says what came out.

Bad input ends with exit code 2 and one message, never with a traceback.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from clearhead import __version__
from clearhead.cli.analyses import Device, add_analyses
from clearhead.cli.check import add_check
from clearhead.cli.data import data_app
from clearhead.cli.output import log_to_stderr, print_error
from clearhead.cli.plan import plan
from clearhead.cli.reproduce import reproduce_app
from clearhead.errors import ClearheadError
from clearhead.inputs import require_files

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="See what a vision transformer relies on, repair it cheaply, and prove that the repair helped.",
)
add_analyses(app, {"data": data_app})
add_check(app)
app.command(epilog="Example: clearhead plan --effect 5 --margin 2 --accuracy 85")(plan)
app.add_typer(reproduce_app, name="reproduce")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit()


@app.command(epilog="Example: clearhead demo --out clearhead-demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the demo's data, runs and page.")] = Path("clearhead-demo"),
    device: Device = None,
) -> None:
    """Audit, repair and compare a small model that ships with clearhead, on generated images; no download."""
    from clearhead.demo.run import run_demo
    from clearhead.report.terminal import print_page

    comparison, page = run_demo(out, device=device)
    print_page(comparison.page())
    print(f"page: {page}")


@app.command(epilog="Example: clearhead report runs/audit-... runs/compare-... --out report.html")
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
) -> None:
    """Put several finished runs on one page."""
    require_files("runs", runs)
    from clearhead.runs import render_report

    render_report(runs, out, title)
    print(f"page: {out}")


def main() -> None:
    """Run the command ``clearhead``."""
    log_to_stderr()
    try:
        app()
    except (ClearheadError, OSError) as error:
        print_error(str(error))
        sys.exit(2)
    except KeyboardInterrupt as interrupt:
        print_error(str(interrupt) or "stopped")
        sys.exit(130)
