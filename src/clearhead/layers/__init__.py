"""The residual branches of a model, and forward passes with a hook at each of them."""

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
