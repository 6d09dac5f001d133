"""Shifted data: published data sets, and shifts applied on the fly."""
