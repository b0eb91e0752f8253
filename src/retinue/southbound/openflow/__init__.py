"""OpenFlow 1.4 (or 1.3) sessions with switches. `codec`: bytes and values; `session`: the talk over TCP or
TLS.
"""
