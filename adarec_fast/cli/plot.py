def plot() -> None:
    pass
