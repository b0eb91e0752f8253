"""Other domains: what is said to their controllers and heard from them."""
