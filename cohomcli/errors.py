"""The errors a user can cause or meet, each with its documented exit code."""

EXIT_OK = 0
EXIT_GATE = 1
EXIT_USAGE = 2
EXIT_INPUT = 3
EXIT_INCOMPLETE = 4
EXIT_BUG = 70
EXIT_SIGINT = 130
EXIT_SIGTERM = 143


class CohomError(Exception):
    """An error with one clear line for the user: what is wrong, and (`hint`) what to do about it."""

    exit_code = EXIT_BUG

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class GateTripped(CohomError):
    """A `--fail-on` condition holds."""

    exit_code = EXIT_GATE


class UsageError(CohomError):
    """The command line, configuration or an option's value is wrong."""

    exit_code = EXIT_USAGE


class InputRefused(CohomError):
    """A model, data set or run folder is missing, unreadable, corrupt or not allowed."""

    exit_code = EXIT_INPUT


class AnalysisIncomplete(CohomError):
    """The input was read but the analysis could not be finished: non-finite values, memory, time, a full disk."""

    exit_code = EXIT_INCOMPLETE
