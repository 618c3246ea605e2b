"""The error raised where FMS is not installed."""


class MissingFMS(ModuleNotFoundError, ValueError):
    """The package ibm-fms is not installed, or fails to import."""
