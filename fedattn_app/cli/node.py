"""``fedattn node``: a ``flower-supernode`` on which only approved code runs."""

import logging
from typing import TYPE_CHECKING

import typer

from fedattn_app.bundles.approvals import Approvals, approvals_folder
from fedattn_app.cli.options import ApprovedFolder, print_lines
from fedattn_app.errors import UserError

if TYPE_CHECKING:
    from fedattn_app.bundles.flower_supernode import Delivery

FLOWER = logging.getLogger("flwr")  # its handler prints the log of a SuperNode


def node(context: typer.Context, approved: ApprovedFolder = None) -> None:
    """Start a node, with the options of flower-supernode.

    A run whose bundle is not approved is refused before any of its code is unpacked.
    """
    from fedattn_app.bundles import flower_supernode
    from fedattn_app.bundles.gate import is_still_approved, refusal
    from fedattn_app.bundles.unpacked import folder_for_one_node
    from fedattn_app.config import parse_pairs
    from fedattn_app.files import check_private_folder, user_path
    from fedattn_app.policy.owner_policy import OwnerPolicy

    parser = flower_supernode.supernode_options("fedattn node")
    if {"-h", "--help"} & set(context.args):
        print_lines(f"{context.get_help()}\n\nOptions of Flower:\n".split("\n"))
        print_lines(parser.format_help().split("\n"))
        return
    options = parser.parse_args(context.args)
    if options.isolation != "subprocess":
        raise UserError(
            f"--isolation {options.isolation}: the code would run in a process that this node does "
            "not start and cannot answer for; fedattn node takes subprocess only"
        )
    if options.runtime_dependency_install:
        raise UserError(
            "--allow-runtime-dependency-installation: would run packages that the owner has not "
            "approved; install what the app needs before"
        )
    node_config = parse_pairs(options.node_config or "")
    if node_config != flower_supernode.node_config_of(options):
        raise UserError(
            f"--node-config {options.node_config}: Flower would leave out a part of it; write "
            'pairs such as partition-id=0 data-path="/data/notes.csv"'
        )
    policy = OwnerPolicy.of_node(node_config)  # a mistake ends here, not in a run
    if policy.state_folder:
        check_private_folder("state-dir", policy.state_folder)
    if policy.data_path and not user_path("data-path", policy.data_path).exists():
        raise UserError(f"data-path = {policy.data_path}: is not there")
    approvals = Approvals(approvals_folder(approved))
    entries = approvals.entries()

    def accepts(delivery: "Delivery") -> bool:
        if reason := refusal(approvals, delivery):
            FLOWER.error("Refused to run this code: %s", reason)
        return reason is None

    with folder_for_one_node(flower_supernode.flower_home() / "fedattn") as folder:
        if entries:
            FLOWER.info("Approved bundles in %s: %d", approvals.folder, len(entries))
        else:
            FLOWER.warning(
                "No bundle is approved in %s: runs are refused until fedattn approve adds one",
                approvals.folder,
            )
        flower_supernode.run_supernode(
            context.args, folder, accepts, lambda sha256: is_still_approved(approvals, sha256)
        )
