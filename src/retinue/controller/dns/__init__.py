"""Names as DNS has them: a zone that is answered from the table of entities itself.

zone        which names have which records
answers     one message in, one message out
server      the listeners, UDP and TCP, and their limits
"""
