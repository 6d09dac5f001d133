"""Predictions to numbers: accuracy, groups, calibration, reliance, and paired comparisons, each with its interval."""
