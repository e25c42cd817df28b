"""What a device can do, and what our kernels make of it: programs that print JSON."""
