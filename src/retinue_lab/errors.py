"""The one error of the laboratory's builder."""


class LabError(Exception):
    """The lab cannot do what was asked; the message is one sentence that says why and what to do."""
