"""The laboratory: servers, switches, VMs and a DHCP server, real ones, on one machine."""
