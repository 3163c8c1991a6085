"""The run over all of it: `mmpo build`, chunk by chunk, partition by partition."""

__all__: list[str] = []
