r"""Text of strangers for the terminal: characters that would steer it are shown and not obeyed.

Names of tensors and classes, file names and what is read from them come from files that are not
trusted. An escape character in one could clear the screen, colour a false verdict or move it to
where the true one stood; a bidirectional control turns the order of what is read.
"""

from __future__ import annotations

import re

# C0 with newline and tab, DEL, C1, bidirectional controls, and surrogates, which no terminal takes.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""The text with every such character spelled out, on one line.

    >>> print(visible("\x1b[2Jstop\nverdict: \u202edoog"))
    \x1b[2Jstop\nverdict: \u202edoog
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
