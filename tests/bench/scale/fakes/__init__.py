"""Fakes of switches, their OVSDB servers and hypervisors: they say what real ones say and forward nothing."""
