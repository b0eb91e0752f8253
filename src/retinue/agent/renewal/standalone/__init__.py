"""Renewals without a controller of ours (`retinue agent renew --standalone`)."""
