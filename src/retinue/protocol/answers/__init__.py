"""What the controller's REST interface answers, as records: what its description says (openapi.py), and what
the tests hold the answers to.

The records that agents and clients read (VMRecord, MigrationRecord ...) have only what those act on; these
have everything. Fields may be added: a reader passes over those that it does not know.
"""
