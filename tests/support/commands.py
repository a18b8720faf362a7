"""What commands are tried with, how long they may take, and what a failure looks like."""

LIMIT = 600
"""Seconds after which something hangs. No test is about time: what takes long on a busy machine is right too."""
HOSTILE = "[/red] \x1b[31mZarn\x1b[0m $x_{ $ [bold]lives[/bold] \u202e in"


def fails(result, *words, status=2):
    """The status, nothing on stdout, one line on stderr that holds `words` and no traceback."""
    code, out, err = result
    last = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == status
    assert out == ""
    assert len(last) == 1 and err.rstrip().endswith(last[0])
    assert "Traceback" not in err
    for word in words:
        assert word in last[0], (word, last[0])
