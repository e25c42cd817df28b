"""The offline API: a model in a script or a notebook, on the same services that serve HTTP. See docs/offline.md."""
