"""What the page of a repair by ``--method auto`` says: the repairs that were tried, and whether one is proven."""

import math
from dataclasses import replace

from clearhead.analyses.compare import Comparison
from clearhead.analyses.next_steps import command, typed_data, typed_model
from clearhead.analyses.subject import Subject
from clearhead.data.images import DataLike
from clearhead.metrics.statistics import MIN_GROUP, Estimate, format_value
from clearhead.metrics.verdict import Verdict
from clearhead.models.source import ModelLike
from clearhead.progress import duration
from clearhead.repairs.advisor import Advice, Candidate, is_eligible
from clearhead.report.page import Cell, Row, Step, Table
from clearhead.shifts.shortcuts import table_name


def advice_lead(advice: Advice, subject: Subject) -> str:
    """Return the sentence below the title of the page."""
    tried = sum(one.status == "tried" for one in advice.candidates)
    return (
        f"{tried} of {len(advice.candidates)} repairs tried on {subject.images:,} images of {subject.data}, in "
        f"{duration(advice.seconds)} of a budget of {duration(advice.budget)}."
    )


def advice_verdict(advice: Advice, test: Comparison | None) -> Verdict:
    """Return whether a repair is proven: whether the selected one improves the model on the test images."""
    measure, tried = advice.objective.measure, [one for one in advice.candidates if one.status == "tried"]
    if advice.selected is None:
        guard = "" if advice.objective.groups else f" without losing more than {100 * advice.margin:g} points"
        reason = f"none of the {len(tried)} repairs tried raises the {measure} of the validation images{guard}"
        return Verdict("inconclusive", f"No repair is proven: {reason}.", "The original model is best; no checkpoint.")
    if test is not None:
        rule = "One repair was selected on validation images, and it alone was tested on images held out from that."
        proven = test.verdict.word == "improved"
        start = f"{advice.selected} is proven" if proven else f"No repair is proven; {advice.selected} on test images"
        return replace(test.verdict, sentence=f"{start}: {test.verdict.sentence}", basis=f"{test.verdict.basis} {rule}")
    before, after = (_text(one.objective) for one in (advice.original, advice.candidate(advice.selected)))
    return Verdict(
        "inconclusive",
        f"No repair is proven: {advice.selected} is the best of {len(tried)} on the validation images ({measure} "
        f"{before} before, {after} after), which selected it, and no --test-split names other images.",
        "The checkpoint is that repair.",
    )


def advice_table(advice: Advice) -> Table:
    """Return the repairs in the order in which they ran, then those that were not tried, with the reason."""
    rows = [_row(advice.original, advice), *(_row(one, advice) for one in advice.candidates)]
    columns = ["needs", "time", advice.objective.measure, "average accuracy", "regression check"]
    return Table("Repairs", columns, rows, f"{_objective_text(advice)} {_NOTE}", names="method")


_NOTE = (
    "All numbers are of the validation images, which selected, so those of the best repair are optimistic. Regression "
    "check: average accuracy - that of the original model, paired."
)


def _objective_text(advice: Advice) -> str:
    objective = advice.objective
    if objective.groups:
        least = min(objective.groups, key=lambda name: objective.groups[name])
        rest = f" {objective.small_groups:,} smaller groups do not count." if objective.small_groups else ""
        return (
            f"Selected by the accuracy of the worst of the {len(objective.groups)} groups of {MIN_GROUP} or more of "
            f"the {objective.images:,} validation images; the smallest is {least}, with "
            f"{objective.groups[least]:,}.{rest}"
        )
    changes = ", ".join(map(table_name, objective.shortcuts))
    return (
        f"No class has two groups of {MIN_GROUP} or more validation images, so the mean of the accuracies "
        f"on the {objective.images:,} clean images and under some changes selected: {changes} (those that cost the "
        "original model accuracy, else all that leave the object as it is). "
        f"A repair that is shown to lose more than {100 * advice.margin:g} points on the clean images is not selected."
    )


def _row(one: Candidate, advice: Advice) -> Row:
    if one.status != "tried":
        time = duration(one.seconds) if one.status == "failed" else ""
        return Row(one.method, [one.needs, time, "", "", ""], f"{_STATUS[one.status]}: {one.reason}")
    difference: Cell = one.difference if one.difference is not None else ""
    cells = [
        one.needs,
        duration(one.seconds) if one.seconds else "",
        _cell(one.objective),
        _cell(one.average),
        difference,
    ]
    if one.method == advice.selected:
        note = "selected" + ("; its average accuracy fell on these images" if _fell(one) else "")
    elif one is advice.original or is_eligible(one, advice.original, advice.objective, advice.margin):
        note = "average accuracy fell" if _fell(one) else ""
    else:
        note = "not better than the original model" if advice.objective.groups else "not better, or it loses too much"
    return Row(one.method, cells, note)


def _fell(one: Candidate) -> bool:
    return one.difference is not None and one.difference.high < 0


_STATUS = {"failed": "failed", "over budget": "not started", "unavailable": "not possible"}


def _cell(estimate: Estimate | None) -> Cell:
    return "" if estimate is None else estimate


def _text(estimate: Estimate | None) -> str:
    return "" if estimate is None else format_value(estimate.value, estimate.unit)


def steps_after_repairs(advice: Advice, model: ModelLike, data: DataLike, test_split: str | None) -> list[Step]:
    """Return what may prove a repair where none is proven: held-out images, groups, masks, a larger budget."""
    named_model, named_data = typed_model(model), typed_data(data)
    again = ["repair", named_model, named_data, "--method", "auto"]
    steps = []
    if test_split is None and advice.selected is not None:
        reason = "Prove it on held-out images: a split that trained and selected nothing."
        steps.append(Step(reason, command(*again, "--test-split", "test")))
    missing = {one.needs for one in advice.candidates if one.status == "unavailable"}
    if "groups" in missing:
        reason = "Groups for more repairs: tag about 100 images, then repair with --tags FILE."
        steps.append(Step(reason, command("tag", named_model, named_data)))
    if "masks" in missing:
        reason = "Masks for more repairs, made with the model."
        steps.append(Step(reason, command("data", "masks", named_data, "--model", named_model)))
    if late := [one for one in advice.candidates if one.status == "over budget"]:
        minutes = math.ceil((advice.seconds + sum(one.estimate or 0.0 for one in late)) / 60 + 1)
        reason = f"Try {', '.join(one.method for one in late)} too."
        steps.append(Step(reason, command(*again, "--budget", f"{minutes}m")))
    return steps
