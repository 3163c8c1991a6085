"""Gathering margins from LLM judges and from people: the package that joins the FEEDBACK table from the outside."""

__all__: list[str] = []
