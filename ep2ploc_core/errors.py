"""Errors that a user can act on: one sentence with what was wrong, where, and what to do."""


class Ep2plocError(Exception):
    """Base of all errors that this package raises on purpose.

    The command line prints the message on one line and exits with code 2; nodes put it into a diagnostic and go on.
    """


class InputError(Ep2plocError):
    """A file, directory or value given by the user cannot be used."""


class MapError(Ep2plocError):
    """A map directory is missing, cut off, or does not fit the network."""


class CheckpointError(Ep2plocError):
    """A weights file is missing, corrupted, or of another kind."""
