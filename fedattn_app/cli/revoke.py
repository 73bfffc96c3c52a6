"""``fedattn revoke``: take back an approval."""

from typing import Annotated

import typer

from fedattn_app.bundles.approvals import Approvals, approvals_folder
from fedattn_app.cli.options import ApprovedFolder, print_lines


def revoke(
    sha256: Annotated[str, typer.Argument(metavar="SHA256", hidden=True)],
    approved: ApprovedFolder = None,
) -> None:
    """Revoke the approval of a bundle.

    SHA256 is its hash, or at least the first 8 digits of it. A running node refuses the bundle from
    its next message on.
    """
    entry = Approvals(approvals_folder(approved)).remove(sha256)
    print_lines([f"revoked {entry.sha256}  {entry.name} {entry.version}"])
