"""The public value that reviewers are drawn by: the one given, or the head of the receipts' log."""

from __future__ import annotations

from headwater.cli.home import Home


def public_value(home: Home, given: str = "", source: str = "") -> tuple[str, str]:
    """(value, where it can be looked up).

    The log's head is public and signed, and the operator's own: where nobody should have to trust the operator not to
    choose a moment, give a value that nobody could know, such as the hash of a block that came after the submission.
    """
    if given:
        return given, source or "given"
    home.log.refresh()
    head = home.log.head()
    return f"{head.size}:{head.root.hex()}", "head of the receipts' log, size:root"
