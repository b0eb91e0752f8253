"""Fibre Channel over Ethernet in the laboratory: its forwarder."""
