"""Where the controllers are: one URL, or several with commas between them, the first to be asked first."""


def urls_of(given: str) -> list[str]:
    """The URLs, each without a slash at its end."""
    return [url.strip().rstrip("/") for url in given.split(",")]
