"""Text for people: what a terminal, a plot or a drawing can show, and streams that never stop a command."""
