"""Printing never raises."""

import io
import logging
import sys

import pytest

from fedattn_app.console import SafeStream, flush_output, print_line, printing

log = logging.getLogger("fedattn")


class Broken(io.StringIO):
    """A stream of which every use fails."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def fails(self, *arguments):
        raise self.error

    write = flush = isatty = fileno = fails


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS = {
    "none": lambda: None,
    "closed": closed,
    "pipe": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "full": lambda: Broken(OSError(28, "No space left on device")),
    "other": lambda: Broken(ValueError("I/O operation on closed file")),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_cannot_be_written_is_ignored(name, monkeypatch):
    monkeypatch.setattr(sys, "stdout", STREAMS[name]())
    monkeypatch.setattr(sys, "stderr", STREAMS[name]())
    with printing():
        log.info("a line")
        log.warning("a line")
    print_line("a line", sys.stdout)
    flush_output()
    assert not SafeStream(sys.stderr).isatty()


@pytest.mark.parametrize(
    ("encoding", "line"),
    [
        ("ascii", r"\u03b5 is 8, caf\xe9, \udce9"),
        ("cp1252", r"\u03b5 is 8, café, \udce9"),
        ("utf-8", r"ε is 8, café, \udce9"),
    ],
)
def test_characters_that_a_stream_cannot_encode_are_escaped(monkeypatch, encoding, line):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding))
    with printing():
        log.info("ε is 8, café, \udce9")
    assert written.getvalue().decode(encoding) == line + "\n"


def test_a_log_line_that_cannot_be_made_does_not_raise(monkeypatch, capsys):
    with printing():
        log.info("%d", "not a number")
    assert "not a number" in capsys.readouterr().err
    with printing(lambda line, stream: 1 / 0):
        log.info("a line")


def test_an_exit_status_survives_a_closed_pipe(python):
    ran = python("""if True:
        import os, sys
        from fedattn_app.console import print_line
        read, write = os.pipe()
        os.dup2(write, 1)
        os.close(write)
        os.close(read)
        for _ in range(3):
            print_line("a line", sys.stdout)
        print("still no error")
    """)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_file_does_not_get_the_number_of_a_closed_stream(python):
    ran = python("""if True:
        import os, sys
        from fedattn_app.console import occupy_closed_descriptors
        os.close(0)
        os.close(1)
        occupy_closed_descriptors()
        print(open(os.devnull).fileno(), file=sys.stderr)
    """)
    assert int(ran.stderr) > 2


def test_a_process_that_is_started_inherits_what_takes_the_place_of_a_closed_stream(python):
    ran = python("""if True:
        import os, subprocess, sys
        from fedattn_app.console import occupy_closed_descriptors
        os.close(2)
        occupy_closed_descriptors()
        code = "import os; os.fstat(2); print('open')"
        print(subprocess.run([sys.executable, "-c", code], stdout=1).returncode, flush=True)
    """)
    assert ran.stdout.split() == ["open", "0"]
