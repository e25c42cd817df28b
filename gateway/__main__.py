"""`python -m gateway`: run the gateway alone."""

from gateway.server import GatewayService
from gateway.settings import GatewaySettings
from quire.service import run

if __name__ == "__main__":
    run("gateway", GatewaySettings, GatewayService)
