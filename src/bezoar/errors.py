"""The one exception that means "this input cannot be used"."""


class InputError(ValueError):
    """The user's input cannot be used; the message says what was given, expected, and what to do.

    The command line prints the message as one sentence and exits with code 2. Anything else that
    escapes is a defect of bezoar, not of the input.
    """


class UnsafeFileError(InputError):
    """A model file needs code to be executed on load and was refused.

    Attributes:
        wanted: the globals ("module.name") the file asked for, in order of appearance.
    """

    def __init__(self, message: str, wanted: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.wanted = wanted
