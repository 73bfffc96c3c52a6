"""``fedattn approved``: list the approved bundles."""

from fedattn_app.bundles.approvals import Approvals, approvals_folder
from fedattn_app.cli.options import ApprovedFolder, print_lines


def approved(approved: ApprovedFolder = None) -> None:
    """List the approved bundles, the last one at the end."""
    approvals = Approvals(approvals_folder(approved))
    entries = approvals.entries()
    for entry in entries:
        damaged = "" if approvals.find(entry.sha256) else "  (copy missing or changed: refused)"
        line = f"{entry.sha256}  {entry.approved}  {entry.name} {entry.version}{damaged}"
        print_lines([line])
    if not entries:
        print_lines([f"no bundle is approved in {approvals.folder}"])
