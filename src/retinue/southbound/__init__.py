"""Towards the switches: OpenFlow, and the OVSDB protocol."""
