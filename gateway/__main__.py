"""`python -m gateway`: run the gateway alone."""

import quire.service
from gateway.server import GatewayService
from gateway.settings import GatewaySettings

if __name__ == "__main__":
    quire.service.run("gateway", GatewaySettings, GatewayService)
