"""The paper's experiment as a plan, and its table."""

from pathlib import Path

import pytest

from clearhead.metrics.statistics import Estimate
from clearhead.repairs import GradMaskLoss, RelevanceLoss
from clearhead.reproduce.relevance import plan_of, table
from clearhead.study.repairs import StudyRow


def test_the_plan_has_the_settings_of_the_preset_and_one_change_an_ablation() -> None:
    plan = plan_of("DeiT-S", Path("images"), {"A": Path("a")}, ablations=True)
    assert (plan.model, plan.lr, plan.epochs) == ("timm:deit_small_patch16_224.fb_in1k", 1e-6, 50)
    assert (plan.samples, plan.classes, plan.validation, plan.seeds) == ([3], [500], 414, [0, 1, 2])
    assert plan.loss("relevance") == RelevanceLoss(temperature=0.55)
    assert plan.loss("relevance, without foreground") == RelevanceLoss(temperature=0.55, foreground=0)
    assert plan.loss("GradMask") == GradMaskLoss()
    assert len(plan.methods) == 10


def test_a_model_without_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="timm has no weights of ViT-L"):
        plan_of("ViT-L", Path("images"), {"A": Path("a")})
    assert plan_of("ViT-L", Path("images"), {"A": Path("a")}, weights="folder").model == "folder"


def test_ours_stands_beside_the_papers() -> None:
    change = Estimate(0.05, 0.03, 0.07, 100, "pp")
    row = StudyRow("relevance", 3, 500, "A", "accuracy", 0.13, 0.18, 0.004, change, 3)
    other = StudyRow("RRR", 3, 500, "A", "accuracy", 0.13, 0.18, None, change, 1)
    lines = table("DeiT-B", [row, other]).splitlines()
    assert "| 13.0 | 18.0 ± 0.4 | +5.0 pp [+3.0, +7.0] | 12.9 → 17.2 | 3 |" in lines[2]
    assert lines[3].endswith("| 18.0 | +5.0 pp [+3.0, +7.0] |  | 1 |")
