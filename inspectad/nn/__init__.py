"""Torch pieces that methods share. Imported by training code only, never by ``scan``."""
