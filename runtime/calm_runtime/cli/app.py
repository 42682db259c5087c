"""The `calm` command: its subcommands, loaded only when they are used, and how faults reach the user."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib import metadata
from typing import NamedTuple, NoReturn

import click

from calm_runtime.errors import CalmError, UsageError

EXIT_OK, EXIT_SOME_FAILED, EXIT_WRONG_USE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Entry(NamedTuple):
    """Where a subcommand lives. remedy: what to install when its module's packages are missing."""

    module: str
    attribute: str
    help: str
    remedy: str = "pip install calm-edge[cpu]"


COMMANDS: dict[str, Entry] = {
    "score": Entry("calm_runtime.cli.score", "score", "Score photos: files or folders."),
    "comment": Entry("calm_runtime.cli.comment", "comment", "Say in words what a photo does well and badly."),
    "suggest": Entry("calm_runtime.cli.suggest", "suggest", "What to change, how much, and the gain measured after it."),
    "ask": Entry("calm_runtime.cli.ask", "ask", "Ask a question about a photo."),
    "profile": Entry("calm_runtime.cli.profile", "profile", "Learn one person's taste from their ratings."),
    "check": Entry("calm_runtime.cli.check", "check", "Is this install right? Digests, then known scores."),
    "export": Entry(
        "calm_export.cli", "export", "Turn a checkpoint into a bundle.", "pip install calm-edge[export]"
    ),
    "train": Entry("calm_train.cli", "train", "Train and evaluate models.", "pip install calm-edge[train]"),
    "triton": Entry(
        "calm_runtime.cli.triton", "triton", "Serve a bundle with Triton.", "pip install calm-edge[triton-server]"
    ),
}  # fmt: skip


class LazyGroup(click.Group):
    """Lists its commands without importing them: `calm --help` must not load PyTorch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        try:
            command = getattr(importlib.import_module(entry.module), entry.attribute)
        except ImportError as error:
            raise CalmError(
                f"calm {cmd_name} needs packages that are not installed ({error}); {entry.remedy}"
            ) from error
        assert isinstance(command, click.Command)  # our own table
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"calm {metadata.version('calm-edge')}")
        ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`calm COMMAND --help` explains a command with examples. Exit code: 0 all good, 1 some items failed, "
    "2 wrong use.",
)
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version, help="Show the version."
)
def calm() -> None:
    """How good does this photo look, why, and what to do about it.

    \b
    Start here:
      calm score photo.jpg           one photo
      calm score holiday/            a folder, at any depth
      calm comment photo.jpg         a critique in words
      calm suggest photo.jpg         what to change, tried and measured
      calm check                     is my install right?
    """


def main(args: list[str] | None = None) -> NoReturn:
    """Entry point. Results go to stdout, all else to stderr; a user's mistake never shows a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.filterwarnings("ignore", module="PIL")  # what matters of them reaches the user as a PhotoError
    sys.exit(_run(args))


def _run(args: list[str] | None) -> int:
    try:
        result = calm.main(args=args, prog_name="calm", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else EXIT_OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UsageError as error:
        return _complain(error, EXIT_WRONG_USE)
    except CalmError as error:
        return _complain(error, EXIT_SOME_FAILED)
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return EXIT_INTERRUPTED


def _complain(error: Exception, code: int) -> int:
    click.echo(f"calm: {error}", err=True)
    return code
