"""Quire: a large-language-model server of small asyncio services that speak gRPC."""

__version__ = "0.1.0"
