"""Leases renewed on a VM's behalf, at the VM's port."""
