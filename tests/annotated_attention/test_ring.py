"""The proof of `ring`: each test is a claim that its page makes."""

from annotated_attention.ring import ring_attention


def test_a_name() -> None:
    assert callable(ring_attention)
