"""What is registered and where it is: VMs and servers."""
