"""The residual branches of a model, found by watching one forward pass, and a forward pass that stops at each."""

from clearhead.layers.units import LayersError, Layout, Unit, blocks_of, forward, positions, still, units_of

__all__ = ["LayersError", "Layout", "Unit", "blocks_of", "forward", "positions", "still", "units_of"]
