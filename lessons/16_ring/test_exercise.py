"""The checks of the exercise. They speak to the student's code through the fixture `student` and to the
reference by import."""

import pytest

from annotated_attention.ring import ring_attention


@pytest.mark.task("The attention", hints=["The weights of one query sum to one: along which axis?"])
class TestAttention:
    @pytest.mark.points(2)
    def test_output(self, student, expect, draw):
        query, key, value = draw(2, 3, 5, 11), draw(2, 3, 7, 11), draw(2, 3, 7, 13)
        output = student.call("ring_attention", query, key, value)
        wanted = ring_attention(query, key, value)
        expect.close(output, wanted, axes="batch head query width", what="the output")
