"""Grids of trainings described by one YAML file: of repairs, and of optimizers.

A study keeps a folder per training; what is finished is not run again, so a plan may grow.
"""
