"""Files in, folders out: reading whatever holds rows, and dataset folders that are whole or not there."""

__all__: list[str] = []
