"""Several controllers, one of them active: how it becomes that, and what a standby does meanwhile.

They share a database. Who has its lock writes the next *epoch* into it, and is the active one for as long as
no later epoch stands there. What the active one may say to switches hangs on its *mandate*: it has seen its
own epoch there a moment ago. docs/high-availability.md tells it to operators, docs/design/030 why it is so.
"""
