"""Inputs that nobody made, for everything that reads what comes from outside. ``python -m fuzz --help``."""
