"""The command line, `calm`."""

from calm_runtime.cli.app import main

__all__ = ["main"]
