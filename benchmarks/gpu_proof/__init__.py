"""What the GPU path promises, shown on the device: random traffic, prefills that agree, scores, an even timeline."""
