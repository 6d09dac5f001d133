"""Shifted data: published sets, and shifts made on the fly."""
