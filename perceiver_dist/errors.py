"""Errors that this project raises on purpose: mistakes of the user, and bugs of its own."""


class UserError(Exception):
    """Mistake in an option, a config file or the data, described in one line.

    The message names the thing, what was found, what was expected, and what to do. Both packages raise it or
    a subclass; jobs catch it, print the line without a traceback, and exit with status 2.
    """


class InternalError(RuntimeError):
    """A bug: code of this project violated the precondition of other code of this project.

    No option and no data of a user can cause it. Jobs do not catch it, so they end with its traceback and status 1.
    """
