"""Statistics: estimates with their intervals, calibration, verdicts, aggregates over data sets."""
