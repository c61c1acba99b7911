"""The process that `apprise_process` starts; it knows nothing of Greenroom.

    python -I -S …/apprise_child.py FOLDER…

sends what stdin says, with apprise from one of the folders.
"""

from __future__ import annotations

import json
import logging
import sys

SENT, NOT_SENT, NOT_KNOWN = 0, 10, 11


def main(folders: list[str]) -> int:
    sys.path += folders
    url, title, text = json.load(sys.stdin)
    import apprise

    logging.disable()  # its lines may hold the URL
    sender = apprise.Apprise()
    if not sender.add(url):
        return NOT_KNOWN
    is_sent = sender.notify(body=text, title=title, body_format=apprise.NotifyFormat.TEXT, interpret_escapes=False)
    return SENT if is_sent else NOT_SENT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
