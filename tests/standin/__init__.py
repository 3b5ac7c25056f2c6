"""A stand-in for the network: a web server, a hub and its CDN, real HTTP on loopback, with faults on demand.

    with StandIn(folder) as net:
        repo = net.hub.create("owner/name")
        repo.commit({"model.pth": data})
        net.fault("cut", path="model.pth", after=1000)
        os.environ["HF_ENDPOINT"] = net.endpoint

The hub listens on 127.0.0.1 and its CDN on 127.0.0.2, another host as far as credentials are concerned.
"""

from tests.standin.faults import Fault
from tests.standin.server import Asset, Seen, StandIn
from tests.standin.storage import Repository, Storage

__all__ = ["Asset", "Fault", "Repository", "Seen", "StandIn", "Storage"]
