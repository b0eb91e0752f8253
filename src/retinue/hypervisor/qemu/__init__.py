"""QEMU, run by our agents."""
