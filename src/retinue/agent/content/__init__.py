"""Content by name at a server: the store of chunks, what is served to others, what is fetched from them."""
