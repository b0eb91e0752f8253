"""OpenFlow 1.4 as values and bytes, no I/O.

To bytes: one function a message (`encode`). From bytes: `wire.Framer` cuts the stream, `decode.decode` reads
one message into one of `messages`.
"""
