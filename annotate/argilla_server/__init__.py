"""An Argilla of one's own on this machine. The server process imports this room without the rest of mmpo."""
