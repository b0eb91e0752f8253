"""Programs of a laboratory: started, watched and ended, and what the host tells of them."""
