"""`quire bench`: how fast this machine serves a model, beside what its memory and its matrix units allow."""
