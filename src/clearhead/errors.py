"""The error that a user can mend; any other exception is a bug in clearhead and keeps its traceback."""


class ClearheadError(ValueError):
    """Something a user can mend. The message names the argument, what was given and what would work."""
