"""What the network answers by itself, on behalf of a gateway or of a host that has the address."""
