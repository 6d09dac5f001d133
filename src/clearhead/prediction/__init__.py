"""Predictions of a model on images: on one data set, and on suites of shifted ones."""
