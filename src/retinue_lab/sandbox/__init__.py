"""The namespaces a laboratory lives in, from outside and from inside."""
