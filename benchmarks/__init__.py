"""Our own measurements; what users run is `quire bench`."""
