"""The demo: generated images with a spurious background, and the whole job on them."""
