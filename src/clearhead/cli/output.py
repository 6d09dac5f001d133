"""What commands print: log lines on standard error, the page's headline and first table on standard output."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clearhead.progress import is_shown_by_bar, log

if TYPE_CHECKING:
    from clearhead.data.dataset import DataIssue
    from clearhead.runs import Run


def log_to_stderr() -> None:
    """Write log lines to standard error; of several processes only the first one does."""
    if int(os.environ.get("RANK", "0")) > 0 or log.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: not is_shown_by_bar(record))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


def print_error(message: str) -> None:
    """Print a message for the user; of several processes each one does, because any may be the one that fails."""
    text = f"\033[1;31mError:\033[0m {message}" if sys.stderr.isatty() else f"Error: {message}"
    print(text, file=sys.stderr)


def print_run(run: "Run") -> None:
    """Print what was found and where the rest is."""
    if int(os.environ.get("RANK", "0")) > 0:
        return
    from clearhead.report.terminal import print_page

    log_issues(run.result.subject.issues)
    print_page(run.page())
    if (run.folder / "checkpoint").is_dir():
        print(f"checkpoint: {run.folder / 'checkpoint'}")
    print(f"page: {run.folder / 'report.html'}")
    if (run.folder / "tagging.html").is_file():
        print(f"tag in a browser: {run.folder / 'tagging.html'}")
        print(f"or in a spreadsheet: {run.folder / 'tags.csv'}")


def log_issues(issues: Sequence["DataIssue"]) -> None:
    """Log how many problems of each category the data has, with an example of each."""
    counts = Counter((issue.category, issue.action) for issue in issues)
    for (category, action), count in counts.items():
        example = next(issue for issue in issues if (issue.category, issue.action) == (category, action))
        log.info("data: %s %s (%s), such as %s: %s", f"{count:,}", category, action, example.file, example.detail)
