"""What is raised for a file that is not a good store."""


class StoreError(ValueError):
    """A store that cannot be read; names the file, the layer where there is one, and the reason."""

    def __init__(self, path, reason: str, layer: str | None = None):
        self.path, self.layer, self.reason = str(path), layer, reason
        super().__init__(f"{path}: " + (f"layer {layer!r}: " if layer is not None else "") + reason)
