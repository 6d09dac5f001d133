"""Analyses of a model on data: one module each."""
