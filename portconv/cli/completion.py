"""`portconv completion`: what has a shell complete the words of the command."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the script with which a shell completes commands and options.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print what a shell runs to complete the commands, options and names of portconv when Tab is pressed.

    \b
    bash, in ~/.bashrc:   eval "$(portconv completion bash)"
    zsh, in ~/.zshrc:     eval "$(portconv completion zsh)"
    fish:                 portconv completion fish > ~/.config/fish/completions/portconv.fish
    """  # noqa: D301  \b is a character that keeps click from filling the paragraph
    kind = get_completion_class(shell)
    assert kind is not None  # of each of SHELLS
    click.echo(kind(context.find_root().command, {}, "portconv", "_PORTCONV_COMPLETE").source())
    return 0
