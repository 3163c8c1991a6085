"""What other tools export: people's answers, judges' grades and evaluations' scores; a file per tool with its entry of SOURCES."""
