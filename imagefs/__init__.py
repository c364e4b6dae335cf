"""An image store for virtual machines whose main face is a filesystem."""

__version__ = "0.1.0"
