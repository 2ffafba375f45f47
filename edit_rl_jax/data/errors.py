"""What can be wrong with a record or an image: errors that name their row."""


class RecordError(ValueError):
    """A record that cannot be used. The message begins with the row or key; `reason` is a short class for counting."""

    def __init__(self, where: str, reason: str, detail: str = ""):
        message = f"{where}: {reason}" + (f" ({detail})" if detail else "")
        super().__init__(" ".join(message.split()))  # one line, whatever was quoted
        self.where, self.reason, self.detail = where, reason, detail

    def __reduce__(self):  # crosses process borders whole
        return type(self), (self.where, self.reason, self.detail)


class ImageError(RecordError):
    """An image that cannot be used; names its row."""
