"""train, repair."""

from typing import Annotated, Any, Literal

import typer

from clearhead.cli.options import (
    BatchSize,
    Data,
    Device,
    Groups,
    Layers,
    Margin,
    Model,
    Out,
    Precision,
    Seed,
    TestSplit,
    TrainSplit,
    ValSplit,
    Workers,
    columns_of,
    default_out,
    layers_of,
    numbers_of,
)

_TERMS, _HEADS = "By masks (--method relevance, gradmask, rrr)", "By heads (--method heads)"
_RECIPE = "Recipe"


def train(
    model: Model,
    data: Data,
    out: Out = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 10,
    lr: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 1e-4,
    batch_size: BatchSize = 32,
    optimizer: Annotated[
        str,
        typer.Option(
            help="adamw, adam, sgd (momentum 0.9), another of timm's (lion, muon, ...), schedulefree-adamw, "
            "schedulefree-sgd, or sam-BASE, asam-BASE (sam-sgd).",
            rich_help_panel=_RECIPE,
        ),
    ] = "adamw",
    weight_decay: Annotated[float, typer.Option(min=0, help="Of all parameters.", rich_help_panel=_RECIPE)] = 0.05,
    schedule: Annotated[
        Literal["cosine", "steps", "decay", "constant"],
        typer.Option(
            help="Of the learning rate: to 0, x 0.2 at 30, 60 and 80%, or x 0.85 every 2 epochs.",
            rich_help_panel=_RECIPE,
        ),
    ] = "cosine",
    warmup: Annotated[
        int | None,
        typer.Option(
            min=0, help="Epochs in which the learning rate rises; a tenth for cosine, else 0.", rich_help_panel=_RECIPE
        ),
    ] = None,
    max_grad_norm: Annotated[
        float | None, typer.Option(min=0, help="Largest norm of the gradient.", rich_help_panel=_RECIPE)
    ] = None,
    augment: Annotated[
        Literal["crop", "weak", "strong", "none"],
        typer.Option(
            help="Random windows, moves by up to an eighth of the side, these and RandAugment, or nothing.",
            rich_help_panel=_RECIPE,
        ),
    ] = "crop",
    label_smoothing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a label spread over all classes.", rich_help_panel=_RECIPE)
    ] = 0.0,
    mixup: Annotated[
        float, typer.Option(min=0, help="Mix pairs of images: parameter of the Beta.", rich_help_panel=_RECIPE)
    ] = 0.0,
    cutmix: Annotated[
        float, typer.Option(min=0, help="Put a window of one into another: likewise.", rich_help_panel=_RECIPE)
    ] = 0.0,
    mixed_precision: Precision = "no",
    save_epochs: Annotated[
        str | None,
        typer.Option(help="Epochs, with commas, after which the model is kept in epochs/; 0 is before training."),
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0, help="Weight of the head-diversity loss; the paper's is 100 / heads²: 6.25 at 4.")
    ] = 0.0,
    layers: Layers = "last",
    linear: Annotated[
        bool,
        typer.Option(
            "--linear", help="The last layer alone, on frozen features: a self-supervised backbone's classifier."
        ),
    ] = False,
    pretrained: Annotated[bool, typer.Option(help="Start from pretrained weights.")] = True,
    train_split: TrainSplit = "train",
    val_split: ValSplit = "val",
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Fine-tune by cross-entropy, with a fresh last layer where the data has other classes than the model."""
    from clearhead import console, workflows
    from clearhead.heads import DiversityLoss
    from clearhead.training.loop import TrainConfig

    if linear and diversity:
        raise typer.BadParameter("--linear trains the last layer alone: --diversity has no heads to train")
    folder = out or default_out("train", data, model)
    config = TrainConfig(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        optimizer=optimizer,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        augment=augment,
        label_smoothing=label_smoothing,
        mixup=mixup,
        cutmix=cutmix,
        max_grad_norm=max_grad_norm,
        mixed_precision=mixed_precision,
        workers=workers,
        seed=seed,
    )
    options: dict[str, Any] = {"train_split": train_split, "validation_split": val_split, "device": device}
    options |= {
        "linear": linear,
        "pretrained": pretrained,
        "save_epochs": numbers_of(save_epochs) if save_epochs else (),
        "loss": DiversityLoss(diversity, layers_of(layers)) if diversity else None,
    }
    console.tell_training(
        workflows.run_train(model, data, folder, config, **options, progress=console.progress), folder
    )


def repair(
    model: Model,
    data: Data,
    out: Out = None,
    method: Annotated[
        Literal["relevance", "gradmask", "rrr", "heads", "dfr", "groupdro", "reweight"],
        typer.Option(
            help="By masks (relevance, gradmask, rrr), by keeping heads, or by groups: last layer, DRO, reweighting."
        ),
    ] = "relevance",
    preset: Annotated[
        str | None, typer.Option(help="The paper's settings for ViT-B, ViT-L, AR-S, AR-B, AR-L, DeiT-S or DeiT-B.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the training images; 10, or the preset's 50.")
    ] = None,
    lr: Annotated[float | None, typer.Option(min=0, help="Learning rate; 1e-5, or the preset's.")] = None,
    batch_size: BatchSize = 8,
    background: Annotated[
        float | None,
        typer.Option(min=0, help="Weight of the background term; 0 leaves it out.", rich_help_panel=_TERMS),
    ] = None,
    foreground: Annotated[
        float | None, typer.Option(min=0, help="Weight of relevance's foreground term.", rich_help_panel=_TERMS)
    ] = None,
    classification: Annotated[
        float | None, typer.Option(min=0, help="Weight of the classification term.", rich_help_panel=_TERMS)
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.01, help="Divides relevance's logits in the classification term.", rich_help_panel=_TERMS),
    ] = None,
    target: Annotated[
        Literal["predicted", "truth"] | None,
        typer.Option(
            help="Relevance's classification term aims at it; the model's by default.", rich_help_panel=_TERMS
        ),
    ] = None,
    attribution: Annotated[
        str | None,
        typer.Option(
            help="Map of relevance: gae, rollout, attention, input-gradient, input-x-gradient.", rich_help_panel=_TERMS
        ),
    ] = None,
    background_swap: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Share of images on another's background; with --target truth.", rich_help_panel=_TERMS
        ),
    ] = None,
    second_order: Annotated[
        bool | None,
        typer.Option(
            "--second-order", help="Differentiate through the gradient of attention too.", rich_help_panel=_TERMS
        ),
    ] = None,
    search: Annotated[
        Literal["exhaustive", "greedy", "importance"],
        typer.Option(help="All subsets of a layer, one head after another, or by importance.", rich_help_panel=_HEADS),
    ] = "exhaustive",
    layers: Annotated[
        str | None, typer.Option(help="Last, all, or positions; last for exhaustive, else all.", rich_help_panel=_HEADS)
    ] = None,
    objective: Annotated[
        Literal["accuracy", "worst-group", "relevance-mass"] | None,
        typer.Option(help="What is to be highest; by default what groups and masks allow.", rich_help_panel=_HEADS),
    ] = None,
    ablation: Annotated[
        Literal["rescale", "mean"],
        typer.Option(help="Scale the kept heads, or put a removed head's mean output.", rich_help_panel=_HEADS),
    ] = "rescale",
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="With --search importance: a smaller model (Hugging Face's).", rich_help_panel=_HEADS
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most validation images to search on, balanced. Default: all.", rich_help_panel=_HEADS
        ),
    ] = None,
    mixed_precision: Precision = "no",
    train_split: TrainSplit = "train",
    val_split: ValSplit = "val",
    test_split: TestSplit = None,
    groups: Groups = None,
    margin: Margin = 0.02,
    workers: Workers = 0,
    seed: Seed = 0,
    device: Device = None,
) -> None:
    """Make the model rely on the right thing, by masks, by its heads or by groups, and check it for harm."""
    from dataclasses import replace

    from clearhead import console, workflows
    from clearhead.repairs import REPAIRS, build_loss, default_config, preset_named, require_repair

    folder = out or default_out("repair" if method == "relevance" else f"repair-{method}", data, model)
    options: dict[str, Any] = {"validation_split": val_split, "test_split": test_split, "groups": columns_of(groups)}
    options |= {"margin": margin, "device": device, "progress": console.progress}
    if preset and method != "relevance":
        raise typer.BadParameter(f"--preset {preset}: the paper's settings are for --method relevance, not {method}")
    known = preset_named(preset)
    terms: dict[str, Any] = {"background": background, "foreground": foreground, "classification": classification}
    terms |= {
        "temperature": temperature or known.temperature,
        "target": target,
        "attribution": attribution,
        "background_swap": background_swap,
        "second_order": second_order,
    }
    terms = {name: value for name, value in terms.items() if value is not None}
    config = default_config(preset)
    require_repair(method, config, terms)
    loss = build_loss(method, options=terms) if REPAIRS[method].needs == "masks" else None
    if method == "heads":
        options |= {"search": search, "objective": objective, "ablation": ablation, "seed": seed, "workers": workers}
        options |= {"layers": None if layers is None else layers_of(layers), "prune": prune, "limit": limit}
        console.tell_training(workflows.run_select(model, data, folder, **options), folder)
        return
    config = replace(
        config,
        epochs=epochs or config.epochs,
        lr=config.lr if lr is None else lr,
        batch_size=batch_size,
        mixed_precision=mixed_precision,
        workers=workers,
        seed=seed,
    )
    options |= {"method": method, "train_split": train_split, "loss": loss}
    console.tell_training(workflows.run_repair(model, data, folder, config, **options), folder)
