"""The front matter of a generated page."""

import json


def front_matter(**entries: str | list[str] | dict[str, bool | int]) -> str:
    """YAML front matter; JSON is YAML, so quotes and colons in a title need no thought."""
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in entries.items()]
    return "\n".join(["---", *lines, "---", "", ""])
