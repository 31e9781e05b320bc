"""Every error that inspectad raises on purpose.

InspectadError                exit code 1
├── UsageError                exit code 2: the command line asks for something that cannot be
├── UnreadableImageError      one image; becomes an UNREADABLE row, never the end of a scan
├── TrainingError             the training images do not allow a model
├── ModelFileError            a model that is missing, damaged, foreign or too new
├── ParityError               an exported graph does not compute what the trained network computes
├── OutputError               a result cannot be written
└── MissingDependencyError    an extra is not installed

Only ``cli`` catches them. Each message says what is wrong, with which file, and what to do next.
"""


class InspectadError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class UsageError(InspectadError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class UnreadableImageError(InspectadError):
    """One file is not an image that can be judged."""


class TrainingError(InspectadError):
    """The training images do not allow a model."""


class ModelFileError(InspectadError):
    """A model is missing, damaged, foreign or too new."""


class ParityError(InspectadError):
    """An exported graph differs from the network it was made from."""


class OutputError(InspectadError):
    """A result cannot be written."""


class MissingDependencyError(InspectadError):
    """A package that this verb needs is not installed."""
