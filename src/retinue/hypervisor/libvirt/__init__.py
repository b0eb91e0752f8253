"""libvirt, where it runs the VMs."""
