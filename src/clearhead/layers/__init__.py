"""The residual branches of a model, found by watching one forward pass, and a forward pass that stops at each."""

from clearhead.layers.branches import (
    LayersError,
    Layout,
    ResidualBranch,
    find_branches,
    flatten_positions,
    group_blocks,
    hooked_forward,
    repeatable_forward,
)

__all__ = [
    "LayersError",
    "Layout",
    "ResidualBranch",
    "find_branches",
    "flatten_positions",
    "group_blocks",
    "hooked_forward",
    "repeatable_forward",
]
