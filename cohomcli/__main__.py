"""The entry point: the one place where exceptions and signals become exit codes and one line on stderr."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from types import FrameType

from cohomcli import errors
from cohomcli.names import printable
from cohomcli.runs.files import DISK_FULL

HIDDEN_TRACE = "run again with -v for the traceback"


class Interrupted(KeyboardInterrupt):
    """SIGINT arrived.

    Not KeyboardInterrupt itself: when that one passes through `exec` of a string, as it does while a library defines
    a dataclass or named tuple, `python -m` remembers it and ends the process by SIGINT although it was handled.
    """


class Terminated(BaseException):
    """SIGTERM arrived; like KeyboardInterrupt it is no Exception, so that no handler of ours swallows it."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code (0, 1, 2, 3, 4, 70, 130, 143; see errors.py and CRAFT)."""
    arguments = sys.argv[1:] if argv is None else argv
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if previous[signal.SIGINT] == signal.default_int_handler:  # background jobs go on ignoring Ctrl-C
        signal.signal(signal.SIGINT, _raise_interrupted)
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        return _run(arguments)
    except errors.CohomError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", errors.EXIT_SIGINT)
    except Terminated:
        return _fail("terminated", errors.EXIT_SIGTERM)
    except BrokenPipeError:
        # The reader of our output has gone (`cohom ... | head`): nothing to say, and no one to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return errors.EXIT_GATE
    except MemoryError:
        return _fail("out of memory; analyse fewer samples or layers", errors.EXIT_INCOMPLETE)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a traceback is a bug, and so is silence
        if _disk_full(error):
            hint = "free some space or choose another --output-dir"
            return _fail("no space left to write the results", errors.EXIT_INCOMPLETE, hint)
        if {"-v", "--verbose"} & set(arguments):
            traceback.print_exc()
        summary = " ".join(str(error).split())[:300]
        return _fail(f"internal error: {type(error).__name__}: {summary} ({HIDDEN_TRACE})", errors.EXIT_BUG)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _run(arguments: list[str]) -> int:
    import typer

    from cohomcli.cli.app import app

    try:
        result = app(args=arguments or ["--help"], prog_name="cohom", standalone_mode=False)
    except typer.TyperException as error:
        return _fail(error.format_message(), errors.EXIT_USAGE, "see --help")
    except typer.Abort:
        return _fail("interrupted", errors.EXIT_SIGINT)
    if result == errors.EXIT_SIGINT:
        return _fail("interrupted", errors.EXIT_SIGINT)
    return result if isinstance(result, int) else errors.EXIT_OK


def _disk_full(error: BaseException | None) -> bool:
    """Whether an error, or its cause, is a full disk or quota; numpy and libraries in Rust say so in words only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            return True
        words = str(error)
        if (found := re.search(r"\(os error (\d+)\)", words)) and int(found.group(1)) in DISK_FULL:
            return True
        if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", words):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: str, code: int, hint: str = "") -> int:
    """Print the one line."""
    shown = printable(" ".join(message.split()))
    print(f"cohom: error: {shown}" + (f"; {hint}" if hint else ""), file=sys.stderr)  # noqa: T201
    return code


def _raise_interrupted(signum: int, frame: FrameType | None) -> None:
    raise Interrupted


def _raise_terminated(signum: int, frame: FrameType | None) -> None:
    raise Terminated


if __name__ == "__main__":
    sys.exit(main())
