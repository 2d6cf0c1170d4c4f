"""What the course's Markdown adds to Markdown, besides formulas."""

import pytest
from markdown import Markdown


def as_html(text: str) -> str:
    return Markdown(extensions=["fenced_code", "tables", "coursekit.pages.markdown"]).convert(text)


@pytest.mark.parametrize(
    "number", ["2310.01889", "0704.0001", "2310.01889v2", "cs.CL/0506077", "hep-th/9901001"]
)
def test_a_paper_s_number_leads_to_it(number):
    link = f'<a href="https://arxiv.org/abs/{number}">arXiv:{number}</a>'
    assert as_html(f"Liu et al. (arXiv:{number}).") == f"<p>Liu et al. ({link}).</p>"
    assert f"<td>{link}</td>" in as_html(f"| a |\n|---|\n| arXiv:{number} |")


def test_a_paper_s_number_in_code_or_in_a_link_is_text():
    assert as_html("`arXiv:2310.01889`") == "<p><code>arXiv:2310.01889</code></p>"
    assert "<a" not in as_html("```\narXiv:2310.01889\n```")
    assert as_html("[see *arXiv:2310.01889*](x)") == '<p><a href="x">see <em>arXiv:2310.01889</em></a></p>'
    assert as_html("arXiv:2310") == "<p>arXiv:2310</p>"
