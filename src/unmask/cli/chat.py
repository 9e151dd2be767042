"""`unmask chat`: a conversation in the terminal."""

import contextlib
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unmask.cli.options import ModelOptions, with_decoding
from unmask.errors import CanvasError, TextError

if TYPE_CHECKING:
    from unmask.decode.session import Model
    from unmask.decode.settings import DecodeSettings

_HELP = "/clear forgets the conversation, /exit (or Ctrl-D) leaves, /help shows this"


@with_decoding()
def chat(
    system: Annotated[
        str | None, typer.Option("--system", help="System message.", metavar="TEXT", show_default=False)
    ] = None,
    live: Annotated[bool, typer.Option("--live", help="Draw a meter of AR-ness below the canvas.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Answers only: no drawing, no speed card.")] = False,
    *,
    model: ModelOptions,
    settings: dict[str, Any],
) -> None:
    """Talk with a model; each answer is drawn as it settles.

    Example: unmask chat --temperature 0.3
    """
    from unmask.cli import output
    from unmask.decode.session import settings_from

    output.check_live(live=live, quiet=quiet)
    settings_from(settings)  # what is wrong is refused before a model is loaded
    loaded = model.load(quiet=quiet)
    if loaded.tokenizer.chat_template is None:
        raise TextError(
            f"{loaded.name} has no chat template, so there is no known way to hold a conversation with it; "
            "`unmask generate --raw` continues a text"
        )
    if sys.stdin.isatty():
        print(f"{loaded.name}\n{_HELP}", file=sys.stderr)
    _converse(loaded, loaded.settings(settings), system=system, live=live, quiet=quiet)


def _converse(loaded: "Model", settings: "DecodeSettings", *, system: str | None, live: bool, quiet: bool) -> None:
    from unmask.cli import output
    from unmask.text.chat import Message, encode_chat

    beginning = [Message("system", system)] if system is not None else []
    messages = list(beginning)
    while (line := _read_line()) is not None:
        if line == "/exit":
            return
        if re.fullmatch(r"/[a-z]+", line):
            messages = list(beginning) if line == "/clear" else messages
            print(_answer_to(line), file=sys.stderr)
            continue
        asked = [*messages, Message("user", line)]
        try:
            run = loaded.start([encode_chat(loaded.tokenizer, asked)], settings)
        except CanvasError as error:
            print(f"{error}; or forget the conversation with /clear", file=sys.stderr)
            continue
        is_whole = output.watch(run, quiet=quiet, meter=live)
        result = run.results()[0]
        output.print_line(result.text)
        if not quiet:
            output.print_card([result])
        if is_whole:
            messages = [*asked, Message("assistant", result.text)]
        else:
            print("interrupted; this turn is not remembered", file=sys.stderr)


def _answer_to(command: str) -> str:
    if command == "/clear":
        return "forgotten"
    return _HELP if command == "/help" else f"{command} is not a command; {_HELP}"


def _read_line() -> str | None:
    """The next line of the user that is not empty, None at the end of input."""
    from unmask.cli.output import decode_utf8

    is_typed = sys.stdin.isatty()
    while True:
        try:
            if is_typed:
                line = _ask()
                line.encode()
            else:
                data = sys.stdin.buffer.readline()
                if not data:
                    return None
                line = decode_utf8(data, "the line")
        except (EOFError, KeyboardInterrupt):
            if is_typed:
                print(file=sys.stderr)  # the shell's prompt gets a line of its own
            return None
        except (UnicodeError, TextError):
            print("that line is not UTF-8 and was left out; give it again", file=sys.stderr)
            continue
        if line.strip():
            return line.strip()


def _ask() -> str:
    """A line from the keyboard, with the arrow keys where the platform has them; the prompt never goes into a file."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (importing it is what turns it on)
    if sys.stdout.isatty():
        return input("> ")
    print("> ", end="", file=sys.stderr, flush=True)
    return input()
