"""The command line itself: which commands there are, what holds for all of them, how errors end."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click

from imagefs import __version__
from imagefs.cli import exits
from imagefs.cli.settings import Settings


class Listed(NamedTuple):
    """Where a command is defined (`imagefs.cli.<module>`, as `<name>_command`) and its line in the help."""

    module: str
    help: str
    hidden: bool = False


COMMANDS = {
    "mount": Listed("mount", "Mount a repository as a directory tree."),
    "umount": Listed("mount", "Unmount, and wait until the daemon has ended."),
    "status": Listed("status", "Show what is stored, mounted and being written."),
    "list": Listed("listing", "List images."),
    "show": Listed("listing", "Show one image's record."),
    "create": Listed("transfer", "Make an image, with data from a file or standard input."),
    "save": Listed("transfer", "Write an image's data to a file or standard output."),
    "set": Listed("edit", "Change names, properties, tags and other metadata."),
    "delete": Listed("edit", "Delete images."),
    "clone": Listed("edit", "Make a new image of the same data; moves no data."),
    "seal": Listed("sealing", "Seal drafts now."),
    "wait": Listed("sealing", "Wait until images are active."),
    "undelete": Listed("trash", "Bring deleted images back."),
    "quota": Listed("quota", "Limit what a project, or all together, may store."),
    "gc": Listed("gc", "Delete stored data that nothing needs any more."),
    "convert": Listed("convert", "Look inside a compressed image, so that it shares blocks with others."),
    "fsck": Listed("upkeep", "Check the repository."),
    "scrub": Listed("scrub", "Read and verify everything that is stored."),
    "backup": Listed("backup", "Copy the catalog while it is in use."),
    "restore": Listed("backup", "Bring the catalog back from a backup."),
    "rebuild": Listed("rebuild", "Make a lost catalog anew from what is stored."),
    "init": Listed("init", "Create a repository."),
    "doctor": Listed("doctor", "Say what is missing on this machine, and how to get it."),
    "completion": Listed("completion", "Print the completion script of a shell."),
    "worker": Listed("daemon", "Serve a mount.", hidden=True),
    "mount-helper": Listed("fstab", "What mount(8) runs.", hidden=True),
}


class Commands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, listed in COMMANDS.items() if not listed.hidden]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        listed = COMMANDS.get(cmd_name)
        if listed is None:
            return None
        module = importlib.import_module(f"imagefs.cli.{listed.module}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        if not gc.isenabled():  # see main
            gc.freeze()
            gc.enable()
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, COMMANDS[name].help) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        with errors_as_messages(ctx, debug=ctx.params["debug"]):
            return super().invoke(ctx)


@contextmanager
def errors_as_messages(ctx: click.Context, *, debug: bool) -> Iterator[None]:
    """Ends the process with one sentence on stderr and the error's exit code; a traceback with `debug`."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt as error:
        click.echo("imagefs: interrupted", err=True)
        ctx.exit(exits.code_of(error))
    except Exception as error:  # the adapter's last line: nobody is above to read a traceback
        if debug:
            logging.getLogger(__name__).exception("failed")
        click.echo(f"imagefs: {message_of(error)}", err=True)
        ctx.exit(exits.code_of(error))


def message_of(error: Exception) -> str:
    """What happened as one sentence."""
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}"
    if exits.code_of(error) == exits.BUG:
        return f"a bug in imagefs ({type(error).__name__}: {error}); --debug shows where"
    return str(error) or type(error).__name__


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--repo",
    type=click.Path(file_okay=False, path_type=Path),
    envvar="IMAGEFS_REPO",
    help="The repository's directory [IMAGEFS_REPO; default: the system's state directory for root, "
    "else the user's data directory].",
)
@click.option(
    "--config",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    envvar="IMAGEFS_CONFIG",
    help="A configuration file [IMAGEFS_CONFIG].",
)
@click.option("--debug", is_flag=True, help="Log everything; show tracebacks.")
@click.version_option(__version__, prog_name="imagefs")
@click.pass_context
def cli(ctx: click.Context, repo: Path | None, config: Path | None, debug: bool) -> None:
    """An image store for virtual machines that is a filesystem.

    `imagefs mount DIRECTORY` is the whole start: copy disk images into DIRECTORY/by-name and use them
    by their path.
    """
    # Of what goes wrong people read one sentence, where it ends the command; the log is for --debug.
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.CRITICAL,
        format="imagefs: %(levelname)s: %(name)s: %(message)s",
        stream=sys.stderr,
    )
    ctx.obj = Settings(repo, config, debug)


def main() -> None:
    """Entry point of the `imagefs` and `mount.imagefs` commands."""
    # Until the command begins: what is imported stays. To look it through for garbage, while more comes and when
    # the process ends, is a tenth of a short command.
    gc.disable()
    words = sys.argv[1:]
    if Path(sys.argv[0]).name.startswith("mount."):
        words = ["mount-helper", *words]
    cli.main(words, prog_name="imagefs")
