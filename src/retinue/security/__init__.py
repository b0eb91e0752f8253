"""Who is who: certificates that name a party and its role, and TLS contexts that demand them.

`identity` is the page to read first. `authority` makes a certificate authority and issues from it,
`contexts` and `credentials` are the two ends of a connection, `listener` is what stands in front of a server.
"""
