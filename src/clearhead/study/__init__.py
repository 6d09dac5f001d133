"""Grids of training runs from one file, resumed, measured, drawn: of repairs, and of optimizers."""
