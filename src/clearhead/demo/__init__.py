"""The demo: audit, repair and compare a small model on generated images with a spurious background."""
