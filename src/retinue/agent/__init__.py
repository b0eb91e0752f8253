"""What runs beside the hypervisor on each server."""
