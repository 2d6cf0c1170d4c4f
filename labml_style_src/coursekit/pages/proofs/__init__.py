"""Claims and their proof: the tests that a page names, what they measured, and the badge that shows it."""
