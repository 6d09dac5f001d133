"""The command ``clearhead check``: ``clearhead compare`` whose exit code is its verdict, for continuous integration."""

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from xml.etree import ElementTree

import typer

from clearhead.cli.analyses import analysis_function
from clearhead.cli.output import print_run

if TYPE_CHECKING:
    from clearhead.analyses.compare import Comparison
    from clearhead.runs import Run

Rule = Literal["regressed", "maybe-regressed", "not-improved"]

FailIf = Annotated[
    Rule,
    typer.Option(
        help="regressed: a loss is shown; maybe-regressed: a loss above the margin is not excluded; not-improved: no "
        "gain is shown."
    ),
]
JUnit = Annotated[Path | None, typer.Option("--junit", help="Write the outcome as a JUnit XML file.")]


def add_check(app: typer.Typer) -> None:
    """Add the command: the arguments of ``clearhead compare``, and its own."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    options = [
        inspect.Parameter("fail_if", keyword, default="regressed", annotation=FailIf),
        inspect.Parameter("junit", keyword, default=None, annotation=JUnit),
    ]
    app.command(
        "check",
        help="Compare two models and fail if the second is worse: exit code 0 or 1; 2 for errors.",
        epilog="Example: clearhead check BEFORE AFTER DATA --split test --fail-if regressed --junit check.xml",
    )(analysis_function("compare", _finish, options))


def fails(comparison: "Comparison", rule: Rule) -> bool:
    """Return whether a comparison fails a rule, from the verdict and the intervals that decide it."""
    if rule == "regressed":
        return comparison.verdict.word == "regressed"
    if rule == "not-improved":
        return comparison.verdict.word != "improved"
    judged = (comparison.differences.get(name) for name in ("worst-group accuracy", "average accuracy"))
    return any(difference is not None and not difference.low >= -comparison.margin for difference in judged)


def _finish(run: "Run", fail_if: Rule, junit: Path | None) -> None:
    """Print the comparison and the outcome, write the JUnit file, and end with exit code 1 after a failure."""
    print_run(run)
    failed = fails(run.result.comparison, fail_if)
    if junit is not None:
        from clearhead.storage import write_text

        write_text(junit, junit_xml(run, fail_if, failed))
        print(f"junit: {junit}")
    print(f"check: {'failed' if failed else 'passed'} (--fail-if {fail_if})")
    if failed:
        raise typer.Exit(1)


def junit_xml(run: "Run", rule: Rule, failed: bool) -> str:
    """Return the outcome as JUnit XML: one test case with the differences as its output."""
    from clearhead.metrics.statistics import format_interval, format_value

    result = run.result
    comparison, (before, after) = result.comparison, result.subject.models
    lines = [f"{comparison.verdict.sentence} {comparison.verdict.basis}", f"page: {run.folder / 'report.html'}"]
    lines += [
        f"{name}: {format_value(e.value, e.unit)} {format_interval(e)}, n = {e.count:,}"
        for name, e in comparison.differences.items()
    ]
    suites = ElementTree.Element("testsuites")
    counts = {"tests": "1", "failures": str(int(failed)), "errors": "0"}
    suite = ElementTree.SubElement(suites, "testsuite", {"name": "clearhead check", **counts})
    name = f"{after} compared with {before} on {result.subject.data}: {rule}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": "clearhead.check", "name": _printable(name)})
    if failed:
        failure = ElementTree.SubElement(case, "failure", {"message": _printable(lines[0])})
        failure.text = _printable("\n".join(lines))
    ElementTree.SubElement(case, "system-out").text = _printable("\n".join(lines))
    ElementTree.indent(suites)
    return ElementTree.tostring(suites, encoding="unicode", xml_declaration=True) + "\n"


def _printable(text: str) -> str:
    """Return text without the control characters that XML does not allow."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)
