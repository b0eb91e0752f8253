"""`retinue lab`: the laboratory's commands."""
