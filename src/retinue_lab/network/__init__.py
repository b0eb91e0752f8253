"""The network that the laboratory builds: nodes, switches, DHCP server, agents."""
