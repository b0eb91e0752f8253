"""What a decision is made of, in words for people."""

from retinue.core.placement import Reason


def test_every_reason_has_a_sentence_of_its_own() -> None:
    sentences = [reason.sentence for reason in Reason]
    assert len(set(sentences)) == len(Reason)
    assert Reason.OPERATOR.sentence == "the manager asked for it"
    assert Reason.MEMORY.sentence == "its server is short of memory"
