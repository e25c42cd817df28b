"""gRPC between the services: servers, channels, and multiplexed sessions."""
