"""Generated from protos/quire/v1 by `make protos`; do not edit."""
