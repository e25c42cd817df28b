"""Kernels compiled side by side before their first launch: one after the other they take most of a first start.

Triton compiles where a kernel is first launched, in one thread. Here a rehearsal launches nothing, and hands what would
be compiled to processes that leave it in Triton's cache on disk, where the real launches find it.
"""
