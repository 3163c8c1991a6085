"""Agreement among raters in margins, and of judges with people."""

__all__: list[str] = []
