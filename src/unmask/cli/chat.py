"""`unmask chat`: a conversation in the terminal."""

import sys
from typing import Annotated, Any

import typer

from unmask.cli.options import ModelOptions, with_decoding

_HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves, /help shows this"


@with_decoding()
def chat(
    system: Annotated[
        str | None, typer.Option("--system", help="System message.", metavar="TEXT", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Answers only: no drawing, no speed card.")] = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Talk with a model; each answer is drawn as it settles.

    Example: unmask chat --temperature 0.3
    """
    from unmask.decode.session import settings_from

    checked = settings_from(settings)
    loaded = model.load(quiet=quiet)
    if sys.stdin.isatty():
        print(f"{loaded.name}: {_HELP}", file=sys.stderr)
    _converse(loaded, checked, system=system, quiet=quiet)


def _converse(loaded: Any, settings: Any, *, system: str | None, quiet: bool) -> None:
    from unmask.cli import output
    from unmask.errors import CanvasError
    from unmask.text.chat import Message, encode_chat

    beginning = [Message("system", system)] if system is not None else []
    messages = list(beginning)
    while (line := _read_line()) is not None:
        if line == "/exit":
            return
        if line in ("/help", "/clear"):
            messages = list(beginning) if line == "/clear" else messages
            print(_HELP if line == "/help" else "forgotten", file=sys.stderr)
            continue
        asked = [*messages, Message("user", line)]
        try:
            run = loaded.start([encode_chat(loaded.tokenizer, asked)], settings)
        except CanvasError as error:
            print(f"{error}; or forget the conversation with /clear", file=sys.stderr)
            continue
        is_whole = output.watch(run, quiet=quiet)
        result = run.results()[0]
        output.print_line(result.text)
        if not quiet:
            output.print_card([result])
        if is_whole:
            messages = [*asked, Message("assistant", result.text)]


def _read_line() -> str | None:
    """The next non-empty line of the user, None at the end of input."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return None
        except UnicodeDecodeError:
            print("that line is not UTF-8; type it again", file=sys.stderr)
            continue
        if line:
            return line
