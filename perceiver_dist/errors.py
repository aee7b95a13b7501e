"""Error for what the user can fix: jobs print it as one line and exit with status 2."""


class UserError(Exception):
    """Mistake in an option, a config file or the data, described in one line.

    The message names the thing, what was found, what was expected, and what to do. Both packages raise it or
    a subclass; jobs catch it, print the line without a traceback, and exit with status 2.
    """
