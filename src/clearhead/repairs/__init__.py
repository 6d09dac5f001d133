"""Make a model rely on the right features; the result is an ordinary checkpoint of its library."""

from clearhead.repairs.afr import HeadCandidate, ReweightedHead, reweight_head
from clearhead.repairs.counterfactual import COUNTERFACTUALS, CounterfactualLoss
from clearhead.repairs.dfr import RetrainedHead, retrain_head
from clearhead.repairs.exmap import cluster_and_retrain
from clearhead.repairs.group_losses import GroupDRO, Reweight
from clearhead.repairs.head_selection import Selection, select_heads
from clearhead.repairs.input_gradient_losses import GradMaskLoss, RRRLoss
from clearhead.repairs.jtt import JTTLoss
from clearhead.repairs.presets import PRESETS, Preset, default_config, preset_named
from clearhead.repairs.registry import REPAIRS, LossInputs, Repair, build_loss, require_repair
from clearhead.repairs.relevance import RelevanceLoss, relevance_maps
from clearhead.repairs.run import RepairOutcome, repair

__all__ = [
    "COUNTERFACTUALS",
    "PRESETS",
    "REPAIRS",
    "CounterfactualLoss",
    "GradMaskLoss",
    "GroupDRO",
    "HeadCandidate",
    "JTTLoss",
    "LossInputs",
    "Preset",
    "RRRLoss",
    "RelevanceLoss",
    "Repair",
    "RepairOutcome",
    "RetrainedHead",
    "Reweight",
    "ReweightedHead",
    "Selection",
    "build_loss",
    "cluster_and_retrain",
    "default_config",
    "preset_named",
    "relevance_maps",
    "repair",
    "require_repair",
    "retrain_head",
    "reweight_head",
    "select_heads",
]
