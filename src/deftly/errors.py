"""The one exception type that reaches a user as a single line."""


class DeftlyError(Exception):
    """Something the user can mend: one line saying what is wrong, where, and what to type instead; exit status 2."""
