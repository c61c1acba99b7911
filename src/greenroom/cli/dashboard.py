"""`greenroom dashboard`: log a browser in."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from greenroom.cli import options, render


def dashboard(
    *,
    open: Annotated[bool, Parameter(show_default=False)] = False,
    end: Annotated[bool, Parameter(show_default=False)] = False,
    given: options.Options = options.DEFAULT,
) -> None:
    """Print a link that logs a browser in as your key does, once, within a minute.

    Parameters
    ----------
    open
        Open it here, too; other users of this machine may see a browser's arguments.
    end
        Log out every browser that your key has logged in, instead.
    """
    if open and end:
        raise options.Usage("cannot open a browser and log it out: give one of --open and --end")
    with given.connect() as node:
        if end:
            node.end_logins()
            if not given.json:
                render.line("every browser of this key is logged out")
            return
        link = node.create_login()
        address = f"{node.url}{link.path}"
    if given.json:
        render.json({"url": address, "valid_s": link.valid_s})
        return
    render.line(address)
    render.say(f"next: open it in a browser within {render.span(link.valid_s)}; it works once")
    if open:
        import webbrowser

        webbrowser.open(address)
