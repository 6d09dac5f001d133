"""What becomes of feature maps through the depth of a model: frequencies, variance, lesions, similarity."""

from clearhead.layers.cka import Similarity, cka
from clearhead.layers.fourier import FeatureMap, FeatureMaps, feature_maps, frequencies, log_amplitudes, variances
from clearhead.layers.lesion import Lesion, Lesions, Starts, lesions, whole, without
from clearhead.layers.units import LayersError, Layout, Unit, blocks_of, forward, positions, still, units_of

__all__ = [
    "FeatureMap",
    "FeatureMaps",
    "LayersError",
    "Layout",
    "Lesion",
    "Lesions",
    "Similarity",
    "Starts",
    "Unit",
    "blocks_of",
    "cka",
    "feature_maps",
    "forward",
    "frequencies",
    "lesions",
    "log_amplitudes",
    "positions",
    "still",
    "units_of",
    "variances",
    "whole",
    "without",
]
