"""Routers that are not ours: each has an adapter beside it, a program that knows the router's own ways.

The controller starts the adapter (by ssh, as a rule) and speaks with it by lines of JSON; `linux_router` is
the adapter for Linux, whatever else sets its routes (FRR, BIRD). See docs/networks.md.
"""
