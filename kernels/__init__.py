"""The GPU operations, each beside its plain-torch reference. Knows nothing of rows, requests or models."""
