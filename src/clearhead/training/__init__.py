"""Training: its configuration, its optimizers, the loop, the linear probe."""
