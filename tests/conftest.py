"""clearhead comes before any test's imports: it makes torchvision importable beside a torch it was not built for."""

import clearhead  # noqa: F401
