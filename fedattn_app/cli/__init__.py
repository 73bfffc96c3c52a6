"""The command ``fedattn``, for the owner of a node: one module per command.

`app` puts the commands together. A module imports what only its command needs when that runs, so
that ``fedattn --help`` takes no time.
"""
