"""An extension of Griffe, which reads the docstrings for the API reference.

The classes describe their fields as lines of the form `name: what it is`. Google's style would take such a line for an
admonition, so these lines become the section of attributes that they are.
"""

import inspect
import re
from collections.abc import Collection

import griffe

_FIELD = re.compile(r"(\w+(?:, \w+)*): ")


class Fields(griffe.Extension):
    """Turns the fields in the docstrings of classes into a section `Attributes`."""

    def on_class_members(self, *, cls, **_):
        """Called for each class when its members are known."""
        if cls.docstring is not None:
            cls.docstring.value = with_attributes(inspect.cleandoc(cls.docstring.value), cls.members)


def with_attributes(docstring: str, names: Collection[str]) -> str:
    """A docstring whose paragraphs of lines `name: what it is`, of fields in `names`, stand under `Attributes:`."""
    return "\n\n".join(_attributes(paragraph, names) for paragraph in docstring.split("\n\n"))


def _attributes(paragraph: str, names: Collection[str]) -> str:
    first = _FIELD.match(paragraph)
    if not first or not all(name in names for name in first[1].split(", ")):
        return paragraph
    return "\n".join(["Attributes:", *(f"    {line}" for line in paragraph.split("\n"))])
