"""Retinue: a virtual machine moves between servers while it runs, and its network moves with it."""

__version__ = "0.1.0"
