"""A network that comes up fast, for tests of the sandbox itself."""

SMALL = """
gateway_mac = "00:00:de:ad:be:ef"
[[subnet]]
id = "servers"
prefix = "10.0.0.0/24"
gateway = "10.0.0.254"
[[leaf]]
id = "leaf1"
dpid = 0x11
[[server]]
id = "server1"
leaf = "leaf1"
mac = "02:00:00:00:00:01"
address = "10.0.0.11"
edge = "edge1"
dpid = 0x31
[management]
prefix = "192.0.2.0/24"
"""
"""One leaf and one server."""
