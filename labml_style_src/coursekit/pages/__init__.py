"""From an annotated source to a Markdown page, and from a lesson to a rendered notebook."""
