"""``fedattn approve``: let the code of one bundle run on this machine's nodes."""

from collections.abc import Iterator
from typing import Annotated

import typer

from fedattn_app.bundles.approvals import Approvals, approvals_folder
from fedattn_app.bundles.bundle import MAX_BYTES, Bundle, read_bundle
from fedattn_app.bundles.comparison import describe, differences
from fedattn_app.cli.options import ApprovedFolder, print_lines
from fedattn_app.errors import UserError
from fedattn_app.files import user_path


def approve(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", hidden=True)],
    approved: ApprovedFolder = None,
    show: Annotated[
        bool, typer.Option("--show", help="Only show what differs, and approve nothing.")
    ] = False,
) -> None:
    """Approve a bundle of code, and show what differs.

    BUNDLE is a .fab file, or the folder of an app, of which the bundle is made as flwr build and
    flwr run make it. It is compared with the last approved one of the same name. The last line of
    the output is its SHA-256.
    """
    approvals = Approvals(approvals_folder(approved))
    new = _read(bundle)
    print_lines(_report(approvals, new))
    if not show:
        approvals.add(new)
    print_lines([f"{'not approved, only shown' if show else 'approved'}:", new.sha256])


def _read(text: str) -> Bundle:
    """Return the bundle in the file `text`, or of the app in the folder `text`.

    Raises `UserError` if there is none.
    """
    path = user_path("BUNDLE", text)
    if path.is_dir():
        from fedattn_app.bundles.flower_supernode import build_bundle

        return read_bundle(build_bundle(path), text)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{text}: no such file or folder") from None
    except OSError as error:
        raise UserError(f"{text}: cannot be read ({error.strerror})") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{text}: has more than {MAX_BYTES} bytes, the most that Flower takes")
    return read_bundle(content, text)


def _report(approvals: Approvals, new: Bundle) -> Iterator[str]:
    """Yield the lines that tell the owner what is approved."""
    old = approvals.last(new.name)
    about = f"{new.name} {new.version}"
    if old is None:
        yield f"{about}, the first bundle of this name; SHA-256, bytes and path of each file:"
        yield from describe(new)
    elif old.sha256 == new.sha256:
        yield f"{about} is the bundle that was approved last"
    else:
        yield f"{about}, compared with the last approved one, {old.version} {old.sha256}:"
        yield from list(differences(old, new)) or ["  no file differs"]
    yield ""
