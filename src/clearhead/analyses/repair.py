"""Repair a classifier, and compare the result with the original model on validation and test images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from clearhead.analyses.advice_page import advice_lead, advice_table, advice_verdict, steps_after_repairs
from clearhead.analyses.battery_change import BatteryChange, battery_change, battery_change_table
from clearhead.analyses.compare import Comparison, headline
from clearhead.analyses.map_check import MapCheck, check_map, check_table
from clearhead.analyses.repair_check import check_repair, comparison_table
from clearhead.analyses.repair_tables import interpolation_table, report_tables, tag_table
from clearhead.analyses.subject import Subject, subject_of
from clearhead.analyses.train import epoch_table, history_figure
from clearhead.data.image_io import DataError
from clearhead.data.images import as_image_index
from clearhead.data.splits import require_apart, train_and_validation
from clearhead.distributed import rank_and_size
from clearhead.models import save_model
from clearhead.models.classifier import on_device
from clearhead.models.source import ModelLike, ModelSource, as_classifier, display_names
from clearhead.options import (
    Groups,
    Margin,
    Option,
    Precision,
    Seed,
    TestSplit,
    TrainSplit,
    ValidationSplit,
    Workers,
    parse_budget,
)
from clearhead.progress import Progress
from clearhead.repairs import (
    REPAIRS,
    LossInputs,
    RepairOutcome,
    build_loss,
    default_config,
    preset_named,
    repair,
    require_repair,
)
from clearhead.repairs.advisor import Advice, advise
from clearhead.report.page import Page, Section, Step
from clearhead.storage import NotSaved

DISTRIBUTED = True
DECIDES = ("batch_size",)


@dataclass(frozen=True)
class RepairResult:
    """How a repair went, and how the repaired model compares with the original one.

    Attributes:
        subject: the original model and the training images.
        outcome: the epochs, or what the repair reports.
        validation: on the images that selected what was kept: reveals a regression, proves no improvement.
        test: on images that trained and selected nothing.
        battery: the shortcut battery of both models, on the test images, or without them on the validation images.
        map_check: faithfulness of the map that was optimised, before the repair.
        model: the repaired classifier; in the run folder checkpoint/. None if ``auto`` selected none.
        advice: of ``auto``: the repairs that were tried.
        steps: the commands that follow from it.
    """

    subject: Subject
    outcome: RepairOutcome
    validation: Comparison | None
    test: Comparison | None = None
    battery: BatteryChange | None = None
    map_check: MapCheck | None = None
    model: NotSaved = None
    advice: Advice | None = None
    steps: list[Step] = field(default_factory=list)


def measure(
    model: ModelLike,
    data: str | Path,
    *,
    method: Annotated[
        Literal[
            "auto",
            "afr",
            "dfr",
            "exmap",
            "heads",
            "jtt",
            "counterfactual",
            "background-swap",
            "reweight",
            "groupdro",
            "diversity",
            "relevance",
            "gradmask",
            "rrr",
        ],
        Option(
            "Needs groups: dfr, reweight, groupdro; masks: background-swap, relevance, gradmask, rrr; others nothing. "
            "auto tries all that the data allows."
        ),
    ] = "relevance",
    budget: Annotated[
        str | None, Option("Time for auto (default: 30m) or the search of heads, such as 90s, 30m or 2h.")
    ] = None,
    preset: Annotated[
        str | None, Option("The paper's settings for ViT-B, ViT-L, AR-S, AR-B, AR-L, DeiT-S or DeiT-B; or demo.")
    ] = None,
    epochs: Annotated[
        int | None, Option("Passes over the training images. Default: 10, or the preset's.", min=1)
    ] = None,
    lr: Annotated[float | None, Option("Learning rate. Default: 1e-5, or the preset's.", min=0)] = None,
    batch_size: Annotated[int | None, Option("Batch size. Default: 8, or the preset's.", min=1)] = None,
    trainable: Annotated[
        Literal["all", "head", "lora"],
        Option("Train all parameters, the classifier head, or low-rank updates.", name="--train"),
    ] = "all",
    background: Annotated[
        float | None, Option("Weight of the background term; 0 leaves it out.", min=0, panel="Repair by masks")
    ] = None,
    foreground: Annotated[
        float | None, Option("Weight of relevance's foreground term.", min=0, panel="Repair by masks")
    ] = None,
    classification: Annotated[
        float | None,
        Option("Weight of the classification term (also of counterfactual).", min=0, panel="Repair by masks"),
    ] = None,
    temperature: Annotated[
        float | None,
        Option("Divides the logits in relevance's classification term.", min=0.01, panel="Repair by masks"),
    ] = None,
    target: Annotated[
        Literal["predicted", "truth"] | None,
        Option("Target of relevance's classification term. Default: predicted.", panel="Repair by masks"),
    ] = None,
    attribution: Annotated[
        str | None,
        Option(
            "Map of relevance and exmap: gae, libragrad, attnlrp, rollout, input-gradient, ...", panel="Repair by masks"
        ),
    ] = None,
    background_swap: Annotated[
        float | None,
        Option(
            "Fraction of images on another image's background; needs --target truth.", 0, 1, panel="Repair by masks"
        ),
    ] = None,
    second_order: Annotated[
        bool | None, Option("Differentiate through the gradient of attention too.", panel="Repair by masks")
    ] = None,
    shortcuts: Annotated[
        Sequence[str] | None,
        Option("Changes to train on, comma-separated. Default: all that apply.", panel="Repair by counterfactuals"),
    ] = None,
    consistency: Annotated[
        float | None,
        Option(
            "Weight of agreement with the original model, on changed images. Default: 1.",
            min=0,
            panel="Repair by counterfactuals",
        ),
    ] = None,
    clean: Annotated[
        float | None,
        Option("The same on clean images. Default: 1.", min=0, panel="Repair by counterfactuals"),
    ] = None,
    weight: Annotated[
        float | None, Option("Weight of diversity's penalty. Default: 6.25.", min=0, panel="Repair by heads")
    ] = None,
    search: Annotated[
        Literal["exhaustive", "greedy", "importance"] | None,
        Option("All subsets of a layer, one head after another, or by importance.", panel="Repair by heads"),
    ] = None,
    layers: Annotated[
        Literal["last", "all"] | Sequence[int] | None,
        Option("last, all, or positions. Default: last for exhaustive, else all.", panel="Repair by heads"),
    ] = None,
    objective: Annotated[
        Literal["accuracy", "worst-group", "relevance-mass"] | None,
        Option(
            "Metric to maximise. Default: worst-group accuracy with groups, else relevance mass with masks, else "
            "accuracy.",
            panel="Repair by heads",
        ),
    ] = None,
    ablation: Annotated[
        Literal["rescale", "mean"] | None,
        Option("Rescale the other heads, or use a removed head's mean output.", panel="Repair by heads"),
    ] = None,
    prune: Annotated[
        bool | None, Option("With --search importance: a smaller architecture (Hugging Face).", panel="Repair by heads")
    ] = None,
    limit: Annotated[
        int | None, Option("Search heads on at most this many validation images.", min=2, panel="Repair by heads")
    ] = None,
    upweight: Annotated[
        float | None,
        Option(
            "Weight of misclassified images (jtt). Default: together as much as the others.", panel="Repair by labels"
        ),
    ] = None,
    mixed_precision: Precision = "no",
    train_split: TrainSplit = "train",
    validation_split: ValidationSplit = "val",
    test_split: TestSplit = None,
    groups: Groups = None,
    tags: Annotated[
        Path | None,
        Option("File of tagged images: their tags are the groups of dfr, reweight, groupdro and heads.", panel="Data"),
    ] = None,
    margin: Margin = 0.02,
    workers: Workers = 0,
    seed: Seed = 0,
    progress: Progress | None = None,
    state: Path | None = None,
) -> RepairResult:
    """Make a model rely on the object instead of a shortcut, and compare it with the original model.

    Example:
        $ clearhead repair timm:vit_small_patch16_224 DATA --method relevance --test-split test

    Args:
        model: a classifier, module or name, with the classes of the data.
        data: the images, with a validation split or without (then 20% of each class is held out).
        method: a key of ``clearhead.repairs.REPAIRS``, or ``auto`` (``clearhead.repairs.advisor``).
        budget: time for ``auto`` or the search of heads.
        preset: settings of the paper for one of its models. Default: those of the method, where it has its own.
        epochs: passes over the training images.
        lr: learning rate.
        batch_size: images per step, over all processes.
        trainable: see ``clearhead.repair``.
        background: option of a repair by masks, as are the following up to `second_order`.
        foreground: see ``RelevanceLoss``.
        classification: see ``RelevanceLoss``.
        temperature: see ``RelevanceLoss``.
        target: see ``RelevanceLoss``.
        attribution: see ``RelevanceLoss``.
        background_swap: see ``RelevanceLoss``.
        second_order: see ``RelevanceLoss``.
        shortcuts: option of the repair by counterfactuals, as are the next two.
        consistency: see ``CounterfactualLoss``.
        clean: see ``CounterfactualLoss``.
        weight: see ``clearhead.DiversityLoss``.
        search: option of the repair by heads, as are the following up to `limit`.
        layers: see ``clearhead.select_heads``.
        objective: see ``clearhead.select_heads``.
        ablation: see ``clearhead.select_heads``.
        prune: see ``clearhead.select_heads``.
        limit: see ``clearhead.select_heads``.
        upweight: see ``JTTLoss``.
        mixed_precision: of the forward pass.
        train_split: split to train on.
        validation_split: split that selects the epoch, the penalty or the heads.
        test_split: split for the final comparison; nothing is trained or selected on it.
        groups: columns of metadata.csv that define groups with the class; all by default. With `tags` they are for the
            comparisons only.
        tags: tags file of training and validation images, whose tags define the groups of the repair.
        margin: non-inferiority margin.

    The other arguments are described in ``clearhead.options``.

    Raises:
        DataError: for data that cannot be used, or a test split that trains or selects.
        ClearheadError: for options that the method does not have, or a model that it cannot repair.
    """
    options = {
        "background": background,
        "foreground": foreground,
        "classification": classification,
        "temperature": temperature,
        "target": target,
        "attribution": attribution,
        "background_swap": background_swap,
        "second_order": second_order,
        "shortcuts": shortcuts,
        "consistency": consistency,
        "clean": clean,
        "weight": weight,
        "search": search,
        "layers": layers,
        "objective": objective,
        "ablation": ablation,
        "prune": prune,
        "limit": limit,
        "upweight": upweight,
    }
    set_options: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    seconds = parse_budget(budget or "30m")
    if budget is not None and method != "auto":
        set_options["budget"] = seconds
    if preset is not None and (method == "auto" or "temperature" in REPAIRS[method].options):
        set_options.setdefault("temperature", preset_named(preset).temperature or 1.0)
    settings = {"epochs": epochs, "lr": lr, "batch_size": batch_size}
    changes: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    changes |= {"mixed_precision": mixed_precision, "workers": workers, "seed": seed}
    configs = {name: replace(default_config(preset or one.preset), **changes) for name, one in REPAIRS.items()}
    (name,), original = display_names([model]), as_classifier(model)
    trains = method == "auto" or REPAIRS[method].trains
    reads_training = trains or tags is not None
    train_name = train_split if reads_training else validation_split
    if reads_training and train_split == validation_split:
        raise DataError(
            f"validation_split: got {validation_split!r}, which is trained on; selection needs other images"
        )
    test = None
    if test_split is not None:
        if test_split in (train_name, validation_split):
            raise DataError(f"test_split: got {test_split!r}, which trains or selects; give a split of other images")
        test = as_image_index(data, split=test_split, classes=original.classes)
    train, validation = train_and_validation(
        data, train=train_name, validation=validation_split, classes=original.classes, seed=seed
    )
    require_apart(training=train if reads_training else None, validation=validation, test=test)
    device = model.device if isinstance(model, ModelSource) else None
    loading: dict[str, Any] = {"workers": workers, "seed": seed, "progress": progress}
    map_check = None
    if method == "relevance" and rank_and_size()[0] == 0:
        require_repair(method, configs[method], set_options)  # finds mistakes before the map is measured
        build_loss(method, LossInputs(images=train), set_options)
        source = set_options.get("attribution", "gae")
        map_check = check_map(on_device(original, device), validation, source, **loading)
    common: dict[str, Any] = {
        "group_columns": groups if tags is None or method == "auto" else None,
        "tags": tags,
        "trainable": trainable,
        "state": state,
        "device": device,
        "progress": progress,
    }
    advice, repaired, selected_by = None, None, None
    if method == "auto":
        common |= {"budget": seconds, "margin": margin, "options": set_options, "configs": configs}
        repaired, advice = advise(original, train, validation, **common)
        outcome, selected_by = advice.outcome or RepairOutcome(method), advice.objective
    else:
        training = train if reads_training else None
        repaired, outcome = repair(
            original, training, validation, method=method, config=configs[method], **common, **set_options
        )
    used = train if reads_training else validation
    subject = subject_of([name], used, data, None, original)
    issues = [issue for index in (train, validation, test) if index is not None for issue in index.issues]
    subject = replace(subject, issues=list(dict.fromkeys([*issues, *outcome.tag_issues])))
    result = RepairResult(subject, outcome, None, map_check=map_check, model=repaired, advice=advice)
    if advice:
        result = replace(result, steps=steps_after_repairs(advice, model, data, test_split))
    if rank_and_size()[0] > 0 or repaired is None:
        return result
    models = [on_device(one, device) for one in (original, repaired)]
    check = partial(check_repair, models, groups=groups, margin=margin, objective=selected_by)
    judged = validation if test is None else test
    return replace(
        result,
        validation=None if advice else check(validation, "validation", **loading),
        test=None if test is None else check(test, "test", **loading),
        battery=battery_change(models, judged, data, **loading),
    )


def export(result: RepairResult, folder: Path) -> None:
    """Write the checkpoint, if there is a repaired model."""
    if result.model is not None:
        save_model(result.model, folder / "checkpoint")


def page(result: RepairResult) -> Page:
    """Show the comparison on test images, what was selected, and the comparison on validation images."""
    outcome, subject = result.outcome, result.subject
    caution = REPAIRS[outcome.method].note if outcome.method in REPAIRS else ""
    sections: list[Section] = [advice_table(result.advice)] if result.advice else []
    if result.test:
        note = "Nothing was trained or selected on these images."
        sections.append(comparison_table(result.test, "Test images", note))
    where = "test" if result.test else "validation"
    if result.battery:
        sections.append(battery_change_table(result.battery, where))
    if result.map_check:
        sections.append(check_table(result.map_check))
    if outcome.history:
        sections += [epoch_table(outcome.history, outcome.monitor), history_figure(outcome.history, outcome.monitor)]
    if outcome.interpolation:
        sections.append(interpolation_table(outcome.interpolation))
    if outcome.report is not None:
        sections += report_tables(outcome.report)
    if outcome.tagged:
        sections.append(tag_table(outcome))
    if result.validation:
        note = "The checkpoint was selected on this split: it can reveal a regression, not prove an improvement."
        if outcome.tagged:
            note += " It contains the tagged validation images, which the repair used too."
        sections.append(comparison_table(result.validation, "Validation images", note))
    main = result.test or result.validation
    verdicts = [replace(main.verdict, data=f"{subject.data}, {where} images")] if main else []
    lead = f"Repaired by {outcome.method} on {subject.images:,} images of {subject.data}."
    if result.advice:
        verdicts, lead = [advice_verdict(result.advice, result.test)], advice_lead(result.advice, subject)
    lead = f"{lead} {caution}".rstrip()
    steps = [] if verdicts and verdicts[0].word == "improved" else result.steps
    return Page(f"{subject.model}: repair", lead, verdicts, headline(main), sections, steps=steps)
