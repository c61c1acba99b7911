"""A node: one Greenroom process; on a laptop the whole platform. `serve` is ``greenroom up``, `opened` one without a
socket.
"""

from greenroom.node.composition import GRACE_S, TENANT, Node, Options, opened
from greenroom.node.serving import listening, serve

__all__ = ["GRACE_S", "TENANT", "Node", "Options", "listening", "opened", "serve"]
