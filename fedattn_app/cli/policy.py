"""``fedattn policy check``: what a node with this policy would answer to a run."""

from typing import Annotated

import typer

from fedattn_app.cli.options import print_lines

policy = typer.Typer(help="Look at what a node's owner allows.", rich_markup_mode=None)


@policy.callback()
def _group() -> None:
    """Keep ``check`` a command of its own: typer merges a group's only command into the group."""


@policy.command()
def check(
    policy: Annotated[str, typer.Argument(metavar="POLICY", hidden=True)],
    run_config: Annotated[list[str], typer.Argument(metavar="RUN-CONFIG...", hidden=True)],
) -> None:
    """Say what a node with this policy would answer to a run.

    POLICY is a policy file, as the node-config key policy names it. RUN-CONFIG is what the run
    gives as --run-config: 'k=v k=v' or a TOML file, possibly several times. The exit status is 0 if
    the node would take part, and 1 if it would refuse. What it has spent before is not considered.
    """
    from fedattn_app.config import Config, parse_run_config
    from fedattn_app.policy.owner_policy import OwnerPolicy, read_policy
    from fedattn_app.policy.rules import refusals

    owner = OwnerPolicy.from_keys(read_policy(policy))
    found = list(refusals(Config.from_run_config(parse_run_config(run_config)), owner))
    for refusal in found:
        print_lines([f"refused: {refusal}", f"  the server is told: {refusal.reason}"])
    if found:
        raise typer.Exit(1)
    print_lines(["accepted"])
