"""Statistics: estimates with their intervals, calibration, verdicts, aggregate metrics over data sets."""
