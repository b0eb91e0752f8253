"""DHCP on its way through the controller, and leases renewed on a VM's behalf."""
