"""Plain PyTorch: the definition of correct, and what runs where nothing faster was built."""
