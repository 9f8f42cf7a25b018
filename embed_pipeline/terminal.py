"""What every command prints, how it fails, and how it ends when it is told to."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NoReturn

from rich.console import Console
from rich.text import Text

from embed_pipeline.escaping import for_terminal, on_one_line

# No markup: what is printed holds paths and words of documents, and a bracket in them is a bracket.
out = Console(markup=False, highlight=False, emoji=False)
err = Console(stderr=True, markup=False, highlight=False, emoji=False)
INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM, as shells have it."""
KEPT = "interrupted; finished work is kept, and the same command resumes from there"
_GRACE_SECONDS = 1.5
"""What is at work when a signal comes has so long to end by itself."""
_DATABASE_MODULES = {"sqlite3", "sqlalchemy", "psycopg2"}
# Imported name to the extra that installs it; every other missing module comes with the extra pipeline.
_EXTRAS = {"onnxruntime": "serve", "openvino": "openvino", "gguf": "embedded", "xllamacpp": "embedded", "peft": "lora"}
_ending = threading.Lock()
_terminal = os.dup(sys.__stderr__.fileno()) if sys.__stderr__ else os.open(os.devnull, os.O_WRONLY)


def say(line: str) -> None:
    """Print a line that may contain paths or words of documents."""
    out.print(on_one_line(line), soft_wrap=True)


def fail(message: str, *, status: int = 1) -> NoReturn:
    """Print an error and end with ``status``."""
    _print_error(message)
    sys.exit(status)


def _print_error(message: str) -> None:
    err.print(Text.assemble(("error: ", "bold red"), for_terminal(message)), soft_wrap=True)


def explain_error(error: BaseException) -> str | None:
    """Return an expected error as a sentence; None: the error is a fault of this program."""
    if type(error).__module__.startswith("embed_pipeline."):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("embed_pipeline"):
        module = error.name.partition(".")[0]
        extra = _EXTRAS.get(module, "pipeline")
        return f"{module} is not installed, and this command needs it: pip install 'embed-pipeline[{extra}]'"
    cause: BaseException | None = error
    while cause is not None:
        module = type(cause).__module__.partition(".")[0]
        if module in _DATABASE_MODULES:
            said = str(cause).strip().splitlines()[0]
            return (
                f"a database cannot be used: {said}; Dagster's is in paths.store or where the dagster.yaml of "
                "DAGSTER_HOME says, MLflow's where tracking.uri says: check that it runs and has space, and "
                "run the same command again; what was stored before is intact"
            )
        if isinstance(cause, OSError):
            from embed_pipeline.storage import explain_system_error

            return explain_system_error(cause)
        cause = cause.__cause__
    return None


def settings_first(arguments: Sequence[str]) -> list[str]:
    """The command line with ``--set`` and ``--config`` at the front: they may stand after the command too."""
    first: list[str] = []
    rest: list[str] = []
    left = iter(arguments)
    for argument in left:
        if argument in {"--set", "--config"}:
            first += [argument, *islice(left, 1)]
        else:
            (first if argument.startswith(("--set=", "--config=")) else rest).append(argument)
    return first + rest


@contextmanager
def ended_when_told() -> Iterator[None]:
    """Have Ctrl-C and SIGTERM end this process soon, whatever it computes at that moment.

    A step is interrupted when the interpreter has its turn, and Dagster waits until it has ended; a product of large
    matrices or the loading of a model may take a minute. The kernel hands a signal's number to the thread started
    here at once.
    """
    numbers, handed_on = os.pipe()
    os.set_blocking(handed_on, False)

    def watch() -> None:
        while (told := os.read(numbers, 1)) and told[0] not in {signal.SIGINT, signal.SIGTERM}:
            pass
        os.close(numbers)
        if told:
            time.sleep(_GRACE_SECONDS)
            end_interrupted(KEPT)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler), signal.set_wakeup_fd(handed_on)
    threading.Thread(target=watch, name="interruption", daemon=True).start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.set_wakeup_fd(before[1])
        os.close(handed_on)


def end_interrupted(said: str) -> NoReturn:
    """Say so and end at once, and every child with it.

    Whatever is stored is put in place whole, so that no moment is a wrong one; the run is recorded as failed by the
    next command, and taking down an interpreter that holds torch would take seconds.
    """
    if not _ending.acquire(blocking=False):
        # Another thread is at it.
        threading.Event().wait()
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()
    # While a step is at work, Dagster has standard error written into the step's log.
    with os.fdopen(_terminal, "w", encoding="utf-8") as terminal:
        err.file = terminal
        err.show_cursor()
        _print_error(said)
    os._exit(INTERRUPTED)
