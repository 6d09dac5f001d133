"""The error for problems that a user can fix; any other exception is a bug in clearhead and keeps its traceback."""


class ClearheadError(ValueError):
    """A problem that a user can fix. The message names the argument, what was passed and what would work."""
