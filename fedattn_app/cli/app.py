"""The console script ``fedattn``."""

import sys

import typer
from click import ClickException

from fedattn_app.cli.approve import approve
from fedattn_app.cli.approved import approved
from fedattn_app.cli.node import node
from fedattn_app.cli.policy import policy
from fedattn_app.cli.revoke import revoke
from fedattn_app.console import exit_status, occupy_closed_descriptors
from fedattn_app.errors import UserError

app = typer.Typer(
    name="fedattn",
    help="Run a node on which only code runs that its owner has approved.",
    add_completion=False,
    rich_markup_mode=None,
)
# All options that the command does not know are Flower's, --help among them.
app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)(node)
# Arguments are explained in the text of a command: typer 0.20 does not show their own help.
app.command()(approve)
app.command()(approved)
app.command()(revoke)
app.add_typer(policy, name="policy")


def main() -> int:
    """Run the command that the command line names and return the exit status of the process."""
    occupy_closed_descriptors()
    return exit_status(_run)


def _run() -> int | None:
    try:
        command = typer.main.get_command(app)
        arguments = sys.argv[1:] or ["--help"]
        status: int | None = command.main(arguments, prog_name="fedattn", standalone_mode=False)
        return status
    except ClickException as error:
        raise UserError(error.format_message()) from None
