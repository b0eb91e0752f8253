"""`make bench`: how the controller bears a large network. The controller is the real daemon; switches, their
databases, agents and hypervisors are fakes (`fakes/`), all in the process of the bench.
"""
