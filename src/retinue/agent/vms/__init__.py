"""The VMs of one server."""
