"""The command mbq."""
