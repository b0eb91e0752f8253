"""How long the data path of a server takes for what its programs cannot see happen."""

CACHE_LAG = 0.006
"""Seconds by which a switch's flow cache may follow what the switch has confirmed (Open vSwitch: 5.3 ms
seen)."""
