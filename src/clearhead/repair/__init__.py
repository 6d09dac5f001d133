"""Repairs: losses for the training loop that move a model's reliance to where it belongs."""

from clearhead.repair.relevance import Relevance

__all__ = ["Relevance"]
