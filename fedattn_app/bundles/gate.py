"""Decide whether the code of a run may run on this node."""

from fedattn_app.bundles.approvals import Approvals
from fedattn_app.bundles.bundle import sha256_of
from fedattn_app.bundles.flower_supernode import Delivery
from fedattn_app.errors import UserError


def refusal(approvals: Approvals, delivery: Delivery) -> str | None:
    """Return why a node refuses the code of a run, or None if its owner approved it.

    Flower finds the folder whose code it runs by the name, the version and a hash, all as the
    server gives them. So these must be those of the bundle itself. The reason has no text of the
    server in it.
    """
    sha256 = sha256_of(delivery.content)
    try:
        approval = approvals.find(sha256)
    except UserError as error:
        return str(error)
    if approval is None:
        return (
            f"the owner of this node has not approved the bundle with SHA-256 {sha256}; "
            "to approve it: fedattn approve BUNDLE"
        )
    bundle = f"the approved bundle {approval.name} {approval.version} with SHA-256 {sha256}"
    if set(delivery.hashes) != {sha256}:
        return f"the server gives another hash for {bundle}"
    if (delivery.name, delivery.version) != (approval.name, approval.version):
        return f"the server gives another name or version for {bundle}"
    if not delivery.starts_client_app:
        return f"the server asks for another task than the ClientApp of {bundle}"
    return None


def is_still_approved(approvals: Approvals, sha256: str) -> bool:
    """Return whether the code of a run that was accepted before may run on."""
    try:
        return approvals.find(sha256) is not None
    except UserError:
        return False
