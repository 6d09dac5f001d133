"""``python -m clearhead``, and so ``torchrun -m clearhead`` and ``accelerate launch -m clearhead``."""

from clearhead.cli import main

main()
