"""Tables of what repairs without fine-tuning tried and selected."""

from clearhead.data.tags import MIN_TAGGED
from clearhead.metrics.statistics import format_value
from clearhead.repairs import REPAIRS, RepairOutcome, RetrainedHead, ReweightedHead, Selection
from clearhead.repairs.afr import MARGIN
from clearhead.repairs.registry import Report
from clearhead.report.page import Row, Section, Table

MOST_GROUPS = 20
"""Groups that the table of tagged images shows, the smallest first."""

_FEW_MISTAKES = 10


def report_tables(report: Report) -> list[Section]:
    """Return the tables of a repair's report."""
    if isinstance(report, Selection):
        return _selection_tables(report)
    if isinstance(report, RetrainedHead):
        return [_head_table(report)]
    return [_reweighting_table(report)]


def interpolation_table(losses: dict[float, float]) -> Table:
    """Return the table of the averages of the original and the repaired weights, with the one selected."""
    best = min(losses, key=lambda weight: losses[weight])
    rows = [
        Row(f"{weight:.0%} repaired", [f"{loss:.4g}", "selected" if weight == best else ""])
        for weight, loss in losses.items()
    ]
    text = (
        "The weights are an average of the original model's and the fine-tuned model's (WiSE-FT, arXiv 2109.01903), "
        "which keeps more of what the original model knows. The loss on the validation images selects it."
    )
    return Table("Average of the weights", ["validation loss", ""], rows, text)


def tag_table(outcome: RepairOutcome) -> Table:
    """Return the number of tagged images of each group, the smallest first."""
    smallest = sorted(outcome.tagged.items(), key=lambda item: (item[1], item[0]))
    small = sum(count < MIN_TAGGED for count in outcome.tagged.values())
    uses = {
        "tagged images": "The repair used the tagged images of the training and validation split, and no others.",
        "all images": "Each group of tagged images was divided between training and validation; the untagged images of "
        "a class are a group of their own.",
    }
    text = f"{uses[REPAIRS[outcome.method].tags]} Accuracies of groups this small are rough."
    if small:
        text += f" {small} of the groups have one image: it was fitted, but could not select anything."
    if len(smallest) > MOST_GROUPS:
        text += f" The smallest {MOST_GROUPS} of {len(smallest)} groups are shown."
    return Table("Tagged images", ["images"], [Row(name, [count]) for name, count in smallest[:MOST_GROUPS]], text)


def _selection_tables(selection: Selection) -> list[Section]:
    rows = [Row(selection.objective, [format_value(value, "%") for value in (selection.before, selection.after)])]
    if selection.optimism is not None:
        expected = format_value(selection.after - selection.optimism, "%")
        bound = "" if selection.search == "exhaustive" else "upper bound: these images made the candidates too; "
        rows.append(Row("expected on other images", ["", expected], f"{bound}by cross-validation"))
    small = f" ({selection.smallest:,} in the smallest group)" if selection.objective == "worst-group" else ""
    text = (
        f"The best of {selection.tried:,} candidates ({selection.search}) by {selection.objective} on the "
        f"{selection.images:,} images{small}. Its score on them is optimistic."
    )
    if selection.images_without_budget:
        text += f" The budget allowed {selection.images:,} of {selection.images_without_budget:,} images."
    heads = max(map(len, selection.kept_heads.values()))
    changed = {layer: mask for layer, mask in selection.kept_heads.items() if not all(mask)}
    sections: list[Section] = [Table("Selected heads", ["all heads", "selected heads"], rows, text)]
    if changed:
        marks = [
            Row(layer, ["removed" if h < len(mask) and not mask[h] else "" for h in range(heads)])
            for layer, mask in changed.items()
        ]
        text = "Layers without removed heads are not listed."
        sections.append(Table("Removed heads", [str(h) for h in range(heads)], marks, text, names="layer"))
    return sections


def _head_table(head: RetrainedHead) -> Table:
    rows = [
        Row(f"C = {c:g}", [format_value(value, "%"), "selected" if c == head.chosen else ""])
        for c, value in head.worst_group_accuracy.items()
    ]
    sizes = head.groups.values()
    text = (
        "The classifier head, retrained by logistic regressions on group-balanced subsets of the training images "
        f"({len(sizes)} groups of {min(sizes):,} to {max(sizes):,} images). The inverse penalty C was selected by the "
    )
    if head.cross_validated:
        text += f"cross-validated accuracy of the worst group of {MIN_TAGGED} or more of these images, shown here."
    else:
        text += "worst-group accuracy on the validation images, shown here."
    return Table("Retrained classifier head", ["worst-group accuracy", ""], rows, text)


def _reweighting_table(head: ReweightedHead) -> Table:
    rows = []
    for candidate in head.candidates:
        name = "original head" if candidate.gamma is None else f"γ = {candidate.gamma:g}, λ = {candidate.penalty:g}"
        values = (candidate.accuracy, candidate.corrected, candidate.retained)
        cells = [format_value(value, "%") if value is not None else "" for value in values]
        rows.append(Row(name, [*cells, "selected" if candidate == head.chosen else ""]))
    text = (
        "Heads retrained with weights exp(-γ p), where p is the original model's probability of the label, and a "
        f"penalty λ on the distance from the original head, measured on the {head.images:,} validation images. The "
        "head with the highest mean of the last two accuracies was selected, among those that lose at most "
        f"{MARGIN:.0%} of all images. The original model misclassifies {head.misclassified:,} of them"
        + (", too few for a reliable selection." if head.misclassified < _FEW_MISTAKES else ".")
        + f" The selected weights are worth {head.effective_images:,.0f} training images."
    )
    columns = ["accuracy", "of the misclassified", "of the others", ""]
    return Table("Reweighted classifier head", columns, rows, text)
