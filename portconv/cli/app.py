"""The sub-commands together, and what all of them have in common: one line for an error, and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

import portconv

from .bench import bench
from .check import check
from .completion import completion
from .info import info
from .matrix import matrix
from .run import run as run_network
from .tune import tune
from .warmup import warmup

__all__ = ["run"]


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(portconv.__version__, prog_name="portconv")
@click.pass_context
def app(context: click.Context) -> int:
    """Convolution for every array library."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    return 2  # what follows from no command; a command's own status replaces it


app.add_command(bench)
app.add_command(check)
app.add_command(completion)
app.add_command(info)
app.add_command(matrix)
app.add_command(run_network)
app.add_command(tune)
app.add_command(warmup)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line: status 0, 1 if what it checks failed, 2 for bad input, 130 when interrupted."""
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        status = app.main(given, "portconv", standalone_mode=False, obj=given)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = "portconv" if context is None else context.command_path
        sys.stderr.write(f"{where}: {' '.join(error.format_message().split())}\n")
        return 2
    except click.Abort:
        sys.stderr.write("interrupted\n")
        return 130
    return status if isinstance(status, int) else 0
