"""The folder in which a node's owner keeps the bundles that may run, and the list of them.

It holds each approved bundle as ``<sha256>.fab`` and ``approved.json``. A bundle counts as approved
only if the list names it and its copy in the folder has that hash. Whoever can write to the folder
decides whose code runs, so a folder or file is used only if none but its owner can write to it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedattn_app.bundles.bundle import MAX_BYTES, Bundle, read_bundle, sha256_of
from fedattn_app.errors import UserError
from fedattn_app.files import (
    acquire_lock,
    check_only_owner_writes,
    make_private_folder,
    user_path,
    write_atomically,
)

FOLDER_VARIABLE = "FEDATTN_APPROVED"
DEFAULT_FOLDER = "~/.fedattn/approved"
MIN_PREFIX = 8  # digits of a SHA-256 that are enough to name a bundle
LOCK_SECONDS = 10
_LIST = "approved.json"
_MAX_LIST_BYTES = 10 * 1024**2


@dataclass(frozen=True)
class Approval:
    """One line of the list: which bundle, and when its owner approved it, in UTC."""

    sha256: str
    name: str
    version: str
    approved: str


def approvals_folder(given: str | None = None) -> Path:
    """Return the folder of approvals: `given`, else ``FEDATTN_APPROVED``, else the default.

    Raises `UserError` if that is not a valid path.
    """
    if given is not None:
        return user_path("--approved", given)
    return user_path(FOLDER_VARIABLE, os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)


class Approvals:
    """The bundles that the owner of a node has approved.

    Args:
        folder: where they are; it is made when the first is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def entries(self) -> list[Approval]:
        """Return the approvals, the last one at the end.

        Raises `UserError` if the list cannot be read, or others could have written it.
        """
        try:
            self._check_folder()
            text = read_own_file(self.folder / _LIST, _MAX_LIST_BYTES)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot_read(self.folder / _LIST, error) from None
        try:
            approvals = [Approval(**entry) for entry in json.loads(text)["approved"]]
            assert all(isinstance(value, str) for a in approvals for value in asdict(a).values())
        except (ValueError, TypeError, KeyError, AssertionError):
            raise UserError(f"{self.folder / _LIST}: not a list of approved bundles") from None
        return approvals

    def find(self, sha256: str) -> Approval | None:
        """Return the approval of the bundle with this hash, or None if it is not approved.

        Raises `UserError` as `entries`.
        """
        for approval in self.entries():
            if approval.sha256 == sha256 and self._copy(sha256) is not None:
                return approval
        return None

    def last(self, name: str) -> Bundle | None:
        """Return the bundle that was approved last of those called `name`, or None.

        Raises `UserError` as `entries`, and if its copy has been changed.
        """
        for approval in reversed(self.entries()):
            if approval.name == name:
                content, path = self._copy(approval.sha256), self._path(approval.sha256)
                if content is None:
                    raise UserError(
                        f"{path}: missing or changed; run fedattn revoke {approval.sha256}"
                    )
                return read_bundle(content, str(path))
        return None

    def add(self, bundle: Bundle) -> None:
        """Approve `bundle`, as the last one. Raises `UserError` if that cannot be stored."""
        approval = Approval(
            bundle.sha256, bundle.name, bundle.version, datetime.now(UTC).isoformat("T", "seconds")
        )
        try:
            make_private_folder(self.folder)
            self._check_folder()
            with self._locked():
                others = [each for each in self.entries() if each.sha256 != bundle.sha256]
                write_atomically(self._path(bundle.sha256), bundle.content)
                self._write_list([*others, approval])
        except OSError as error:
            raise _cannotwrite_atomically(self.folder, error) from None

    def remove(self, prefix: str) -> Approval:
        """Revoke the approval of the one bundle whose SHA-256 starts with `prefix`; return it.

        Raises `UserError` if there is none or more than one, or if that cannot be stored.
        """
        if len(prefix) < MIN_PREFIX:
            raise UserError(f"{prefix!r}: give at least {MIN_PREFIX} digits of the SHA-256")
        self.entries()  # raises if others can write to the folder
        if not self.folder.is_dir():
            raise UserError(f"{prefix!r}: no bundle is approved in {self.folder}")
        try:
            with self._locked():
                found = [each for each in self.entries() if each.sha256.startswith(prefix.lower())]
                if len(found) != 1:
                    many = "more than one" if found else "no"
                    raise UserError(
                        f"{prefix!r}: {many} approved bundle has a SHA-256 that starts with it; "
                        "fedattn approved lists them"
                    )
                self._write_list([each for each in self.entries() if each != found[0]])
                self._path(found[0].sha256).unlink(missing_ok=True)
        except OSError as error:
            raise _cannotwrite_atomically(self.folder, error) from None
        return found[0]

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let no other process change the list meanwhile; raises `OSError`."""
        lock = acquire_lock(self.folder / ".lock", LOCK_SECONDS)
        try:
            yield
        finally:
            lock.release()

    def _path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.fab"

    def _copy(self, sha256: str) -> bytes | None:
        """Return the stored bundle with this hash, or None if there is no such bundle."""
        try:
            content = read_own_file(self._path(sha256), MAX_BYTES)
        except (OSError, UserError):
            return None
        return content if sha256_of(content) == sha256 else None

    def _write_list(self, approvals: list[Approval]) -> None:
        table = {"approved": [asdict(approval) for approval in approvals]}
        write_atomically(self.folder / _LIST, json.dumps(table, indent=1).encode() + b"\n")

    def _check_folder(self) -> None:
        """Raise `UserError` if others can write to the folder, and `OSError` if there is none."""
        check_only_owner_writes(self.folder, self.folder.lstat())
        if not self.folder.is_dir():
            raise UserError(f"{self.folder}: not a folder")


def read_own_file(path: Path, limit: int) -> bytes:
    """Return the content of a file that only its owner can write.

    Raises `OSError`, and `UserError` if others can write it or it has more than `limit` bytes.
    """
    check_only_owner_writes(path, path.lstat())
    # A link that comes in between is not followed; Windows has no such flag, but one for bytes.
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        check_only_owner_writes(path, about)
        if about.st_size > limit:
            raise UserError(f"{path}: has more than {limit} bytes")
        return file.read()


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read ({error.strerror})")


def _cannotwrite_atomically(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written ({error.strerror or error})")
