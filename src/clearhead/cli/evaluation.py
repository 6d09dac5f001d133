"""explain, sis, audit, compare, heads, evaluate, report: what does a model rely on, and did a repair help?"""

from pathlib import Path
from typing import Annotated

import typer


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option(help="Title of the page.")] = "",
) -> None:
    """Put several finished runs on one page."""
    from clearhead import console, workflows

    workflows.run_report(runs, out, title)
    console.out.print(f"page: {out}", markup=False)
