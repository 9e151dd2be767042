"""The command line: `unmask VERB`. Verbs import what they need when they run, so that help costs no torch."""

import errno
import os
import sys

import typer

from unmask.cli import data, models, trajectory
from unmask.cli.analyze import analyze
from unmask.cli.chat import chat
from unmask.cli.doctor import doctor
from unmask.cli.evaluate import evaluate
from unmask.cli.generate import generate
from unmask.cli.infill import infill
from unmask.cli.replay import replay
from unmask.cli.reproduce import reproduce
from unmask.cli.train import train
from unmask.errors import UnmaskError
from unmask.version import __version__

EXAMPLES = """Masked diffusion language models that write code.

Examples:

  unmask generate "Write a function that reverses a string."

  unmask generate "Write hello world." --trajectory run.jsonl

  unmask replay run.jsonl

  unmask analyze run.jsonl

  unmask infill program.py --lines 10-14

  unmask chat --temperature 0.3

  unmask evaluate humaneval+ --model qwen2.5-coder-0.5b-instruct --limit 20

  unmask train tiny --plan

  unmask models list
"""

app = typer.Typer(
    help=EXAMPLES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(chat)
app.command()(infill)
app.command()(replay)
app.command()(analyze)
app.command()(evaluate)
app.command()(reproduce)
app.command()(train)
app.add_typer(trajectory.app, name="trajectory")
app.add_typer(models.app, name="models")
app.add_typer(data.app, name="data")
app.command()(doctor)


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", help="Print the version.", callback=_print_version, is_eager=True),
) -> None:
    """Holds the options that stand before a verb."""


def main() -> None:
    """Entry point: our errors become one line on stderr and exit code 2."""
    try:
        app(prog_name="unmask")
    except UnmaskError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _fail("the memory is used up; take a smaller model, fewer -n or --max-new-tokens, or `--device cpu`")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _ADVICE:
            raise
        _fail(f"{error.filename or 'the output'}: {error.strerror}; {_ADVICE[error.errno]}")


_FULL, _FORBIDDEN = "make room or choose another place", "change its permissions or choose another place"
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.EROFS: _FORBIDDEN,
    errno.ENAMETOOLONG: "give a shorter name",
}


def _is_out_of_memory(error: BaseException) -> bool:
    """torch's own class on a GPU, a plain RuntimeError with these words on the CPU; told without importing torch."""
    is_allocation = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or is_allocation


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
