"""The error that means "the user can mend this": jobs print it as one line and exit with status 2."""


class UserError(Exception):
    """A mistake in an option, a config file or the data, found by us and described in one line.

    The message names the thing, what was found, what was expected, and what to do. Both packages raise it or
    a subclass; jobs catch it, print the line without a traceback, and exit with status 2.
    """
